"""docs/method.md, "Inference" steps 1 to 4, on cases made by hand; all at once: test_inference_dense.py."""

import math

import pytest
import torch
from drawn import OFF, SURE, category_map, flat_masks, run
from small_solo import confident, small

from solo_attn.models import InferenceSettings, build_solo
from solo_attn.models.candidates import find_candidates, points_nms


def test_default_options_are_those_of_the_spec():
    expected = {
        "score_threshold": 0.1,
        "mask_threshold": 0.5,
        "nms_pre": 500,
        "nms_kernel": "gaussian",
        "nms_sigma": 2.0,
        "final_score_threshold": 0.05,
        "max_detections": 100,
        "tile": None,
        "tile_overlap": 64,
    }
    assert InferenceSettings().as_dict() == expected
    settings = build_solo(1, backbone="resnet18").settings
    assert {name: getattr(settings, name) for name in expected} == expected


# Step 1


@pytest.mark.parametrize(
    ("step", "suppressed"),
    [
        ((0, 1), False), ((1, 0), False), ((1, 1), False), ((-1, 1), False), ((1, -1), False),
        ((0, -1), True), ((-1, 0), True), ((-1, -1), True),
        ((0, -2), False), ((-2, 0), False),
    ],
)  # fmt: skip
def test_points_nms_looks_up_and_left_only(step, suppressed):
    scores = torch.zeros(1, 1, 5, 5)
    scores[0, 0, 2, 2] = 0.5
    scores[0, 0, 2 + step[0], 2 + step[1]] = 0.6
    kept = points_nms(scores)
    assert kept[0, 0, 2, 2] == (0 if suppressed else 0.5)
    assert kept[0, 0, 2 + step[0], 2 + step[1]] == pytest.approx(0.6)


def test_points_nms_keeps_ties_and_keeps_classes_and_images_apart():
    tied = torch.full((1, 1, 3, 3), 0.25)
    assert torch.equal(points_nms(tied), tied)
    scores = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).mul(8).round() / 8
    kept = points_nms(scores)
    assert kept.shape == scores.shape
    for image, label, row, column in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        window = scores[image, label, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        own = scores[image, label, row, column]
        assert kept[image, label, row, column] == (own if own >= window.max() else 0)


def test_points_nms_comes_before_the_threshold():
    """A cell beside a better one is no candidate, however good it is."""
    logits = category_map(4, {(0, 0, 1, 1): 0.9, (0, 0, 1, 2): 0.8, (0, 0, 3, 3): 0.7})
    (found,), _ = run({0: logits}, {0: flat_masks(4, SURE)}, (2, 2), nms_sigma=1e-6)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7]), rtol=1e-4, atol=0)


# Step 2


def test_the_score_threshold_is_exclusive():
    scores = torch.zeros(1, 2, 4, 4)
    scores[0, 1, 0, 0], scores[0, 0, 2, 2] = 0.1, 0.1 + 1e-6
    candidates, cells = find_candidates(scores, 0.1)
    assert cells.tolist() == [[0, 10]]
    assert candidates.label.tolist() == [0]
    logits = torch.full((1, 1, 2, 2), OFF)
    logits[0, 0, 0, 0] = 0  # exactly 0.5
    assert len(run({1: logits}, {1: flat_masks(2, SURE)}, (2, 2), score_threshold=0.5)[0][0]["scores"]) == 0
    assert len(run({1: logits}, {1: flat_masks(2, SURE)}, (2, 2), score_threshold=0.499)[0][0]["scores"]) == 1


def test_one_cell_gives_several_classes():
    scores = torch.zeros(2, 3, 4, 4)
    scores[1, 0, 2, 3], scores[1, 2, 2, 3], scores[0, 1, 0, 1] = 0.3, 0.6, 0.4
    candidates, cells = find_candidates(scores, 0.1)
    assert cells.tolist() == [[0, 1], [1, 11]]  # the cell's mask is made once
    assert candidates.image.tolist() == [0, 1, 1]
    assert candidates.label.tolist() == [1, 0, 2]
    assert candidates.mask.tolist() == [0, 1, 1]
    torch.testing.assert_close(candidates.score, torch.tensor([0.4, 0.3, 0.6]))

    logits = category_map(2, {(0, 0, 1, 1): 0.3, (0, 2, 1, 1): 0.6}, classes=3)
    (found,), _ = run({3: logits}, {3: flat_masks(2, SURE)}, (4, 4))
    assert found["labels"].tolist() == [2, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.6, 0.3]))  # other classes do not decay it
    assert torch.equal(found["masks"][0], found["masks"][1])


