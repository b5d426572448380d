"""Real images: where tests and benchmarks find them, and the nuclei of the configurations in COCO's format.

    python -m tools.real_data data/dsb2018

The 2018 Data Science Bowl is image set BBBC038v1 of the Broad Bioimage Benchmark Collection (CC0):
https://bbbc.broadinstitute.org/BBBC038. Unpack ``stage1_train.zip`` and ``stage1_test.zip`` in the folders
``stage1_train`` and ``stage1_test`` of the folder that is given, and put ``stage1_solution.csv`` beside them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Pillow and solo_attn.formats are imported where they are used: tests call `find` without the extra "train".

ROOT = Path(__file__).parents[1]
TRAIN, VAL = 450, 50  # the number of images in the paper

Ids = Callable[[Path, tuple[int, int]], NDArray[np.uint16]]


def find(name: str) -> Path | None:
    """The folder ``name`` of the real data, or None.

    It is looked for in the folder that SOLO_ATTN_DATA names, and in ``data`` of the clone.
    """
    named = os.environ.get("SOLO_ATTN_DATA")
    folders = ([Path(named)] if named else []) + [ROOT / "data"]
    return next((folder / name for folder in folders if (folder / name).is_dir()), None)


def nuclei(folder: Path) -> None:
    """Write what ``configs/*nuclei*.yaml`` name: images_train, images_test, and the COCO JSON of each part.

    450 images of the training part are for training and 50 for validation, chosen by a hash of their names.
    """
    solution = folder / "stage1_solution.csv"
    for path in (folder / "stage1_train", folder / "stage1_test", solution):
        if not path.exists():
            raise SystemExit(f"real_data: expected {path}, which is not there; --help says where to get it")
    write_part(folder, "train", ids_of_pictures)
    runs = read_runs(solution)
    write_part(folder, "test", lambda image, size: ids_of_runs(runs[image.stem], size))
    content = json.loads((folder / "instances_train.json").read_text(encoding="utf-8"))
    images = sorted(content["images"], key=lambda image: hashlib.sha256(image["file_name"].encode()).digest())
    for name, chosen in (("train450", images[:TRAIN]), ("val50", images[TRAIN : TRAIN + VAL])):
        path = folder / f"instances_paper_{name}.json"
        path.write_text(json.dumps(only(content, chosen)), encoding="utf-8")


def write_part(folder: Path, part: str, ids_of: Ids) -> None:
    """``images_<part>`` as RGB, ``ids_<part>`` (an id for each nucleus), and ``instances_<part>.json``."""
    from PIL import Image

    from solo_attn.formats import convert_id_masks

    images, ids = folder / f"images_{part}", folder / f"ids_{part}"
    images.mkdir(exist_ok=True)
    ids.mkdir(exist_ok=True)
    for path in sorted((folder / f"stage1_{part}").glob("*/images/*.png")):
        with Image.open(path) as picture:
            picture.convert("RGB").save(images / path.name)
            Image.fromarray(ids_of(path, (picture.height, picture.width))).save(ids / path.name)
    print(convert_id_masks(images, ids, folder / f"instances_{part}.json", class_name="nucleus"))


def ids_of_pictures(image: Path, size: tuple[int, int]) -> NDArray[np.uint16]:
    """The id image of a picture that has one mask for each nucleus, in ``masks`` beside ``images``."""
    from PIL import Image

    ids = np.zeros(size, np.uint16)
    for number, path in enumerate(sorted(image.parents[1].glob("masks/*.png")), 1):
        with Image.open(path) as mask:
            ids[np.asarray(mask.convert("L")) > 0] = number
    return ids


def ids_of_runs(runs: list[NDArray[np.int64]], size: tuple[int, int]) -> NDArray[np.uint16]:
    """The id image of one array of runs [n, 2] a nucleus: first pixel (from 1, down the columns), length."""
    columns = np.zeros(size[0] * size[1], np.uint16)
    for number, rows in enumerate(runs, 1):
        for start, length in rows:
            columns[start - 1 : start - 1 + length] = number
    return np.ascontiguousarray(columns.reshape(size[1], size[0]).T)


def read_runs(path: Path) -> dict[str, list[NDArray[np.int64]]]:
    """The runs of each nucleus of a solution, by the name of the image."""
    found = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["ImageId"]].append(np.array(row["EncodedPixels"].split(), np.int64).reshape(-1, 2))
    return dict(found)


def only(content: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    """The COCO JSON of some of its images."""
    ids = {image["id"] for image in images}
    kept = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    return {**content, "images": images, "annotations": kept}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="such as data/dsb2018, which the configurations name")
    nuclei(parser.parse_args().folder)
