"""The whole inference of small random models against dense loops that follow docs/method.md, "Inference"."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_solo import SYSTEMS, confident, small

STRIDES = (8, 8, 16, 32, 32)


def resized(x, size):
    return F.interpolate(x[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def points_nms(scores):
    """[S, S] with the asymmetric window."""
    out = scores.clone()
    for row, column in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        window = scores[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        if scores[row, column] < window.max():
            out[row, column] = 0
    return out


def matrix_nms(found, kernel, sigma):
    """Spec 3 by loops, in the order of ``found``."""
    count = len(found)
    iou = [[0.0] * count for _ in range(count)]
    for j in range(count):
        for i in range(j):
            if found[i]["label"] == found[j]["label"]:
                both = (found[i]["m"] & found[j]["m"]).sum().item()
                iou[i][j] = both / (found[i]["m"].sum().item() + found[j]["m"].sum().item() - both)
    worst = [max([0.0, *(iou[k][i] for k in range(i))]) for i in range(count)]
    decayed = []
    for j in range(count):
        decay = 1.0
        for i in range(j):
            if kernel == "gaussian":
                decay = min(decay, math.exp(-sigma * iou[i][j] ** 2) / math.exp(-sigma * worst[i] ** 2))
            elif worst[i] < 1:
                decay = min(decay, (1 - iou[i][j]) / (1 - worst[i]))
        decayed.append(found[j]["score"] * decay)
    return decayed


def dense_inference(model, images):
    """For each image a list of (score, label, probabilities at the original size), best first."""
    head, options = model.head, model.settings
    batch, _ = model.transform(images)
    result = head(list(model.backbone(batch.tensors).values()))
    categories, levels = result.category_logits, zip(result.features, result.grids, strict=True)
    masks = [head.dense_mask_logits(k, x, grid) for k, (x, grid) in enumerate(levels)]
    height, width = batch.tensors.shape[-2:]
    results, counts = [], []
    for image, (original, size) in enumerate(zip(images, batch.image_sizes, strict=True)):
        found = []
        for k, stride in enumerate(STRIDES):
            side = head.num_grids[k]
            scores = torch.stack([points_nms(x) for x in categories[k][image].sigmoid()])
            for cell in range(side * side):
                for label in range(head.num_classes):
                    score = scores[label, cell // side, cell % side].item()
                    if not score > options.score_threshold:
                        continue
                    p = resized(masks[k][image, cell].sigmoid(), (height // 4, width // 4))
                    m = p > options.mask_threshold
                    area = m.sum().item()
                    if not area > stride:
                        continue
                    score *= (p * m).sum().item() / area
                    found.append({"score": score, "label": label, "p": p, "m": m, "level": k})
        counts.append([sum(x["level"] == k for x in found) for k in range(5)])
        found = sorted(found, key=lambda x: -x["score"])[: options.nms_pre]
        for x, score in zip(found, matrix_nms(found, options.nms_kernel, options.nms_sigma), strict=True):
            x["score"] = score
        found = [x for x in found if x["score"] >= options.final_score_threshold]
        found = sorted(found, key=lambda x: -x["score"])[: options.max_detections]
        results.append(
            [
                (
                    x["score"],
                    x["label"],
                    resized(resized(x["p"], (height, width))[: size[0], : size[1]], original.shape[1:]),
                )
                for x in found
            ]
        )
    return results, counts


def compare(model, images):
    with torch.no_grad():
        expected, counts = dense_inference(model, images)
    found = model(images)
    assert len(found) == len(images)
    threshold = model.settings.mask_threshold
    for image, prediction, wanted in zip(images, found, expected, strict=True):
        assert prediction["masks"].shape == (len(wanted), *image.shape[1:])
        assert prediction["masks"].dtype == torch.bool
        assert prediction["labels"].tolist() == [label for _, label, _ in wanted]
        assert prediction["labels"].dtype == torch.int64
        assert prediction["scores"].tolist() == pytest.approx([score for score, _, _ in wanted], rel=1e-5)
        assert prediction["scores"].dtype == prediction["boxes"].dtype == torch.float32
        for mask, box, (_, _, p) in zip(prediction["masks"], prediction["boxes"], wanted, strict=True):
            clear = (p - threshold).abs() > 1e-6
            assert torch.equal(mask[clear], (p > threshold)[clear])
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0] * 4
            assert box.tolist() == [float(edge) for edge in edges]
    return expected, counts


BATCH = ((64, 96), (90, 64), (70, 70))


def images_of(sizes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("system", SYSTEMS)
def test_inference_is_the_dense_one(system):
    model = confident(small(system, nms_pre=60, max_detections=30)).double()
    expected, counts = compare(model, images_of(BATCH))
    assert all(sum(count[k] for count in counts) > 0 for k in range(5))  # every level took part
    assert any(sum(count) > 60 for count in counts)  # and both limits
    assert any(len(image) == 30 for image in expected)


@pytest.mark.parametrize(
    "options",
    [
        {"nms_kernel": "linear"},
        {"nms_sigma": 0.5, "final_score_threshold": 0.2},
        {"score_threshold": 0.3, "mask_threshold": 0.4},
        {"min_size": 96, "max_size": 128},  # masks are made on resized images
    ],
)
def test_inference_options(options):
    model = confident(small(**options)).double()
    expected, _ = compare(model, images_of(BATCH[1:]))
    assert all(len(image) > 3 for image in expected)


def test_images_of_a_batch_share_only_its_padding():
    model = confident(small()).double()
    first, second = images_of(((64, 96), (64, 96)))
    together = model([first, second])
    for image, alone in zip(together, (model([first])[0], model([second])[0]), strict=True):
        assert len(image["scores"]) > 5
        for key in image:
            torch.testing.assert_close(image[key], alone[key])
