"""Counted cells, against the dense assignment of training; and what the search may do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from solo_attn.inspection import GridSetting, count_cells, grids, propose
from solo_attn.inspection import proposal as proposal_file
from solo_attn.inspection.grids import input_sizes
from solo_attn.inspection.objects import ObjectTable
from solo_attn.models import ModelSettings
from solo_attn.models.solo import SIZE_DIVISIBLE
from solo_attn.models.targets import assign

RANGES = ((1, 16), (10, 32), (16, 64), (48, 128), (96, 2048))
SETTING = GridSetting((8, 6, 5, 4, 3), RANGES, 64, 96)


def blocks(seed: int, images: int = 4, most: int = 14) -> list[torch.Tensor]:
    """Masks bool [N, H, W] of random rectangles, for images of several sizes with sides of 32 and more."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        height, width = (int(rng.choice([64, 96])) for _ in range(2))
        masks = torch.zeros(int(rng.integers(0, most)), height, width, dtype=torch.bool)
        for mask in masks:
            h, w = rng.integers(1, 40, 2)
            top, left = rng.integers(0, height - 1), rng.integers(0, width - 1)
            mask[top : top + h, left : left + w] = True
        found.append(masks)
    return found


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    corners = []
    for mask in masks:
        ys, xs = mask.nonzero(as_tuple=True)
        corners.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def table_of(images: list[torch.Tensor]) -> ObjectTable:
    rows = []
    for number, masks in enumerate(images):
        for mask, box in zip(masks, boxes_of(masks).tolist(), strict=True):
            ys, xs = mask.double().nonzero(as_tuple=True)
            centre = (ys.double().mean().item(), xs.double().mean().item())
            rows.append((number, 0, int(mask.sum()), *centre, box[3] - box[1], box[2] - box[0]))
    array = np.array(rows, dtype=np.float64).reshape(-1, 7)
    image, label, area = array[:, :3].astype(np.int64).T
    sizes = np.array([masks.shape[1:] for masks in images], dtype=np.int64)
    return ObjectTable(sizes, image, label, area, array[:, 3:5], array[:, 5:])


