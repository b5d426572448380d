"""A backbone of timm that computes its padding from the size of each input, as TensorFlow does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_export import varied

from solo_attn.export import FixedProgram, export_model
from solo_attn.models import ModelInfo, save_model, solo

padding = pytest.importorskip("timm.layers.padding", reason='the extra "pretrained" is not installed')
onnxruntime = pytest.importorskip("onnxruntime", reason='the extra "export" is not installed')


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_padding_by_size_can_be_exported(tmp_path: Path) -> None:
    """Else torch.export does not come to an end. The file gives the eager results, at other sizes too."""
    theirs = padding.get_same_padding
    torch.manual_seed(0)
    settings = {"backbone": "timm/tf_efficientnet_lite0", "fpn_channels": 32, "head_channels": 32}
    model = varied(solo(2, **settings, num_convs=1, num_grids=(6, 5, 4, 3, 2), min_size=64, max_size=128))
    save_model(model, ModelInfo(model.config, ["cell", "debris"], [1, 2], {}), tmp_path / "last.ckpt")
    file = export_model(tmp_path / "last.ckpt", tmp_path / "model.onnx", candidates=60)
    assert padding.get_same_padding is theirs
    session, program = onnxruntime.InferenceSession(file), FixedProgram(model, 60)
    for size in ((2, 3, 64, 96), (1, 3, 32, 160)):
        images = torch.rand(*size, generator=torch.Generator().manual_seed(3))
        found, expected = session.run(None, {"images": images.numpy()}), program(images)
        assert int(expected[3].min()) > 2, "nothing to compare"
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=0)
