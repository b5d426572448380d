"""Both ways of an evaluation find the same, as many instances as wanted; pages say what was stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.end_to_end import evaluation
from benchmarks.report import export_page, predict_page, stored

ABOUT = {"device": "a CPU", "threads": 1, "torch": "2", "commit": "abc", "date": "2026-01-01T00:00"}


def test_both_ways_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.torch, "set_num_threads", lambda count: None)
    evaluation.write_data(tmp_path, 2, (64, 128))
    found = [evaluation.evaluate(tmp_path, rle, 1) for rle in evaluation.WAYS.values()]
    assert [one["instances"] for one in found] == [2 * evaluation.INSTANCES] * 2
    assert found[0]["results"] == found[1]["results"]


def test_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    way = {"instances": 6000, "seconds": 40.4, "peak_gib": 0.98}
    files = {
        "evaluation": {
            "environment": ABOUT,
            "images": 60,
            "size": [1024, 2048],
            "input": [256, 512],
            "settings": evaluation.MODEL,
            "ways": {"rle": way, "bool": {**way, "seconds": 161.2, "peak_gib": 2.5}},
        },
        "export": {
            "environment": ABOUT,
            "size": [256, 384],
            "settings": {"backbone": "resnet18", "head_channels": 64, "num_convs": 2},
            "times": {
                name: {"median": seconds, "runs": 15}
                for name, seconds in (("torch", 0.3), ("onnxruntime", 0.2), ("openvino", 0.15))
            },
        },
    }
    for module in (predict_page, stored):
        monkeypatch.setattr(module, "kept", files.get)
    text = predict_page.evaluation()
    assert "60 images of 1,024 x 2,048 pixels with 100 instances each took 40 seconds" in text
    assert "it took 161 seconds and 2.50 GiB" in text
    assert "| OpenVINO, the same file | 150 | 2.00x |" in export_page.runtimes()
    for module in (predict_page, stored):
        monkeypatch.setattr(module, "kept", lambda name: None)
    assert predict_page.evaluation() == "How much time and memory it saves has not been measured yet."
    assert export_page.runtimes() == "How fast it is has not been measured yet."