def dense(images: list[torch.Tensor], setting: GridSetting) -> list[tuple[int, int]]:
    """(objects with a cell, cells) of each level, from `assign`: each object has a label of its own."""
    totals = [[0, 0] for _ in setting.num_grids]
    for masks in images:
        target = {"masks": masks, "boxes": boxes_of(masks), "labels": torch.arange(len(masks))}
        size = tuple(-(-side // 32) * 32 for side in masks.shape[1:])
        levels = assign([target], size, setting.num_grids, setting.scale_ranges)
        for total, level in zip(totals, levels, strict=True):
            labels = level.labels[level.labels >= 0]
            total[0] += len(labels.unique())
            total[1] += len(labels)
    return [tuple(total) for total in totals]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_cells_are_those_of_training(seed: int) -> None:
    images = blocks(seed)
    table = table_of(images)
    for size, masks in zip(table.sizes, images, strict=True):
        assert tuple(size) == masks.shape[1:]
    # Images keep their size: min_size and max_size leave their sides of 64 and 96 alone, one size at a time.
    for side in {tuple(size) for size in table.sizes.tolist()}:
        chosen = [masks for masks in images if tuple(masks.shape[1:]) == side]
        setting = replace(SETTING, min_size=min(side), max_size=max(side))
        count = count_cells(table_of(chosen), setting)
        assert [(n.objects - n.no_cell, n.cells) for n in count.levels] == dense(chosen, setting)


def test_resized_images_nearly_so() -> None:
    """Scaling centres instead of masks moves few objects."""
    images = [masks for seed in range(40) for masks in blocks(seed)]
    setting = GridSetting((16, 12, 8, 6, 4), RANGES, 100, 160)
    transform = GeneralizedRCNNTransform(100, 160, [0.0] * 3, [1.0] * 3, size_divisible=32)
    resized = []
    for masks in images:
        image = torch.zeros(3, *masks.shape[1:])
        target = {"boxes": boxes_of(masks), "labels": torch.arange(len(masks)), "masks": masks.byte()}
        batch, targets = transform([image], [target])
        padded = torch.zeros(len(masks), *batch.tensors.shape[-2:], dtype=torch.bool)
        found = targets[0]["masks"].bool()
        padded[:, : found.shape[1], : found.shape[2]] = found
        resized.append(padded)
    expected = dense(resized, setting)
    count = count_cells(table_of(images), setting)
    for level, (objects, cells) in zip(count.levels, expected, strict=True):
        assert abs(level.objects - level.no_cell - objects) <= 0.03 * count.objects
        assert abs(level.cells - cells) <= max(3, 0.05 * cells)


@given(st.integers(20, 2000), st.integers(20, 2000), st.integers(20, 900), st.integers(0, 900))
@settings(max_examples=40, deadline=None)
def test_input_sizes_are_torchvisions(height: int, width: int, low: int, more: int) -> None:
    if max(height, width) > 8 * min(height, width):
        return
    transform = GeneralizedRCNNTransform(low, low + more, [0.0] * 3, [1.0] * 3, size_divisible=32)
    batch, _ = transform([torch.zeros(3, height, width)])
    resized, padded = input_sizes([(height, width)], low, low + more)
    assert tuple(resized[0]) == batch.image_sizes[0]
    assert tuple(padded[0]) == batch.tensors.shape[-2:]


def placed(*objects: tuple[float, float, float], size: int = 256) -> ObjectTable:
    """Squares (y, x, side) in one image."""
    array = np.array(objects, dtype=np.float64).reshape(-1, 3)
    zeros = np.zeros(len(array), dtype=np.int64)
    area = (array[:, 2] ** 2).astype(np.int64)
    extent = np.repeat(array[:, 2:], 2, axis=1)
    return ObjectTable(np.array([[size, size]]), zeros, zeros, area, array[:, :2], extent)


ONE = GridSetting((8, 1, 1, 1, 1), ((10, 20), (500, 501), (502, 503), (504, 505), (506, 507)), 256, 256)


def test_each_kind_of_loss() -> None:
    # Cells are 32 pixels wide; regions a fifth of a box. The second square's centre lies in the first's cell.
    count = count_cells(placed((16, 16, 12), (20, 20, 12)), ONE)
    level = count.levels[0]
    assert (level.objects, level.centre_taken, level.no_cell, level.cells) == (2, 1, 1, 1)
    assert (count.no_level, count.no_cell, count.centre_taken, count.collisions) == (0, 1, 0, 1)
    # The first reaches into the cell on the right, which stays its own: only its centre's is taken.
    count = count_cells(placed((16, 31.5, 12), (16, 20, 12)), ONE)
    assert (count.no_cell, count.centre_taken, count.collisions, count.levels[0].cells) == (0, 1, 1, 2)
    # Out of all ranges; and smaller than eight pixels.
    count = count_cells(placed((16, 16, 30), (100, 100, 4)), ONE)
    assert (count.objects, count.no_level, count.collisions, count.too_small) == (2, 2, 2, 1)
    # A later level may have a place for what an earlier one lost.
    two = replace(ONE, num_grids=(8, 64, 1, 1, 1), scale_ranges=((10, 20), (5, 30), *ONE.scale_ranges[2:]))
    count = count_cells(placed((16, 16, 12), (20, 22, 12)), two)
    assert (count.levels[0].no_cell, count.collisions, count.cells) == (1, 0, 64 + 4096 + 3)


def test_images_do_not_collide() -> None:
    table = placed((16, 16, 12), (20, 20, 12))
    table = replace(table, sizes=np.array([[256, 256]] * 2), image=np.array([0, 1]))
    assert count_cells(table, ONE).collisions == 0


def crowd(spacing: float, side: float, size: int = 512) -> ObjectTable:
    places = np.arange(spacing, size - spacing, spacing)
    return placed(*((y, x, side) for y in places for x in places), size=size)


def test_a_crowd_gets_a_finer_grid() -> None:
    setting = GridSetting((20, 16, 12, 10, 8), ModelSettings().scale_ranges, 512, 512)
    table = crowd(16, 12)
    before = count_cells(table, setting)
    assert before.collisions > 0.2 * before.objects
    proposal = propose(table, setting)
    after = count_cells(table, proposal)
    assert after.collisions < 0.1 * before.collisions
    assert setting.cells < proposal.cells <= proposal_file.BUDGET * setting.cells
    assert (proposal.min_size, proposal.max_size) == (512, 512)  # large enough as they are
    assert all(new >= old for new, old in zip(proposal.num_grids, setting.num_grids, strict=True))


def test_small_objects_get_a_larger_input() -> None:
    setting = GridSetting((20, 16, 12, 10, 8), RANGES, 512, 600)
    table = crowd(64, 6)
    proposal = propose(table, setting)
    assert (proposal.min_size, proposal.max_size) == (768, 900)  # 6 x 1.25 are below 8, 6 x 1.5 above
    assert count_cells(table, setting).too_small == len(table.area)
    assert count_cells(table, proposal).too_small == 0
    kept = propose(table, setting, keep_size=True)
    assert (kept.min_size, kept.max_size) == (512, 600)
    assert propose(crowd(64, 2), setting).min_size == 1024  # the largest that is tried


def test_nothing_to_mend() -> None:
    setting = GridSetting((8, 8, 8, 8, 8), ModelSettings().scale_ranges, 512, 512)
    assert propose(placed((100, 100, 40), size=512), setting) == setting
    with pytest.raises(ValueError, match="expected at least one object"):
        propose(placed(), setting)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_never_worse(seed: int) -> None:
    table = table_of([*blocks(seed, 6, 30), torch.ones(1, 64, 64, dtype=torch.bool)])
    proposal = propose(table, SETTING, keep_size=True)
    assert count_cells(table, proposal).collisions <= count_cells(table, SETTING).collisions
    assert proposal.cells <= proposal_file.BUDGET * SETTING.cells
    assert all(low <= high for low, high in proposal.scale_ranges)
    if proposal.scale_ranges != SETTING.scale_ranges:
        meeting = zip(proposal.scale_ranges, proposal.scale_ranges[1:], strict=False)
        for (_, high), (low, _) in meeting:
            assert 1 <= low < high
            assert high / max(low, 1) >= 1.8
        # 8 pixels of the coarser level's mask where two levels meet, by sqrt(2) less where they overlap.
        for k, stride in ((2, 8), (3, 16)):
            assert proposal.scale_ranges[k][0] >= math.floor(8 * stride / proposal_file.OVERLAP)


@pytest.fixture
def assigned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(cells, cells of one image) of each call of `owners` from now on."""
    calls, really = [], grids.owners

    def seen(*arguments: Any, images: int, **options: Any) -> torch.Tensor:
        calls.append((images * arguments[3] ** 2, arguments[3] ** 2))
        return really(*arguments, images=images, **options)

    monkeypatch.setattr(grids, "owners", seen)
    return calls


@pytest.mark.parametrize("cells", [1, 64, 100, 300])
@pytest.mark.parametrize("seed", range(4))
def test_images_in_parts_count_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch, assigned: list[tuple[int, int]], cells: int, seed: int
) -> None:
    table = table_of([torch.zeros(0, 64, 64), *blocks(seed, 9, 20), torch.ones(1, 64, 64, dtype=torch.bool)])
    monkeypatch.setattr(grids, "CELLS_AT_ONCE", 10**9)
    whole = count_cells(table, SETTING), propose(table, SETTING)
    assert all(several == 11 * one for several, one in assigned)
    assigned.clear()
    monkeypatch.setattr(grids, "CELLS_AT_ONCE", cells)
    assert (count_cells(table, SETTING), propose(table, SETTING)) == whole
    assert all(several <= max(cells, one) for several, one in assigned)


def test_memory_does_not_grow_with_the_images(assigned: list[tuple[int, int]]) -> None:
    table = placed(*((16.0, 16.0, 12.0),) * 3000)
    table = replace(table, sizes=np.full((3000, 2), 256), image=np.arange(3000))
    assert count_cells(table, replace(ONE, num_grids=(73, 1, 1, 1, 1))).levels[0].cells == 3000
    assert max(assigned)[0] <= 2**20  # of eight bytes each; all of them are 16 million


def test_the_input_is_padded_to_what_the_model_says() -> None:
    assert grids.SIZE_DIVISIBLE == SIZE_DIVISIBLE
    assert "SIZE_DIVISIBLE =" not in Path(grids.__file__).read_text()
