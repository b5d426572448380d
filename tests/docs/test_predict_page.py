"""docs/predict.md does what it says: its Python and its commands, in this process, in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import follow_here

from solo_attn.formats import read_parquet


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("page")
    return folder / "runs" / "predict", follow_here("predict.md", folder)


def test_the_page(followed) -> None:
    folder, printed = followed
    tiled, dtype, first, second, columns = printed
    assert "in 3 images, in runs/predict/found" in tiled
    assert dtype == "torch.uint8 True"
    assert "others are not yet" in first
    assert "others are not yet" not in second
    assert int(columns.split()[0]) > 3
    assert {p.name for p in (folder / "found").iterdir()} == {
        "results.json",
        "a.geojson",
        "b.geojson",
        "c.geojson",
    }
    results = json.loads((folder / "shared" / "results.json").read_text())
    assert [r["image_id"] for r in results] == sorted(r["image_id"] for r in results)
    stored = read_parquet(folder / "shared" / "results.parquet")
    assert sorted(map(json.dumps, stored)) == sorted(map(json.dumps, results))
