"""docs/method.md, "Inference" steps 5 to 9, on cases made by hand."""

import math

import torch
import torch.nn.functional as F
from drawn import SURE, category_map, far_apart, flat_masks, run

from solo_attn.models.inference import boxes_of

# Steps 5 to 8


def scores_of(values, **options):
    """Final scores of candidates of different classes with one perfect mask each."""
    side = 2 * math.ceil(math.sqrt(len(values)))
    places = far_apart(side)
    scores = {(0, k, *places[k]): value for k, value in enumerate(values)}
    logits = category_map(side, scores, classes=len(values))
    (found,), _ = run({0: logits}, {0: flat_masks(side, SURE)}, (2, 2), **options)
    return found


def test_the_best_candidates_reach_matrix_nms():
    values = [0.3, 0.9, 0.5, 0.7]
    assert scores_of(values, nms_pre=3)["labels"].tolist() == [1, 3, 2]
    assert scores_of(values, nms_pre=1)["labels"].tolist() == [1]
    assert scores_of(values)["labels"].tolist() == [1, 3, 2, 0]


def test_at_most_five_hundred_reach_matrix_nms():
    logits = torch.full((1, 1, 24, 24), 1.0)  # ties survive points-NMS: 576 candidates
    case = {0: logits}, {0: flat_masks(24, SURE)}, (2, 2)
    assert len(run(*case, nms_sigma=1e-9, max_detections=1000)[0][0]["scores"]) == 500
    assert len(run(*case, nms_sigma=1e-9)[0][0]["scores"]) == 100


def test_matrix_nms_decays_masks_of_one_image_and_class():
    """The values of docs/method.md, "Matrix NMS": four identical masks."""
    scores = {(0, 0, 0, 0): 0.9, (0, 0, 0, 2): 0.8, (0, 0, 2, 0): 0.7, (0, 0, 2, 2): 0.6}
    logits = category_map(4, scores)
    options = {"final_score_threshold": 0.0}
    (found,), _ = run({0: logits}, {0: flat_masks(4, SURE)}, (2, 2), **options)
    torch.testing.assert_close(
        found["scores"], torch.tensor([0.9, 0.1083, 0.0947, 0.0812]), rtol=0, atol=5e-5
    )
    # Spread over two images and two classes none has an equal.
    logits = category_map(
        4, {(k // 2, k % 2, *p[2:]): s for k, (p, s) in enumerate(scores.items())}, classes=2, images=2
    )
    found, _ = run({0: logits}, {0: flat_masks(4, SURE, images=2)}, (2, 2), **options)
    for image, expected in zip(found, ([0.9, 0.8], [0.7, 0.6]), strict=True):
        torch.testing.assert_close(image["scores"], torch.tensor(expected))
        assert image["labels"].tolist() == [0, 1]


def test_levels_meet_in_matrix_nms():
    one, other = category_map(1, {(0, 0, 0, 0): 0.6}), category_map(1, {(0, 0, 0, 0): 0.9})
    masks = {1: flat_masks(1, SURE, (4, 4)), 3: flat_masks(1, SURE, (1, 1))}
    (found,), _ = run({1: one, 3: other}, masks, (4, 4))
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.6 * math.exp(-2)]))


def test_options_of_matrix_nms():
    scores = {(0, 0, 0, 0): 0.9, (0, 0, 2, 2): 0.8}
    case = {0: category_map(4, scores)}, {0: flat_masks(4, SURE)}, (2, 2)
    (found,), _ = run(*case, nms_sigma=1.0)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8 * math.exp(-1)]))
    (found,), _ = run(*case, nms_kernel="linear")
    torch.testing.assert_close(found["scores"], torch.tensor([0.9]))


def test_the_final_threshold_is_inclusive():
    case = {0: torch.zeros(1, 1, 1, 1)}, {0: flat_masks(1, SURE, (2, 2))}, (2, 2)  # a score of exactly 0.5
    assert run(*case)[0][0]["scores"].tolist() == [0.5]
    assert len(run(*case, final_score_threshold=0.5)[0][0]["scores"]) == 1
    assert len(run(*case, final_score_threshold=0.500001)[0][0]["scores"]) == 0


def test_limits_are_of_each_image():
    logits = category_map(
        4,
        {(k, c, *place): 0.5 + 0.1 * c + 0.04 * k for k in range(2) for c, place in enumerate(far_apart(4))},
        classes=4,
        images=2,
    )
    for options in ({"max_detections": 3}, {"nms_pre": 3}):
        found, _ = run({0: logits}, {0: flat_masks(4, SURE, images=2)}, (2, 2), **options)
        for k, image in enumerate(found):
            assert image["labels"].tolist() == [3, 2, 1]
            expected = torch.tensor([0.8, 0.7, 0.6]) + 0.04 * k
            torch.testing.assert_close(image["scores"], expected)


# Step 9


def test_the_order_of_pasting():
    """Sigmoid at the level's size, stride 4, 4x, crop, the original size, threshold: nothing else will do."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, 3, 4, generator=generator) * 8  # of stride 16, for an input of 48 x 64
    image, original = (41, 50), (77, 103)
    logits = category_map(1, {(0, 0, 0, 0): 0.9})
    (found,), _ = run({2: logits}, {2: coarse}, (6, 8), [image], [original])

    def resized(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    p = resized(resized(coarse, (6, 8)).sigmoid(), (12, 16))
    expected = resized(resized(p, (48, 64))[..., :41, :50], original) > 0.5
    assert found["masks"].shape == (1, *original)
    assert torch.equal(found["masks"], expected[0])
    # The case tells the wrong orders apart.
    late = resized(resized(coarse, (6, 8)), (12, 16)).sigmoid()  # sigmoid after enlarging
    assert not torch.equal(resized(resized(late, (48, 64))[..., :41, :50], original) > 0.5, expected)
    at_once = resized(p[..., :10, :12], original)  # no crop at the input's size
    assert not torch.equal(at_once > 0.5, expected)
    uncropped = resized(p, original)
    assert not torch.equal(uncropped > 0.5, expected)


def test_boxes_are_those_of_the_masks():
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[0, 1:4, 2:8] = True
    masks[2, 5, 8] = True
    expected = [[2, 1, 8, 4], [0, 0, 0, 0], [8, 5, 9, 6]]
    assert boxes_of(masks).tolist() == boxes_of(masks.mT.contiguous().mT).tolist() == expected
    assert boxes_of(masks[:0]).shape == (0, 4)
