"""The libraries compared with are the real ones, and their absence cannot pass for success."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import loading as peers

ROOT = Path(__file__).parents[2]


def test_the_real_mmdetection_is_found() -> None:
    mmdet = peers.need("mmdet")
    assert mmdet.__version__ == "3.3.0"
    layers = peers.need("mmdet.models.layers")
    assert layers.mask_matrix_nms.__module__ == "mmdet.models.layers.matrix_nms"


def test_a_compiled_operator_raises_only_where_it_is_called() -> None:
    peers.need("mmdet")
    nms = peers.need("mmcv.ops").nms
    import torch

    with pytest.raises(RuntimeError, match="mmcv-lite has no compiled operator nms"):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_continuous_integration_requires_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "make peers" in lines
    assert any(line.startswith(f"export {peers.REQUIRED}=1") for line in lines)
    monkeypatch.setenv(peers.REQUIRED, "1")
    with pytest.raises(ImportError):
        peers.need("no_such_module")
    monkeypatch.delenv(peers.REQUIRED)
    with pytest.raises(pytest.skip.Exception, match="make peers"):
        peers.need("no_such_module")
