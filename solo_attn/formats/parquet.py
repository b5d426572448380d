"""Instances as Parquet, one row per instance, for DuckDB, pandas, Spark and Ray.

Needs the extra "parquet".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import extra_needed
from .._utils.files import replacing

if TYPE_CHECKING:
    import pyarrow


def to_parquet(results: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """COCO results as a table, in their order.

    Args:
        results: what `coco_results` gives, each with the ``file_name`` of its image.

    Returns:
        The columns ``image_id`` int64, ``file_name``, ``category_id`` int64, ``score`` double, ``bbox``
        (four doubles, xywh in pixels), ``height`` and ``width`` int64 of the image, and ``counts``, COCO's
        compressed run lengths of the mask. Images without an instance have no row.

    Raises:
        MissingExtraError: the extra "parquet" is not installed.
    """
    pa = _pyarrow()
    rows = [
        {
            **result,
            "height": result["segmentation"]["size"][0],
            "width": result["segmentation"]["size"][1],
            "counts": result["segmentation"]["counts"],
        }
        for result in results
    ]
    return pa.Table.from_pylist(rows, schema=_schema())


def write_parquet(path: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write `to_parquet` to a file, which is either left as it was or complete.

    Raises:
        MissingExtraError: the extra "parquet" is not installed.
        OSError: ``path`` cannot be written.
    """
    table = to_parquet(results)
    from pyarrow.parquet import write_table

    with replacing(path, "write_parquet") as temporary:
        write_table(table, temporary)


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """A file of `write_parquet`, or a folder of such, as COCO results; of a folder in the order of the names.

    Raises:
        MissingExtraError: the extra "parquet" is not installed.
        OSError: ``path`` cannot be read.
        ValueError: it is not Parquet, or lacks a column of `to_parquet`; others may stand beside them.
    """
    pa = _pyarrow()
    from pyarrow.parquet import read_table

    schema, table = _schema(), read_table(path)
    known = [name for name in table.column_names if name in schema.names]
    if sorted(known) != sorted(schema.names):
        raise ValueError(
            f"read_parquet: expected {path} to have the columns {', '.join(schema.names)}, "
            f"got {', '.join(table.column_names) or 'none'}"
        )
    try:
        rows: list[dict[str, Any]] = table.select(schema.names).cast(schema).to_pylist()
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"read_parquet: expected the types of to_parquet in {path}: {error}") from None
    return [
        {
            **{key: row[key] for key in ("image_id", "category_id", "bbox", "score")},
            "segmentation": {"size": [row["height"], row["width"]], "counts": row["counts"]},
            "file_name": row["file_name"],
        }
        for row in rows
    ]


def _schema() -> pyarrow.Schema:
    pa = _pyarrow()
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("file_name", pa.string()),
            ("category_id", pa.int64()),
            ("score", pa.float64()),
            ("bbox", pa.list_(pa.float64())),
            ("height", pa.int64()),
            ("width", pa.int64()),
            ("counts", pa.string()),
        ]
    )


def _pyarrow() -> Any:
    with extra_needed("parquet"):
        import pyarrow
    return pyarrow
