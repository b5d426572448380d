"""docs/method.md, "Targets", against loops that follow it, and mask targets against cv2's resize."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_loops import assigned_by_loops, reduced_by_loops

from solo_attn.models.targets import MASK_STRIDES, assign, count_columns, count_rows, reduce_masks

RANGES = ((1, 16), (8, 32), (16, 64), (32, 128), (64, 2048))


def noise(count, height, width, seed, density=0.5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, height, width, generator=generator) < density).to(torch.uint8)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_all_sixteen_patterns_of_the_centre_pixels(stride):
    masks = torch.ones(16, stride, stride, dtype=torch.uint8)  # all around: it must not count
    middle = slice(stride // 2 - 1, stride // 2 + 1)
    patterns = torch.arange(16)[:, None] >> torch.arange(4) & 1
    masks[:, middle, middle] = patterns.reshape(16, 2, 2).to(torch.uint8)
    assert torch.equal(reduce_masks(masks, stride, (1, 1)).flatten(), patterns.sum(1) >= 2)


@settings(max_examples=40, deadline=None)
@given(
    stride=st.sampled_from([4, 8, 16]),
    height=st.integers(1, 64),
    width=st.integers(1, 64),
    count=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_mask_targets_of_any_size(stride, height, width, count, seed):
    """Masks of unpadded images: any height and width inside an input of multiples of 32."""
    size = tuple(-(-side // 32) * 32 // stride for side in (height, width))
    masks = noise(count, height, width, seed)
    reduced = reduce_masks(masks, stride, size)
    assert reduced.dtype == torch.bool
    assert reduced.shape == (count, *size)
    for mask, out in zip(masks.numpy(), reduced.numpy(), strict=True):
        np.testing.assert_array_equal(out, reduced_by_loops(mask, stride, size))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_mask_targets_are_those_of_cv2(stride):
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV, which mmdetection makes its mask targets with, is absent"
    )
    for seed, density in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        mask = noise(1, 96, 160, seed, density)
        size = (96 // stride, 160 // stride)
        resized = cv2.resize(mask[0].numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(reduce_masks(mask, stride, size)[0].numpy(), resized != 0)


@pytest.mark.parametrize(
    "shape", [(3, 40, 2049), (2, 600, 16), (1, 256, 2048), (2, 7, 5), (0, 4, 4), (2, 3, 8)]
)
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_pixels_are_counted_exactly(shape, density):
    """More than 255 words in a row or a column, widths that no word divides, any value and layout."""
    masks = noise(*shape, 0, density)
    store = torch.cat([masks.new_ones(1), masks.flatten()])
    layouts = (
        masks,
        masks * 255,
        masks.bool(),
        masks.float(),
        masks.mT.contiguous().mT,
        masks.flip(2).flip(2),
    )
    for same in (*layouts, store[1:].view(shape), store.bool()[1:].view(shape)):
        rows, columns = count_rows(same), count_columns(same)
        assert rows.dtype == columns.dtype == torch.int64
        assert torch.equal(rows, masks.long().sum(2))
        assert torch.equal(columns, masks.long().sum(1))


def test_no_masks_of_a_turned_image():
    """No masks are contiguous whatever their strides: those that rot90 leaves are no view of words."""
    none = torch.zeros(0, 24, 16, dtype=torch.bool).rot90(1, (1, 2))
    rows, columns = count_rows(none), count_columns(none)
    assert (rows.shape, columns.shape) == ((0, 16), (0, 24))


def random_scene(generator, size):
    """Ellipses, boxes and noise; boxes with broken edges, so that few centres meet a boundary."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    boxes, masks = [], []
    for _ in range(int(torch.randint(0, 7, (), generator=generator))):
        cy, cx, hh, hw, kind = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        cy, cx = cy * height, cx * width
        hh, hw = 2 + hh * hh * height / 2, 2 + hw * hw * width / 2
        inside = ((y - cy) / hh) ** 2 + ((x - cx) / hw) ** 2 < 1
        if kind < 0.3:
            inside = ((y - cy).abs() < hh) & ((x - cx).abs() < hw)
        elif kind < 0.5:
            inside &= torch.rand(height, width, generator=generator) < 0.4
        elif kind < 0.55:
            inside &= False
        masks.append(inside)
        boxes.append([cx - hw, cy - hh, cx + hw, cy + hh])
    count = len(masks)
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
        "labels": torch.randint(0, 5, (count,), generator=generator),
        "masks": torch.stack(masks).to(torch.uint8) if count else torch.zeros(0, *size, dtype=torch.uint8),
    }


def test_random_batches_against_loops():
    generator = torch.Generator().manual_seed(0)
    compared = overwritten = 0
    assert MASK_STRIDES == (4, 4, 8, 16, 16)
    for _ in range(40):
        sizes = [tuple(torch.randint(33, 160, (2,), generator=generator).tolist()) for _ in range(2)]
        input_size = tuple(-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
        grids = (12, 10, 7, 5, 3)
        targets = [random_scene(generator, size) for size in sizes]
        expected = assigned_by_loops(targets, input_size, grids, RANGES)
        if expected is None:
            continue
        compared += 1
        for level, found, side in zip(
            assign(targets, input_size, grids, RANGES), expected, grids, strict=True
        ):
            labels = torch.full((2, side, side), -1)
            for place, (label, _) in found.items():
                labels[place] = label
            assert torch.equal(level.labels, labels)
            places = sorted(found)
            assert level.cells.tolist() == [[image, row * side + column] for image, row, column in places]
            for mask, place in zip(level.masks.numpy(), places, strict=True):
                np.testing.assert_array_equal(mask, found[place][1])
            overwritten += len(places)
    assert compared >= 10  # most batches are far enough from every boundary
    assert overwritten > 500
