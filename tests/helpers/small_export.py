"""Models of every head that trace in a second: a backbone of one convolution a level, small grids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo_attn.models import SOLO, ModelSettings
from solo_attn.models.heads import build_head

CHANNELS = 32
SIZES: dict[str, Any] = {
    "fpn_channels": CHANNELS,
    "head_channels": 32,
    "kernel_channels": 32,
    "feature_channels": 32,
    "num_convs": 1,
    "num_grids": (6, 5, 4, 3, 2),
    "min_size": 64,
    "max_size": 128,
    "norm": "gn",
}


class OneConvolutionEach(nn.Module):
    """[B, 3, H, W] to P2..P6, the last of half of P5's size, rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 5, stride=4, padding=2)
        self.steps = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1) for _ in range(4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(images).tanh()]
        for step in self.steps:
            maps.append(3 * step(maps[-1]).tanh())
        return OrderedDict((str(k), x) for k, x in enumerate(maps))


def exportable(head: str = "solo", attention: str | None = None, seed: int = 0, **settings: Any) -> SOLO:
    """A model with scores and masks that vary enough to be found, in evaluation mode."""
    torch.manual_seed(seed)
    parsed = ModelSettings.parse({"head": head, "attention": attention, **SIZES, **settings}, "test")
    return varied(SOLO(OneConvolutionEach(), build_head(3, CHANNELS, parsed), parsed))


def varied(model: SOLO) -> SOLO:
    """The model in evaluation mode, with scores and masks that vary enough to be found."""
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "output" in name and not name.startswith("mask_features"):
                parameter.normal_(0, 0.5)
        model.head.category_output.bias.fill_(-1.0)
    return model.eval()


def agree(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Scores to 1e-4, labels equal, masks equal but for one pixel in a thousand; something is there."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(other["scores"]) > 2
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=0)
        assert one["labels"].equal(other["labels"])
        assert one["masks"].shape == other["masks"].shape
        assert (one["masks"] != other["masks"]).float().mean() < 1e-3
        assert (one["boxes"] - other["boxes"]).abs().max() <= 2
