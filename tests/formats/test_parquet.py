"""Parquet files that others have written, or that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solo_attn.formats import read_parquet, to_parquet

parquet = pytest.importorskip("pyarrow.parquet", reason='the extra "parquet" is not installed')

RESULT = {
    "image_id": 1,
    "category_id": 2,
    "bbox": [0.0, 0, 9, 9],
    "score": 0.5,
    "file_name": "a.png",
    "segmentation": {"size": [20, 30], "counts": "PX5"},
}


def test_other_columns_beside_ours(tmp_path: Path) -> None:
    table = to_parquet([RESULT])
    others = table.append_column("mine", table["score"]).select(["mine", *reversed(table.column_names)])
    parquet.write_table(others, tmp_path / "a.parquet")
    assert read_parquet(tmp_path / "a.parquet") == [RESULT]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("height"), "the columns image_id, .*, got image_id, file_name"),
        (
            lambda t: t.rename_columns([f"my {name}" for name in t.column_names]),
            "the columns image_id, .* my ",
        ),
        (lambda t: t.append_column("score", t["score"]), "score"),
        (lambda t: t.set_column(4, "bbox", t["file_name"]), "expected the types"),
        (lambda t: t.set_column(0, "image_id", t["bbox"]), "expected the types"),
        (lambda t: t.set_column(0, "image_id", t["file_name"]), "expected the types"),
    ],
    ids=["missing", "all missing", "twice", "text for a list", "a list for a number", "text for a number"],
)
def test_wrong_columns(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    parquet.write_table(change(to_parquet([RESULT])), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_parquet(tmp_path / "a.parquet")
