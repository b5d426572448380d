"""docs/ops.md and README: every op is there, and the examples give what stands beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pages import ROOT, follow

import solo_attn
from solo_attn.backends import OPS, registry


def test_the_page(tmp_path: Path) -> None:
    output = follow("ops.md", tmp_path)
    assert "tensor([0.9000, 0.1083, 0.0947, 0.0812])" in output
    assert "reference" in output


@pytest.mark.parametrize("page", ["README.md", "docs/ops.md"])
def test_every_op_has_a_row(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", text, flags=re.MULTILINE)) == sorted(OPS)


def test_the_gradients_are_as_told() -> None:
    text = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|", text, flags=re.MULTILINE))
    features = torch.rand(1, 2, 3, 3, requires_grad=True)
    logits = torch.rand(2, 4, 4, requires_grad=True)
    masks = torch.rand(2, 8, 8) > 0.5
    found = {
        "grid_attention": solo_attn.grid_attention(features),
        "attention_residual": solo_attn.attention_residual(torch.rand(1, 9, 8, 8), features),
        "upsample_add": solo_attn.upsample_add(logits, None, (8, 8)),
        "dice_loss": solo_attn.dice_loss(logits, None, masks),
        "mask_iou": solo_attn.mask_iou(masks, masks),
        "matrix_nms": solo_attn.matrix_nms(
            masks, torch.zeros(2, dtype=torch.int64), torch.tensor([0.5, 0.4], requires_grad=True)
        ),
    }
    assert {op: rows[op] != "no" for op in found} == {op: out.requires_grad for op, out in found.items()}


def test_every_backend_is_named() -> None:
    text = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    assert set(re.findall(r'^\| `"(\w+)"` \|', text, flags=re.MULTILINE)) == set(registry.NAMES)
