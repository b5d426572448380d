"""docs/method.md, "Targets", each step on a case made by hand; all at once: test_targets_random.py."""

import pytest
import torch
from small_solo import rectangles

from solo_attn.models.settings import ModelSettings
from solo_attn.models.targets import BACKGROUND, assign, find_objects

EIGHT = (8,) * 5  # with an input of 64 x 64 a cell is 8 x 8 pixels
EVERY_SIZE = ((0, 1e6),) * 5

SCALE_RANGES = ModelSettings().scale_ranges


def target(pixels, extents, labels=None, size=(64, 64)):
    """Objects whose masks are the given pixels (y, x) and whose boxes are as large as (height, width).

    Only a box's size counts, not where it lies, so mask and box are chosen apart from each other.
    """
    masks = torch.zeros(len(pixels), *size, dtype=torch.uint8)
    for mask, points in zip(masks, pixels, strict=True):
        for y, x in points:
            mask[y, x] = 1
    boxes = torch.tensor([[0.0, 0.0, width, height] for height, width in extents]).reshape(-1, 4)
    labels = range(len(pixels)) if labels is None else labels
    return {"boxes": boxes, "labels": torch.tensor(list(labels), dtype=torch.int64), "masks": masks}


def cells_of(targets, level=0, size=(64, 64), grids=EIGHT, ranges=EVERY_SIZE, image=0):
    """{(row, column): label} of a level."""
    labels = assign([targets] if isinstance(targets, dict) else targets, size, grids, ranges)[level].labels
    found = (labels[image] != BACKGROUND).nonzero().tolist()
    return {(row, column): int(labels[image, row, column]) for row, column in found}


def block(rows, columns, label=0):
    return {(row, column): label for row in rows for column in columns}


@pytest.mark.parametrize(
    ("side", "levels"),
    [
        (0.99, []),
        (1, [0]),
        (47.99, [0]),
        (48, [0, 1]),
        (95.99, [0, 1]),
        (96, [0, 1, 2]),
        (96.01, [1, 2]),
        (192, [1, 2, 3]),
        (192.01, [2, 3]),
        (384, [2, 3, 4]),
        (384.01, [3, 4]),
        (768, [3, 4]),
        (768.1, [4]),
        (2048, [4]),
        (2048.1, []),
    ],
)
@pytest.mark.parametrize("ratio", [1, 4])
def test_scale_ranges_include_both_ends(side, levels, ratio):
    """The size is the root of the box's area, for a long box too: 4 side x side / 4."""
    assert SCALE_RANGES == ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    found = assign([target([[(30, 30)]], [(ratio * side, side / ratio)])], (64, 64), EIGHT, SCALE_RANGES)
    assert [k for k, level in enumerate(found) if len(level.cells)] == levels


def test_masks_without_a_pixel_are_skipped():
    objects = target([[], [(20, 20)], []], [(10, 10)] * 3, labels=[4, 5, 6])
    assert cells_of(objects) == {(2, 2): 5}
    assert assign([objects], (64, 64), EIGHT, EVERY_SIZE)[0].masks.shape == (1, 16, 16)
    assert cells_of(target([[]], [(10, 10)])) == {}


def test_the_centre_is_the_centre_of_mass_in_pixel_indices():
    # Rows 7 and 8 in the ratio 1 : 3: 7.75 lies in cell 0; half a pixel more would be cell 1.
    column = [(7, 30), (8, 29), (8, 30), (8, 31)]
    assert find_objects(target([column], [(2, 2)])).centre.tolist() == [[7.75, 30.0]]
    assert cells_of(target([column], [(2, 2)])) == {(0, 3): 0}
    row = [(x, y) for y, x in column]
    assert cells_of(target([row], [(2, 2)])) == {(3, 0): 0}
    # The mask's and not the box's centre: a heavy lower right corner.
    heavy = [(1, 1)] + [(y, x) for y in range(50, 54) for x in range(57, 61)]
    assert cells_of(target([heavy], [(2, 2)])) == {(6, 6): 0}
    assert cells_of(target([heavy], [(2, 2)]), size=(64, 128)) == {(6, 3): 0}


