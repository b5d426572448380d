"""Images on many machines, by Ray Data: python examples/ray_data.py MODEL IMAGES OUT

Needs "ray[data]" and ".[train,parquet]". Ray starts a dead actor again, and repeats its work.
"""

import sys
from pathlib import Path

import ray.data

import solo_attn
from solo_attn.data.images import image_files
from solo_attn.formats import to_parquet


class Find:
    """An actor that holds the model: of a batch of files it makes a table, one row an instance."""

    def __init__(self, weights):
        self.predictor = solo_attn.load(weights)

    def __call__(self, batch):
        names, rows = [str(name) for name in batch["file_name"]], []
        for image_id, name, found in zip(batch["image_id"], names, self.predictor.stream(names), strict=True):
            rows += [{**result, "file_name": name} for result in found.to_coco(int(image_id))]
        return to_parquet(rows)


def predict(weights, folder, out, actors=2, batch_size=16, find=Find):
    """Results of the folder's images as Parquet files in ``out``; on GPUs add num_gpus=1 to map_batches."""
    files = [{"image_id": k, "file_name": str(f)} for k, f in enumerate(image_files(folder), start=1)]
    tables = ray.data.from_items(files).map_batches(
        find, fn_constructor_args=[str(weights)], batch_size=batch_size, concurrency=actors
    )
    tables.write_parquet(str(out))


if __name__ == "__main__":
    predict(*map(Path, sys.argv[1:4]))
