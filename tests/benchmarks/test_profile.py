"""Where the time of a step goes: every part has time, and the network alone is the step's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.end_to_end import profile
from benchmarks.end_to_end.model import TINY, images_of, model_of, set_candidates
from benchmarks.end_to_end.run import infer
from benchmarks.report import profile_section, stored


def test_an_operation_belongs_to_the_outermost_part() -> None:
    assert profile.part_of(["step", "aten::conv2d", "aten::copy_"]) == "convolutions"
    assert profile.part_of(["step", "solo_attn::mask_bits", "aten::upsample_bilinear2d"]) == profile.OPS
    assert profile.part_of(["step", "Optimizer.step#SGD.step", "aten::add_"]) == "optimizer"
    assert profile.part_of(["step", "aten::any"]) == profile.OTHER


def test_a_prediction_in_parts_and_its_network_alone() -> None:
    model, images = model_of(TINY, "cpu").eval(), images_of(TINY, 1, "cpu")
    set_candidates(model, images, TINY.candidates)
    step = partial(infer, model, images, partial(torch.autocast, "cpu", enabled=False))
    parts = profile.profiled(step)
    assert parts.pop("optimizer") == 0
    assert min(parts.values()) > 0

    cells = profile.chosen_cells(model, step)
    assert "cell_masks" not in vars(model.head), "the head is as it was"
    with torch.no_grad():
        batch = model.transform(images)[0].tensors
        result = model.features(batch)
        logits = profile.network(model, batch, cells)
        masks = [model.head.cell_masks(result, k, chosen).coarse_logits for k, chosen in cells.items()]
    offsets = [model.head.attention.bias(k) for k in cells]
    levels = len(result.category_logits)
    for one, wanted in zip(logits[:levels], result.category_logits, strict=True):
        torch.testing.assert_close(one, wanted)
    for one, wanted, offset in zip(logits[levels:], masks, offsets, strict=True):
        torch.testing.assert_close(one[0] + offset, wanted, rtol=1e-4, atol=1e-4)


def test_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"device": "a CPU", "threads": 2, "torch": "2", "commit": "abc", "date": "2026-01-01T00:00"}
    parts = {"convolutions": 8.0, "norms": 1.0, "ReLU, pooling, resizing": 0.5, profile.OPS: 0.3}
    row: dict[str, Any] = {
        "what": "training",
        "dtype": "float32",
        "parts": {**parts, "optimizer": 0.15, profile.OTHER: 0.05},
        "seconds": {"step": {"median": 11.0}, "alone": {"median": 10.0}},
        "ratio": 1.1,
        "spread": 0.02,
        "busy": 0.1,
    }
    found = {"environment": about, "size": [672, 1344], "candidates": 200, "objects": 12, "rows": [row]}
    monkeypatch.setattr(stored, "kept", lambda name: found if name == "profile" else None)
    text = profile_section.profile()
    assert (
        "| training, float32 | 80.0 | 10.0 | 5.0 | 3.0 | 1.5 | 0.5 | 5.0 | 11,000 | 10,000 | 1.10 |" in text
    )
    assert "The machine was quiet" in text
    row |= {"busy": 1.2, "spread": 0.08}
    noted = profile_section.profile()
    assert "training, float32: 1.2 cores were busy" in noted
    assert "medians differed by 8 %" in noted
    monkeypatch.setattr(stored, "kept", lambda name: None)
    assert profile_section.profile().startswith("Not measured yet")
