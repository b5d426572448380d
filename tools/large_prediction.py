"""The memory of a large prediction: ``python -m tools.large_prediction --instances 700 --size 4000 5000``.

As bool masks 700 instances of 4000 x 5000 pixels would take 14 GB. They leave as run lengths, and one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from solo_attn._utils.environment import environment
from solo_attn.formats import to_id_map
from solo_attn.models import ModelInfo, build_solo
from solo_attn.predictor import Predictor

from .forked import Child
from .kill_test import TINY

MODEL = {**TINY["model"], "num_grids": [40, 36, 24, 16, 12], "min_size": 128, "max_size": 160}


def predict(instances: int, height: int, width: int, told: Path) -> int:
    """Predict a picture with an untrained model, and write what is found as COCO results and as an id map."""
    torch.manual_seed(0)
    model = build_solo(3, **{**MODEL, "max_detections": instances, "nms_pre": 2 * instances})
    found = Predictor(model, ModelInfo(model.config, ["a", "b", "c"], [1, 2, 3], {}))(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    text = json.dumps(found.to_coco(1))
    ids = to_id_map(found.as_dict(rle=True))
    numbers = {
        "instances": len(found),
        "pixels": sum(int(coco_mask.area(one)) for one in found.runs),  # its sum of 256 and more overflows
        "bytes_of_json": len(text),
        "ids": len(np.unique(ids)) - 1,
    }
    told.write_text(json.dumps(numbers))
    return 0


def main() -> int:
    """Predict in a child, whose memory is measured and limited."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, default=700)
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 5000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--limit", type=float, default=4, help="GiB that the process may hold")
    parser.add_argument("--store", type=Path, help="JSON file that receives the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine, limit = environment("cpu"), int(options.limit * 2**30)
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "told.json"
        end = Child(lambda: predict(options.instances, *options.size, told), memory=limit).wait()
        if end.status:
            print(f"status {end.status}\n{end.output}")
            return 1
        found = json.loads(told.read_text())
    found |= {"size": list(options.size), "largest": end.memory, "limit": limit}
    found |= {"seconds_of_cpu": round(end.seconds, 1), "environment": machine}
    print(json.dumps(found))
    if end.memory > limit:
        print(f"expected at most {limit} bytes, got {end.memory}")
        return 1
    if options.store is not None:
        options.store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
