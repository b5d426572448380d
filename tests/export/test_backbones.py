"""Backbones of timm that compute their padding from the size of each input, as TensorFlow does."""

from __future__ import annotations

import pytest
import torch

from solo_attn.export import FixedProgram, traced
from solo_attn.models import solo

padding = pytest.importorskip("timm.layers.padding", reason='the extra "pretrained" is not installed')


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sizes_stay_simple() -> None:
    """Else torch.export does not come to an end. The program gives the eager results, at other sizes too."""
    theirs = padding.get_same_padding
    model = solo(
        2,
        backbone="timm/tf_efficientnet_lite0",
        fpn_channels=32,
        head_channels=32,
        num_convs=1,
        num_grids=(6, 5, 4, 3, 2),
        min_size=64,
        max_size=128,
    ).eval()
    run = traced(model, 20).module(check_guards=False)
    assert padding.get_same_padding is theirs
    for size in ((2, 3, 64, 96), (1, 3, 32, 160)):
        images = torch.rand(*size, generator=torch.Generator().manual_seed(3))
        for found, expected in zip(run(images), FixedProgram(model, 20)(images), strict=True):
            torch.testing.assert_close(found, expected)
