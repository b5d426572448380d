"""Each system learns a batch of two images by heart: the losses, targets and inference belong together."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from small_solo import SYSTEMS, rectangles, small

from solo_attn.evaluation import evaluate
from solo_attn.formats import coco_results

SIZE = (64, 96)
# Three look-alikes in each image (class 0) and one object unlike them. Their edges lie between the pixels of
# a mask at stride 4, so that it can show them, and all are so large that AP forgives it its round corners.
SCENES = (
    ([(4, 4, 40, 32), (52, 4, 88, 32), (8, 36, 44, 60), (52, 36, 92, 60)], [0, 0, 1, 0]),
    ([(4, 4, 44, 32), (52, 4, 92, 28), (8, 36, 40, 60), (52, 36, 88, 60)], [2, 0, 0, 0]),
)
CATEGORIES = [1, 2, 3]
# Grids that keep the look-alikes' cells apart (points-NMS joins neighbours), all objects on the finer levels.
GRIDS = (12, 12, 8, 6, 4)
RANGES = ((1, 28), (24, 64), (64, 128), (128, 256), (256, 2048))
STEPS, WARMUP, RATE = 120, 30, 0.15


def pictures():
    """Objects of one class have one colour; what tells them apart are their surroundings."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for boxes, labels in SCENES:
        coarse = torch.rand(1, 3, 6, 8, generator=generator)
        image = 0.9 * F.interpolate(coarse, SIZE, mode="bicubic")[0]
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            image[:, y1:y2, x1:x2] = 0.1
            image[label, y1:y2, x1:x2] = 0.9
        images.append(image.clamp(0, 1))
        targets.append(rectangles(boxes, labels, SIZE))
    return images, targets


def ground_truth(targets, path):
    """Write the targets as COCO annotations."""
    annotations = []
    for number, target in enumerate(targets, start=1):
        found = {**target, "masks": target["masks"].bool(), "scores": torch.ones(len(target["labels"]))}
        for result, mask in zip(coco_results(number, found, CATEGORIES), target["masks"], strict=True):
            del result["score"]
            annotations.append(
                {**result, "id": len(annotations) + 1, "iscrowd": 0, "area": float(mask.sum())}
            )
    content = {
        "images": [{"id": k + 1, "height": SIZE[0], "width": SIZE[1]} for k in range(len(targets))],
        "annotations": annotations,
        "categories": [{"id": k, "name": str(k)} for k in CATEGORIES],
    }
    path.write_text(json.dumps(content))
    return path


def learn(model, images, targets):
    """The losses of each step; SGD with warm-up, a cosine to 0 and clipped gradients."""
    # It takes a quarter of the time, and its level has no objects: what stands on it learns from it as it is.
    model.backbone.body.layer4.requires_grad_(False)
    for output in model.head.mask_outputs:
        # Masks of probability 0.01 have hardly a gradient: from there the first third of the steps went by.
        torch.nn.init.zeros_(output.bias)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, RATE, momentum=0.9, weight_decay=1e-4, fused=True)
    history = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return history


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_batch_is_learnt_by_heart(system, tmp_path):
    settings = {"num_convs": 2, "num_grids": GRIDS, "scale_ranges": RANGES}
    model = small(system, seed=1, **settings).train()
    images, targets = pictures()
    history = learn(model, images, targets)
    assert history[0]["loss_mask"] > 1.2  # the position tells cells apart from the first step on
    assert history[-1]["loss_mask"] < 0.3  # dice, times lambda
    assert history[-1]["loss_category"] < 0.05 < 1 < history[0]["loss_category"]

    results = [
        result
        for number, found in enumerate(model.eval()(images), start=1)
        for result in coco_results(number, found, CATEGORIES)
    ]
    metrics = evaluate(ground_truth(targets, tmp_path / "truth.json"), results)
    # 13 runs of five seeds, on one thread and on two, came to AP 0.983 to 1.000, AP75 1.000 each time.
    assert metrics.ap >= 0.9