def test_pixels_count_once_whatever_their_value():
    objects = target([[(4, 4), (4, 36)]], [(2, 2)])
    objects["masks"][0, 4, 36] = 255
    assert find_objects(objects).centre.tolist() == [[4.0, 20.0]]


@pytest.mark.parametrize(
    ("length", "side", "value", "cell"),
    [
        (64, 8, 0, 0),
        (64, 8, 7, 0),
        (64, 8, 9, 1),
        (64, 8, 63, 7),
        (96, 5, 19, 0),
        (96, 5, 20, 1),
        (96, 5, 95, 4),
    ],
)
def test_cells_are_truncated(length, side, value, cell):
    size = (length, 32)
    objects = target([[(value, 3)]], [(0.5, 0.5)], size=size)
    assert list(cells_of(objects, size=size, grids=(side,) * 5)) == [(cell, int(3 / (32 / side)))]


@pytest.mark.parametrize(
    ("centre", "extent", "rows", "columns"),
    [
        ((12, 12), (30, 30), [1], [1]),  # 12 +- 3 stays in the cell 8..16
        ((12, 12), (50, 30), [0, 1, 2], [1]),  # 12 +- 5 leaves it: half sizes are 0.1 of height and width
        ((12, 12), (30, 50), [1], [0, 1, 2]),
        ((12, 12), (39, 41), [1], [0, 1, 2]),  # 3.9 and 4.1
        ((9, 12), (20, 20), [0, 1], [1]),  # 7..11
        ((15, 12), (20, 20), [1, 2], [1]),  # 13..17
        ((36, 36), (400, 400), [3, 4, 5], [3, 4, 5]),  # 36 +- 40 is 9 cells, 3 stay
        ((36, 36), (0.5, 400), [4], [3, 4, 5]),
        ((36, 36), (1e-4, 1e-4), [4], [4]),  # never empty
    ],
)
def test_the_centre_region(centre, extent, rows, columns):
    assert cells_of(target([[centre]], [extent])) == block(rows, columns)


@pytest.mark.parametrize(
    ("centre", "extent", "rows", "columns"),
    [
        ((3, 3), (100, 100), [0, 1], [0, 1]),  # -7..13: trunc(-0.9) is 0
        ((3, 3), (300, 300), [0, 1], [0, 1]),  # -27: below 0, clipped
        ((60, 36), (100, 100), [6, 7], [3, 4, 5]),  # 50..70
        ((36, 60), (300, 300), [3, 4, 5], [6, 7]),
        ((63, 63), (10, 10), [7], [7]),  # 64 is beyond the last cell
        ((0, 63), (10, 10), [0], [7]),
    ],
)
def test_the_centre_region_is_clipped_at_the_border(centre, extent, rows, columns):
    assert cells_of(target([[centre]], [extent])) == block(rows, columns)


def test_grids_divide_the_padded_input():
    """An object at the right end of a narrow image is not at the right end of the batch's input."""
    objects = target([[(21, 43)]], [(2, 2)], size=(30, 45))
    assert cells_of(objects, size=(64, 64)) == {(2, 5): 0}
    assert cells_of(objects, size=(32, 64)) == {(5, 5): 0}
    assert cells_of(objects, size=(64, 96)) == {(2, 3): 0}


def test_a_later_object_overwrites_an_earlier_one():
    objects = rectangles([(16, 16, 48, 48), (16, 16, 36, 36)], [2, 1], (64, 64))
    # Centres 31.5 (+- 3.2) and 25.5 (+- 2): cells 3..4 and 2..3 of each axis meet in (3, 3).
    assert cells_of(objects) == {**block([3, 4], [3, 4], 2), **block([2, 3], [2, 3], 1)} | {(3, 3): 1}
    level = assign([objects], (64, 64), EIGHT, EVERY_SIZE)[0]
    large, small = torch.zeros(2, 16, 16, dtype=torch.bool)
    large[4:12, 4:12] = small[4:9, 4:9] = True
    for (_, cell), mask in zip(level.cells.tolist(), level.masks, strict=True):
        later = cell in (18, 19, 26, 27)
        assert torch.equal(mask, small if later else large), cell
    # The other way round the large one wins.
    swapped = {key: value.flip(0) for key, value in objects.items()}
    assert cells_of(swapped)[3, 3] == 2


