from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from solo_attn.data import eval_transforms, train_transforms
from solo_attn.data.transforms import FitBoxes, RandomQuarterTurn, RandomScale

SIZE = (40, 60)


def sample(count: int = 6, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """Ellipses, and in the picture's red channel the number of the object, so that picture and masks meet."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.zeros((count, *SIZE), dtype=np.uint8)
    image = np.zeros((3, *SIZE), dtype=np.uint8)
    for k in range(count):
        cy, cx, ry, rx = rng.uniform(5, 35), rng.uniform(5, 55), rng.uniform(2, 9), rng.uniform(2, 9)
        masks[k] = ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 <= 1
        masks[:k] *= 1 - masks[k]
        image[0][masks[k] > 0] = 25 * (k + 1)
    boxes = torch.tensor([[0.0, 0.0, 60.0, 40.0]]).repeat(count, 1)  # wrong on purpose: masks must decide
    target: dict[str, Tensor] = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=SIZE),  # type: ignore[call-overload]
        "labels": torch.arange(count),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        "image_id": torch.tensor(5),
    }
    return tv_tensors.Image(torch.from_numpy(image)), target


def check(image: Tensor, target: dict[str, Tensor]) -> None:
    """Everything speaks of the same objects."""
    count = len(target["labels"])
    assert (image.dtype, type(image)) == (torch.float32, Tensor)
    assert image.min() >= 0
    assert image.max() <= 1
    assert target["masks"].shape == (count, *image.shape[1:])
    assert target["masks"].dtype == torch.uint8
    assert target["boxes"].shape == (count, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["image_id"].item() == 5
    assert (target["masks"].amax((1, 2)) > 0).all()
    if count:
        expected = masks_to_boxes(target["masks"])
        expected[:, 2:] += 1
        assert torch.equal(target["boxes"], expected)


def same_picture(image: Tensor, target: dict[str, Tensor]) -> bool:
    """Whether every mask lies on its own colour (no resampling in between)."""
    red = (image[0] * 255).round().long()
    return all(
        bool((red[mask > 0] == 25 * (int(label) + 1)).all())
        for label, mask in zip(target["labels"], target["masks"], strict=True)
    )


def test_eval_changes_nothing_but_the_type() -> None:
    image, target = sample()
    out, same = eval_transforms()(image, target)
    assert torch.allclose(out * 255, image.float())
    assert (out.dtype, type(out)) == (torch.float32, Tensor)
    assert torch.equal(same["masks"], target["masks"])
    assert torch.equal(same["boxes"], target["boxes"])
    assert same["masks"].dtype == torch.uint8


@pytest.mark.parametrize(("flip", "vertical", "axis"), [(1.0, 0.0, 2), (0.0, 1.0, 1)])
def test_flip_moves_picture_masks_and_boxes(flip: float, vertical: float, axis: int) -> None:
    image, target = sample()
    out, moved = train_transforms(flip=flip, vertical_flip=vertical)(image, target)
    check(out, moved)
    assert torch.allclose(out * 255, image.flip(axis).float())
    present = target["masks"].amax((1, 2)) > 0
    assert torch.equal(moved["masks"], target["masks"][present].flip(axis))


def test_default_flips_half_of_the_images() -> None:
    torch.manual_seed(0)
    image, target = sample()
    same = sum(torch.allclose(train_transforms()(image, target)[0] * 255, image.float()) for _ in range(60))
    assert 15 < same < 45


def test_crop_cuts_and_drops() -> None:
    torch.manual_seed(0)
    image, target = sample(9)
    before = int((target["masks"].amax((1, 2)) > 0).sum())
    dropped = cut = 0
    for _ in range(30):
        out, cropped = train_transforms(flip=0.5, crop_size=(20, 24))(image, target)
        check(out, cropped)
        assert out.shape == (3, 20, 24)
        assert same_picture(out, cropped)
        dropped += len(cropped["labels"]) < before
        areas = target["masks"].flatten(1).sum(1)[cropped["labels"]]
        cut += bool((cropped["masks"].flatten(1).sum(1) < areas).any())
    assert dropped > 20
    assert cut > 10


def test_crop_larger_than_the_image_pads_with_grey() -> None:
    torch.manual_seed(0)
    image, target = sample()
    out, padded = train_transforms(flip=0, crop_size=80)(image, target)
    check(out, padded)
    assert out.shape == (3, 80, 80)
    assert same_picture(out, padded)
    assert torch.equal(padded["masks"].sum(), target["masks"].sum())  # nothing new in the padding
    assert ((out * 255).round() == 124).all(0).sum() >= 80 * 80 - 40 * 60


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scaled_crop_is_a_part_of_the_scaled_image(axis: int) -> None:
    """Each row (or column) is an object: those of the part become two pixels wide, and any part comes."""
    torch.manual_seed(0)
    image, target = sample(1)
    target["labels"] = torch.arange(SIZE[axis])
    target["boxes"] = tv_tensors.BoundingBoxes(
        target["boxes"].repeat(SIZE[axis], 1), format="XYXY", canvas_size=SIZE
    )  # type: ignore[call-overload]
    lines = torch.eye(SIZE[axis], dtype=torch.uint8)
    lines = (
        lines[:, :, None].expand(-1, -1, SIZE[1]) if axis == 0 else lines[:, None, :].expand(-1, SIZE[0], -1)
    )
    target["masks"] = tv_tensors.Mask(lines.contiguous())
    length, wanted = (20, 24)[axis], (20, 24)[axis] // 2
    firsts = set()
    for _ in range(60):
        out, cropped = train_transforms(flip=0, crop_size=(20, 24), scale_jitter=(2.0, 2.0))(image, target)
        check(out, cropped)
        first = int(cropped["labels"][0])
        assert cropped["labels"].tolist() == list(range(first, first + wanted))
        expected = torch.eye(wanted, dtype=torch.uint8).repeat_interleave(2, 1)
        assert torch.equal(cropped["masks"].amax(2 - axis), expected)
        assert torch.equal(cropped["masks"].amin(2 - axis), expected)
        assert cropped["masks"].shape[1 + axis] == length
        firsts.add(first)
    assert (min(firsts), max(firsts)) == (0, SIZE[axis] - wanted)


def test_crop_without_any_object() -> None:
    torch.manual_seed(0)
    image, target = sample(0)
    out, cropped = train_transforms(crop_size=16, scale_jitter=(0.5, 2.0), colour=0.3)(image, target)
    check(out, cropped)
    assert cropped["labels"].shape == (0,)


def test_scale_jitter_resizes_all_alike() -> None:
    torch.manual_seed(0)
    image, target = sample()
    sizes = set()
    for _ in range(20):
        out, scaled = train_transforms(scale_jitter=(0.5, 1.5))(image, target)
        check(out, scaled)
        sizes.add(tuple(out.shape[1:]))
        assert 20 <= out.shape[1] <= 60
        assert abs(out.shape[2] / out.shape[1] - 1.5) < 0.06
    assert len(sizes) > 10
    out, scaled = train_transforms(flip=0, scale_jitter=(2.0, 2.0))(image, target)
    present = target["masks"].amax((1, 2)) > 0
    doubled = target["masks"][present].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(scaled["masks"], doubled)


def test_halving_is_as_likely_as_doubling() -> None:
    torch.manual_seed(0)
    vary = RandomScale(0.5, 2.0)
    image = [tv_tensors.Image(torch.zeros(3, 1000, 1000))]
    sides = torch.tensor([vary.make_params(image)["size"][0] for _ in range(400)])
    assert (sides < 1000).float().mean() == pytest.approx(0.5, abs=0.08)
    assert (sides < 707).float().mean() == pytest.approx(0.25, abs=0.08)


def test_objects_that_became_too_small_are_left_out() -> None:
    image, target = sample()
    areas = target["masks"].flatten(1).sum(1)
    limit = int(areas.max())
    _, found = train_transforms(flip=0, min_area=limit)(image, target)
    assert torch.equal(found["masks"], target["masks"][areas >= limit])
    assert 0 < len(found["labels"]) < len(areas)
    with pytest.raises(ValueError, match="train_transforms: expected min_area >= 1, got 0"):
        train_transforms(min_area=0)


def test_object_lost_in_shrinking_is_dropped() -> None:
    image, target = sample(1)
    target["masks"] = tv_tensors.Mask(torch.zeros(1, *SIZE, dtype=torch.uint8))
    target["masks"][0, 7, 7] = 1
    out, small = train_transforms(scale_jitter=(0.1, 0.1))(image, target)
    check(out, small)
    assert len(small["labels"]) == 0


def test_shortest_size() -> None:
    image, target = sample()
    out, resized = train_transforms(shortest_size=[20])(image, target)
    check(out, resized)
    assert out.shape == (3, 20, 30)


def test_colour_changes_the_picture_only() -> None:
    torch.manual_seed(0)
    image, target = sample()
    out, same = train_transforms(flip=0, colour=0.5)(image, target)
    check(out, same)
    assert not torch.allclose(out * 255, image.float(), atol=1)
    assert torch.equal(same["masks"], target["masks"][(target["masks"].amax((1, 2)) > 0)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 1.5),
        ("flip", float("nan")),
        ("vertical_flip", -0.1),
        ("colour", -1.0),
        ("colour", float("inf")),
        ("colour", float("nan")),
        ("scale_jitter", (1.0, 0.5)),
        ("scale_jitter", (0.0, 1.0)),
        ("scale_jitter", (1.0, float("inf"))),
        ("scale_jitter", (1.0,)),
        ("canvas", 0),
        ("canvas", (10, 20, 30)),
        ("crop_size", 0),
        ("crop_size", (10, -1)),
        ("crop_size", (10, 20, 30)),
        ("shortest_size", []),
        ("shortest_size", [0]),
    ],
)
def test_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected {name}"):
        train_transforms(**{name: value})


def test_quarter_turns_are_exact_and_as_likely() -> None:
    torch.manual_seed(0)
    image, target = sample()
    present = target["masks"].amax((1, 2)) > 0
    turned = [image.as_subclass(Tensor).rot90(k, (1, 2)) for k in range(4)]
    seen = [0] * 4
    for _ in range(60):
        out, found = train_transforms(flip=0, rotate90=True)(image, target)
        check(out, found)
        assert same_picture(out, found)
        (turns,) = (k for k in range(4) if torch.equal((out * 255).round().byte(), turned[k]))
        assert torch.equal(found["masks"], target["masks"].as_subclass(Tensor)[present].rot90(turns, (1, 2)))
        seen[turns] += 1
    assert min(seen) >= 6


def test_quarter_turns_of_boxes_are_those_of_masks() -> None:
    torch.manual_seed(0)
    image, target = sample()
    target["boxes"] = FitBoxes()(image, target)[1]["boxes"]
    target["masks"] = target["masks"][target["masks"].amax((1, 2)) > 0]
    for _ in range(8):
        turned, found = RandomQuarterTurn()(image, target)
        expected = masks_to_boxes(found["masks"]) + torch.tensor([0, 0, 1, 1])
        assert torch.equal(found["boxes"].as_subclass(Tensor), expected)
        assert found["boxes"].canvas_size == tuple(turned.shape[1:])  # type: ignore[attr-defined]


def test_quarter_turn_comes_before_the_crop() -> None:
    torch.manual_seed(0)
    image, target = sample()
    sizes = {train_transforms(rotate90=True, crop_size=(30, 44))(image, target)[0].shape for _ in range(10)}
    assert sizes == {(3, 30, 44)}


@pytest.mark.parametrize(
    ("canvas", "inside"),
    [((80, 120), (80, 120)), ((80, 200), (80, 120)), ((120, 90), (60, 90)), (60, (40, 60))],
)
def test_canvas_fits_the_image(canvas: int | tuple[int, int], inside: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, target = sample()
    image = tv_tensors.Image(image.clamp(min=1))  # black is nothing of it
    out, found = train_transforms(flip=0, canvas=canvas)(image, target)
    check(out, found)
    assert out.shape == (3, *((canvas, canvas) if isinstance(canvas, int) else canvas))
    part = ((out * 255).round() != 124).any(0)
    rows, columns = part.any(1).sum(), part.any(0).sum()
    assert (rows, columns) == inside
    scale = inside[0] / SIZE[0]
    areas = target["masks"].flatten(1).sum(1)
    assert torch.allclose(found["masks"].flatten(1).sum(1) / scale**2, areas[areas > 0].float(), rtol=0.1)


def test_canvas_with_jitter_has_one_size_and_many_scales() -> None:
    torch.manual_seed(0)
    image, target = sample()
    target["masks"][:] = 0
    target["masks"][0, 18:22, 28:32] = 1  # in the middle, where crops rarely cut
    areas = []
    for _ in range(30):
        out, found = train_transforms(canvas=(80, 120), scale_jitter=(0.25, 1.0))(image, target)
        check(out, found)
        assert out.shape == (3, 80, 120)
        areas += found["masks"].flatten(1).sum(1).tolist()
    assert 4 <= min(areas) <= 9
    assert 36 <= max(areas) <= 64


@pytest.mark.parametrize("other", [{"crop_size": 8}, {"shortest_size": [8]}])
def test_canvas_and_other_sizes_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected canvas or shortest_size and crop_size, got canvas 8"):
        train_transforms(canvas=8, **other)
