from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from solo_attn.training.datamodule import PositionSampler, SeededDataset


@pytest.mark.parametrize(
    ("length", "batch_size", "world_size"), [(10, 3, 1), (10, 2, 3), (1, 4, 2), (7, 7, 1)]
)
def test_every_image_comes_in_every_epoch(length: int, batch_size: int, world_size: int) -> None:
    samplers = [PositionSampler(length, batch_size, 5, rank, world_size) for rank in range(world_size)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.batches_done = epoch * sampler.batches_per_epoch
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {samplers[0].batches_per_epoch * batch_size}
        assert {position for share in shares for position in share} == {(epoch, i) for i in range(length)}


def test_ranks_see_together_what_one_process_sees() -> None:
    together = list(PositionSampler(16, 4, seed=1))
    ranks = [list(PositionSampler(16, 2, 1, rank, 2)) for rank in range(2)]
    for step in range(4):
        both = ranks[0][2 * step : 2 * step + 2] + ranks[1][2 * step : 2 * step + 2]
        assert sorted(both) == sorted(together[4 * step : 4 * step + 4])


def test_goes_on_in_the_middle_of_an_epoch() -> None:
    whole, later = PositionSampler(10, 3, seed=2), PositionSampler(10, 3, seed=2)
    whole.batches_done, later.batches_done = 4, 6
    assert list(later) == list(whole)[6:]
    assert len(later) == len(whole) == 12


def test_images_are_drawn_by_their_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0])
    sampler = PositionSampler(3, 1, seed=0, weights=weights)
    drawn = []
    for epoch in range(400):
        sampler.batches_done = 3 * epoch
        drawn += [index for _, index in sampler]
    counts = torch.tensor(drawn).bincount(minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts.sum() == pytest.approx(0.75, abs=0.04)


def test_epochs_and_seeds_differ() -> None:
    first, second, other = (PositionSampler(50, 5, seed) for seed in (0, 0, 1))
    second.batches_done = 10
    orders = [[index for _, index in sampler] for sampler in (first, second, other)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


class Noise(Dataset[tuple[float, float]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[float, float]:
        return torch.rand(()).item(), random.random()


@pytest.mark.parametrize("workers", [0, 2])
def test_variations_depend_on_the_position_only(workers: int) -> None:
    sampler = PositionSampler(8, 2, seed=3)
    positions = list(sampler)
    loader = DataLoader(SeededDataset(Noise(), 3), 2, sampler=sampler, num_workers=workers, collate_fn=list)
    before = torch.get_rng_state(), random.getstate()
    found = [sample for batch in loader for sample in batch]
    # The loader itself draws a seed; the samples must leave no trace.
    if workers == 0:
        assert random.getstate() == before[1]
    assert found == [SeededDataset(Noise(), 3)[position] for position in positions]
    assert len(set(found)) == 8
    sampler.batches_done = 4
    assert not set(found) & {SeededDataset(Noise(), 3)[position] for position in sampler}