def test_an_object_that_overwrites_may_be_of_the_same_class():
    objects = rectangles([(16, 16, 32, 32), (20, 20, 28, 28)], [1, 1], (64, 64))
    level = assign([objects], (64, 64), EIGHT, EVERY_SIZE)[0]
    mask = level.masks[level.cells[:, 1].tolist().index(2 * 8 + 2)]
    assert mask.sum() == 4  # 8 x 8 pixels at stride 4


def test_only_objects_of_the_level_overwrite():
    ranges = ((1, 16), (17, 64), (0, 0), (0, 0), (0, 0))
    objects = rectangles([(16, 16, 31, 31), (8, 8, 40, 40)], [1, 2], (64, 64))
    assert set(cells_of(objects, 0, ranges=ranges).values()) == {1}
    assert set(cells_of(objects, 1, ranges=ranges).values()) == {2}
    assert cells_of(objects, 2, ranges=ranges) == {}


def test_images_of_a_batch_do_not_touch_each_other():
    first = target([[(20, 20)]], [(2, 2)], labels=[5], size=(40, 64))
    nothing = target([], [], size=(64, 50))
    second = target([[(20, 20)], [(60, 4)]], [(2, 2), (2, 2)], labels=[6, 0], size=(64, 64))
    levels = assign([first, nothing, second], (64, 64), EIGHT, EVERY_SIZE)
    for level, pixels in zip(levels, (16, 16, 8, 4, 4), strict=True):
        assert level.labels.shape == (3, 8, 8)
        assert level.labels.dtype == level.cells.dtype == torch.int64
        assert level.masks.dtype == torch.bool
        assert level.cells.tolist() == [[0, 18], [2, 18], [2, 56]]
        assert level.masks.shape == (3, pixels, pixels)
        assert (level.labels != BACKGROUND).sum() == 3
        assert level.labels[0, 2, 2] == 5
        assert level.labels[2, 2, 2] == 6
        assert level.labels[2, 7, 0] == 0  # class 0 is a class


def test_a_batch_without_objects():
    levels = assign([target([], []), target([[]], [(9, 9)])], (64, 96), (5, 4, 3, 2, 1), EVERY_SIZE)
    sizes = [(16, 24), (16, 24), (8, 12), (4, 6), (4, 6)]
    for level, side, size in zip(levels, (5, 4, 3, 2, 1), sizes, strict=True):
        assert torch.equal(level.labels, torch.full((2, side, side), BACKGROUND))
        assert level.cells.shape == (0, 2)
        assert level.masks.shape == (0, *size)


def test_cells_that_several_objects_share():
    """SOLOv2: the label is the later object's, and the masks of both are learned."""
    objects = rectangles([(16, 16, 40, 40), (20, 20, 44, 44)], [1, 2], (64, 64))
    (once, *_), (shared, *_) = (
        assign([objects], (64, 64), EIGHT, EVERY_SIZE, (4,) * 5, shared_cells=flag) for flag in (False, True)
    )
    assert torch.equal(shared.labels, once.labels)
    assert shared.positives == once.positives == len(once.cells) == int((once.labels != BACKGROUND).sum())
    assert shared.collisions == len(shared.cells) - len(once.cells) > 0
    assert len(shared.cells.unique(dim=0)) == len(once.cells)
    assert shared.masks.shape[1:] == (16, 16)
    # The earlier object's pairs come first, each with its own mask.
    first = shared.masks[0]
    assert torch.equal(first, torch.nn.functional.max_pool2d(objects["masks"][:1].float(), 4)[0].bool())
    assert torch.equal(shared.masks[-1], once.masks[-1])
