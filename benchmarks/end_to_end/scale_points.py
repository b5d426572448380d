"""What `scale.py` measures: along each axis, what runs at one size, with inputs made for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solo_attn import ops
from solo_attn.bench import inputs, plain

from .model import TINY, Setting, contenders, images_of, model_of, set_candidates, targets_of

Run = Callable[[], Any]
OURS, PLAIN, MMDET, DENSE = "solo-attn", "PyTorch", "mmdetection", "dense"
MASK_SIZE, LEVEL, SIDE = (200, 336), (84, 168), 40
MODEL = Setting(
    (512, 512),
    200,
    12,
    {"backbone": "resnet18", "norm": "gn", "fpn_channels": 64, "head_channels": 64, "num_convs": 1},
)
SMALL = Setting((64, 64), 20, 4, TINY.model)


@dataclass(frozen=True)
class Axis:
    """One quantity that grows.

    Attributes:
        what: what is timed, in words.
        unit: what is counted.
        sizes: ascending; a contender that ran out at one is not run at the next.
        tiny: sizes of a dry run.
        makers: contender -> a function of the size, and of whether this is a dry run, that makes its run.
    """

    what: str
    unit: str
    sizes: tuple[int, ...]
    tiny: tuple[int, ...]
    makers: Mapping[str, Callable[[int, bool], Run]]


def boxes(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Random rectangles as masks bool [count, *size], labels of 80 classes, scores."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    first = torch.rand(count, 2, generator=generator) * 0.8
    last = first + 0.05 + 0.15 * torch.rand(count, 2, generator=generator)
    for mask, begin, end in zip(masks, first.tolist(), last.tolist(), strict=True):
        rows, columns = (slice(int(begin[k] * size[k]), int(end[k] * size[k]) + 1) for k in (0, 1))
        mask[rows, columns] = True
    labels = torch.randint(80, (count,), generator=generator)
    return masks, labels, torch.rand(count, generator=generator)


def nms(contender: str, count: int, tiny: bool) -> Run:
    masks, labels, scores = boxes(count, (20, 30) if tiny else MASK_SIZE)
    if contender == OURS:
        return lambda: ops.matrix_nms(masks, labels, scores)
    if contender == PLAIN:
        return lambda: plain.matrix_nms(masks, labels, scores)
    from ..peers.loading import peer

    theirs = peer("mmdet.models.layers").mask_matrix_nms
    return lambda: theirs(masks, labels, scores)


def bits(contender: str, count: int, tiny: bool) -> Run:
    level = (9, 14) if tiny else LEVEL
    some = inputs.cell_logits(min(count, 100), level, SIDE)
    coarse, attention = (x.repeat(-(-count // len(x)), 1, 1)[:count] for x in some)
    size = (2 * level[0], 2 * level[1])
    function = ops.mask_bits if contender == OURS else plain.mask_bits
    return lambda: function(coarse, attention, size, size)


def predictions(contender: str, setting: Setting) -> Run:
    model = model_of(setting, "cpu").eval()
    images = images_of(setting, 1, "cpu")
    set_candidates(model, images, setting.candidates)
    run = contenders(model, "inference", None)["fast" if contender == OURS else contender]
    return torch.no_grad()(functools.partial(run, images))


def by_size(contender: str, side: int, tiny: bool) -> Run:
    base = SMALL if tiny else MODEL
    return predictions(contender, Setting((side, side), base.candidates, base.objects, base.model))


def by_candidates(contender: str, count: int, tiny: bool) -> Run:
    base = SMALL if tiny else MODEL
    return predictions(contender, Setting(base.size, count, base.objects, base.model))


def training(contender: str, setting: Setting, batch: int) -> Run:
    model = model_of(setting, "cpu")
    images, targets = images_of(setting, batch, "cpu"), targets_of(setting, batch, "cpu")
    run = contenders(model, "training", None)["fast" if contender == OURS else contender]

    def step() -> None:
        model.zero_grad()
        sum(run(images, targets).values()).backward()

    return step


def by_batch(contender: str, batch: int, tiny: bool) -> Run:
    return training(contender, SMALL if tiny else MODEL, batch)


def by_objects(contender: str, count: int, tiny: bool) -> Run:
    base = SMALL if tiny else MODEL
    return training(contender, Setting(base.size, base.candidates, count, base.model), 1)


def makers(
    make: Callable[[str, int, bool], Run], names: tuple[str, ...]
) -> dict[str, Callable[[int, bool], Run]]:
    return {name: functools.partial(make, name) for name in names}


N = (100, 300, 1000, 3000, 10_000, 20_000)
BOTH = (OURS, DENSE)
AXES = {
    "matrix_nms": Axis("Matrix NMS, masks 200 x 336", "masks", N, (5, 10), makers(nms, (OURS, MMDET, PLAIN))),
    "mask_bits": Axis("mask_bits, 84 x 168 to 168 x 336", "masks", N, (5, 10), makers(bits, (OURS, PLAIN))),
    "image": Axis(
        "prediction, a square image",
        "pixels of a side",
        (256, 512, 1024, 2048, 4096),
        (64, 96),
        makers(by_size, BOTH),
    ),
    "batch": Axis("training step, 512 x 512", "images", (1, 2, 4, 8), (1, 2), makers(by_batch, BOTH)),
    "candidates": Axis(
        "prediction, 512 x 512", "candidates", (50, 200, 800, 3200), (5, 10), makers(by_candidates, BOTH)
    ),
    "objects": Axis(
        "training step, 512 x 512", "objects", (4, 16, 64, 256), (2, 4), makers(by_objects, BOTH)
    ),
}