# Steps 3 and 4


def test_a_pixel_needs_more_than_half():
    logits = category_map(1, {(0, 0, 0, 0): 0.9})
    for value, count in ((0.0, 0), (1e-3, 1), (-1e-3, 0)):
        (found,), _ = run({0: logits}, {0: flat_masks(1, value, (4, 4))}, (4, 4))
        assert len(found["scores"]) == count
    # A pixel at the threshold is part of neither the area nor the result.
    half = torch.zeros(1, 1, 4, 8)
    half[..., :4] = SURE
    (found,), _ = run({0: logits}, {0: half}, (4, 8))
    assert found["masks"][0, :, :31].all()
    assert not found["masks"][0, :, 40:].any()


@pytest.mark.parametrize(("level", "stride"), list(enumerate((8, 8, 16, 32, 32))))
def test_the_area_must_exceed_the_stride_of_the_level(level, stride):
    logits = category_map(1, {(0, 0, 0, 0): 0.9})
    for width, kept in ((stride // 4, 0), (stride // 4 + 1, 1)):  # areas of stride and stride + 4 pixels
        (found,), _ = run({level: logits}, {level: flat_masks(1, SURE, (1, width))}, (1, width))
        assert len(found["scores"]) == kept, 4 * width


def test_maskness_multiplies_the_score_before_sorting():
    logits = category_map(3, {(0, 0, 0, 0): 0.8, (0, 1, 2, 2): 0.7}, classes=2)
    masks = flat_masks(3, OFF, (4, 4))
    masks[0, 0] = math.log(3)  # probability 0.75 everywhere
    masks[0, 8] = SURE
    (found,), _ = run({0: logits}, {0: masks}, (4, 4))
    torch.testing.assert_close(found["scores"], torch.tensor([0.7, 0.6]))
    assert found["labels"].tolist() == [1, 0]


def test_maskness_is_the_mean_of_the_set_pixels_alone():
    logits = category_map(1, {(0, 0, 0, 0): 0.8})
    mask = torch.full((1, 1, 2, 2), math.log(0.25))  # 0.2 on the right, 0.6 on the left
    mask[..., 0] = math.log(1.5)
    # At the level's own width of 4 the columns are logits a, (3a + b) / 4, (a + 3b) / 4, b.
    a, b = math.log(1.5), math.log(0.25)
    p = [1 / (1 + math.exp(-v)) for v in (a, (3 * a + b) / 4, (a + 3 * b) / 4, b)]
    assert p[0] > 0.5 > p[1]  # one column of four
    (found,), _ = run({0: logits}, {0: mask.repeat(1, 1, 3, 1)}, (6, 2))
    torch.testing.assert_close(found["scores"], torch.tensor([0.8 * p[0]]))


# What is not made


def test_levels_and_images_without_candidates_run_no_mask_tower():
    logits = {1: category_map(4, {(1, 0, 0, 0): 0.9}, images=2), 3: category_map(2, {}, images=2)}
    found, head = run(logits, {1: flat_masks(4, SURE, images=2)}, (2, 2))
    assert head.asked == [1]
    assert [len(image["scores"]) for image in found] == [0, 1]

    model = confident(small())
    runs = []
    model.head.mask_tower.register_forward_pre_hook(lambda module, args: runs.append(tuple(args[0].shape)))
    output = model.head.category_output
    with torch.no_grad():
        output.bias.fill_(OFF)
        model([torch.rand(3, 64, 96)])
        assert runs == []
        output.bias.fill_(-1.0)
        model([torch.rand(3, 64, 96)])
        # Levels of one size, 0 and 1, and 3 and 4, are one batch.
        assert [shape[0] for shape in runs] == [2, 1, 2]


def test_no_detection_is_empty_tensors():
    model = small().eval()
    torch.nn.init.constant_(model.head.category_output.bias, -20)
    found = model([torch.rand(3, 64, 96), torch.rand(3, 50, 70)])
    for image, size in zip(found, ((64, 96), (50, 70)), strict=True):
        assert {key: (tuple(x.shape), x.dtype) for key, x in image.items()} == {
            "boxes": ((0, 4), torch.float32),
            "labels": ((0,), torch.int64),
            "scores": ((0,), torch.float32),
            "masks": ((0, *size), torch.bool),
        }
    # Candidates whose masks are all too small are no detections either.
    (found,), head = run({0: category_map(1, {(0, 0, 0, 0): 0.9})}, {0: flat_masks(1, OFF)}, (2, 2))
    assert head.asked == [0]
    assert found["masks"].shape == (0, 16, 16)
    assert found["boxes"].shape == (0, 4)
