"""The costs of the heads: every head is measured with something to do, and the page says all of it."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end import heads
from benchmarks.report import heads_page, stored


def test_every_head_finds_something() -> None:
    for settings in heads.CASES.values():
        model = heads.model_of({**settings, **heads.TINY, "backbone": "resnet18"})
        image = heads.image_of(model)
        heads.set_candidates(model, [image], 40)
        masks = [one["counts"] for one in model.predict([image], rle=True)[0]["masks"]]
        assert len(set(masks)) >= 3, settings


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "size": [800, 1056],
        "parameters": 36_000_000,
        "head_parameters": 9_500_000,
        "seconds": {"median": 2.346},
        "peak_bytes": 300 << 20,
    }
    about = {"device": "a CPU", "threads": 2, "torch": "2", "commit": "abc", "date": "2026-01-01T00:00"}
    found = {"environment": about, "candidates": 200, "rows": {"solo": row, "solo, attention": row}}
    monkeypatch.setattr(stored, "kept", lambda name: found if name == "heads" else None)
    text = heads_page.costs()
    assert "| `solo` | 800 x 1056 | 9.5 | 36.0 | 2.35 | 300 |" in text
    assert "`solo`, attention |" in text
    assert "commit abc" in text
    monkeypatch.setattr(stored, "kept", lambda name: None)
    assert heads_page.costs() == "Not measured yet."
