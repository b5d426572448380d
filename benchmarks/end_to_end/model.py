"""The model that `run.py` times, its images and objects, and the contenders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_attn.models import SOLO, build_solo
from solo_attn.models.candidates import find_candidates, points_nms
from solo_attn.models.inference import boxes_of

from .dense_solo import Compiler, DenseSOLO

NUM_CLASSES = 5


@dataclass(frozen=True)
class Setting:
    """The settings of a race.

    Attributes:
        size: (height, width) of images and results, multiples of 32.
        candidates: (cell, class) pairs of an image, on average, whose score reaches the masks.
        objects: of an image in training.
        model: `build_solo`'s settings.
    """

    size: tuple[int, int]
    candidates: int
    objects: int
    model: dict[str, Any]


PAPER = Setting((672, 1344), 200, 12, {"backbone": "resnet50", "norm": "gn"})
TINY = Setting(
    (64, 96),
    40,
    4,
    {
        "backbone": "resnet18",
        "norm": "gn",
        "fpn_channels": 32,
        "head_channels": 32,
        "num_convs": 1,
        "num_grids": (9, 8, 6, 4, 3),
        "scale_ranges": ((1, 8), (4, 12), (8, 20), (14, 28), (22, 64)),
    },
)


def images_of(setting: Setting, batch: int, device: str) -> list[Tensor]:
    """Smooth noise, from a seed with which every level has candidates."""
    height, width = setting.size
    coarse = torch.rand(batch, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(1))
    return [image.to(device) for image in F.interpolate(coarse, setting.size, mode="bilinear")]


def targets_of(setting: Setting, batch: int, device: str) -> list[dict[str, Tensor]]:
    """Ellipses in each image, from small ones to four fifths of its height, for every level."""
    height, width = setting.size
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    found = []
    for image in range(batch):
        masks = []
        for k in range(setting.objects):
            tall = 0.8 * height * 18.0 ** (k / (setting.objects - 1) - 1)
            wide = tall * (0.8, 1.3, 1.0)[k % 3]
            bottom, right = (
                tall + (97 * k + 31 * image) % (height - tall),
                wide + (211 * k) % (width - wide),
            )
            masks.append(
                ((y - bottom + tall / 2) / tall).square() + ((x - right + wide / 2) / wide).square() <= 0.25
            )
        stacked = torch.stack(masks).to(device)
        labels = torch.arange(setting.objects, device=device) % NUM_CLASSES
        found.append({"boxes": boxes_of(stacked), "labels": labels, "masks": stacked})
    return found


def model_of(setting: Setting, device: str) -> SOLO:
    """Random weights that draw masks neither empty nor full, and category scores that differ."""
    torch.manual_seed(0)
    model = build_solo(NUM_CLASSES, min_size=setting.size[0], max_size=setting.size[1], **setting.model)
    with torch.no_grad():
        model.head.category_output.weight.mul_(5)
        for output in model.head.mask_outputs:
            output.weight.mul_(20 * (256 / output.in_channels) ** 0.5)
            output.bias.fill_(-4.0)
    return model.to(device)


@torch.no_grad()
def set_candidates(model: SOLO, images: list[Tensor], count: int) -> None:
    """Shift the category scores so that ``count`` of an image, on average, are above the threshold."""
    bias = model.head.category_output.bias
    bias -= bias[0].clone()
    logits = model.features(model.transform(images)[0].tensors).category_logits
    found = torch.cat([points_nms(x.double().sigmoid()).flatten() for x in logits])
    last = len(images) * count
    around = found.topk(last + 1).values[-2:].logit().mean()
    threshold = model.settings.score_threshold
    bias += math.log(threshold / (1 - threshold)) - float(around)


@torch.no_grad()
def candidates_of(model: SOLO, images: list[Tensor]) -> list[int]:
    """The number of candidates on each level."""
    logits = model.features(model.transform(images)[0].tensors).category_logits
    scores = [points_nms(x.float().sigmoid()) for x in logits]
    return [len(find_candidates(x, model.settings.score_threshold)[0].score) for x in scores]


def with_compiled_parts(model: SOLO, compiler: Compiler) -> SOLO:
    """A model with the same weights, in which the parts without data-dependent shapes are compiled."""
    head, twin = copy.copy(model.head), copy.copy(model)
    head.mask_features = compiler(head.mask_features)  # type: ignore[method-assign]
    twin._modules = {**model._modules, "head": head}
    twin.features = compiler(twin.features)  # type: ignore[method-assign]
    return twin


def contenders(model: SOLO, what: str, compiler: Compiler | None) -> dict[str, Callable[..., Any]]:
    """Functions of images (and targets): losses in training, instances in inference."""
    model.train(what == "training")
    name = "losses" if what == "training" else "instances"
    found: dict[str, Callable[..., Any]] = {"fast": model, "dense": getattr(DenseSOLO(model), name)}
    if compiler is not None:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64  # a size for each level and number of images
        found["fast, compiled"] = with_compiled_parts(model, compiler)
        found["dense, compiled"] = getattr(DenseSOLO(model, compiler), name)
    return found
