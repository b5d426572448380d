from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from torch import Tensor
from torch.utils.data import Dataset

from solo_attn.data import CopyPaste, paste_objects
from solo_attn.training.datamodule import SeededDataset

Sample = tuple[Tensor, dict[str, Tensor]]


def boxed(value: float, *boxes: tuple[int, int, int, int], size: tuple[int, int] = (8, 10)) -> Sample:
    """An image of one grey with filled boxes (x1, y1, x2, y2) as objects, labelled 0, 1, ..."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "masks": masks,
        "image_id": torch.tensor(round(100 * value)),
    }
    return torch.full((3, *size), value), target


def pasted(below: Sample, above: Sample, *chosen: bool) -> Sample:
    return paste_objects(*below, *above, torch.tensor(chosen, dtype=torch.bool))


def test_objects_lie_over_those_that_were_there() -> None:
    below = boxed(0.1, (0, 0, 4, 4), (5, 5, 7, 7), (8, 0, 10, 2))
    before = [x.clone() for x in (below[0], below[1]["masks"])]
    # Cuts the first, covers the second, leaves the third; and one that is not chosen.
    image, target = pasted(below, boxed(0.9, (2, 0, 6, 4), (4, 4, 8, 8), (0, 4, 2, 8)), True, True, False)
    assert target["labels"].tolist() == [0, 2, 0, 1]
    assert target["boxes"].tolist() == [[0, 0, 2, 4], [8, 0, 10, 2], [2, 0, 6, 4], [4, 4, 8, 8]]
    assert target["image_id"] == 10
    assert (target["masks"].sum(0) <= 1).all(), "a pixel belongs to one object"
    assert torch.equal(image == 0.9, target["masks"][2:].amax(0).bool().expand(3, -1, -1))
    assert (image[:, target["masks"][2:].amax(0) == 0] == 0.1).all()
    assert type(target["boxes"]) is type(target["masks"]) is type(image) is Tensor
    assert all(torch.equal(x, y) for x, y in zip(before, (below[0], below[1]["masks"]), strict=True))


@pytest.mark.parametrize("size", [(8, 10), (4, 20), (20, 4), (3, 3)])
def test_images_of_other_sizes(size: tuple[int, int]) -> None:
    image, target = pasted(boxed(0.1), boxed(0.9, (1, 1, 3, 3), (2, 2, 4, 4), size=size), True, False)
    assert image.shape == (3, 8, 10)
    assert target["boxes"].tolist() == [[1, 1, 3, 3]]
    assert (image == 0.9).sum() == 3 * 4


def test_what_lies_beyond_the_image_is_dropped() -> None:
    _, target = pasted(boxed(0.1, (0, 0, 1, 1)), boxed(0.9, (12, 0, 20, 8), size=(8, 20)), True)
    assert target["labels"].tolist() == [0]


def test_nothing_chosen_or_nothing_there() -> None:
    below = boxed(0.1, (0, 0, 4, 4))
    for above, chosen in ((boxed(0.9), ()), (boxed(0.9, (0, 0, 9, 8)), (False,))):
        image, target = pasted(below, above, *chosen)
        assert torch.equal(image, below[0])
        assert torch.equal(target["masks"], below[1]["masks"])
    assert pasted(boxed(0.1), boxed(0.9), *())[1]["boxes"].shape == (0, 4)


class Varied(Dataset[Any]):
    """Samples of which a random number is a part, as of every training image."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        image, target = boxed(index / 10, (index, 0, index + 2, 2), (index, 4, index + 2, 8))
        return image + torch.rand(()) / 100, target


def test_the_same_position_gives_the_same_sample() -> None:
    dataset = SeededDataset(CopyPaste(Varied(), 0.5), seed=3)
    first = [dataset[(epoch, index)] for epoch in range(3) for index in range(8)]
    random.seed(1)
    torch.rand(5)
    second = [dataset[(epoch, index)] for epoch in range(3) for index in range(8)]
    for (image, target), (image2, target2) in zip(first, second, strict=True):
        assert torch.equal(image, image2)
        assert target.keys() == target2.keys()
        assert all(torch.equal(value, target2[name]) for name, value in target.items())
    counts = [len(target["labels"]) for _, target in first]
    assert 2 in counts
    assert max(counts) > 2


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.25, 10, 50), (1.0, 60, 120)])
def test_probability(probability: float, low: int, high: int) -> None:
    torch.manual_seed(0)
    dataset = CopyPaste(Varied(), probability)
    more = sum(len(dataset[k % 8][1]["labels"]) > 2 for k in range(120))
    assert low <= more <= high


def test_every_image_gives_its_objects() -> None:
    torch.manual_seed(0)
    dataset = CopyPaste(Varied(), 1.0)
    seen = {int(value) for _ in range(60) for value in (10 * dataset[0][0] + 1e-4).floor().unique()}
    assert seen == set(range(8))
