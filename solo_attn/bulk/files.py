"""The image files of a prediction, and the files for the results of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from .._utils.errors import UsageError
from .._utils.files import replacing
from ..data.images import IMAGE_SUFFIXES, image_files

MARK = {"Software": "solo-attn predict"}  # in the pictures written here, to recognise them later


Format = Literal["picture", "coco", "coco-dataset", "parquet", "geojson", "label-studio", "ids"]
"""The formats in which instances are written."""

# Of the file that a format writes for each image, behind the image's stem; the others write for all images.
ENDINGS: dict[Format, str] = {"picture": ".png", "geojson": ".geojson", "ids": ".ids.png"}
# Of one file for all images.
WHOLE: dict[Format, str] = {
    "coco": "results.json",
    "coco-dataset": "dataset.json",
    "label-studio": "label_studio.json",
}


def find_images(paths: Sequence[Path], out: Path) -> list[Path]:
    """The given files, and the images in the given folders, each once, with its first spelling.

    An earlier run's pictures are left out: everything below
    ``out`` if that is in a given folder, and the marked ones if ``out`` itself is given.

    Raises:
        UsageError: a path that is not there, or a folder without images.
    """
    files: dict[Path, Path] = {}  # the file itself -> as it was named
    for path in paths:
        found = [path]
        if path.is_dir():
            found = image_files(path, below=True)
            # A folder that is `out` itself, or lies in it, was named on purpose.
            if not path.resolve().is_relative_to(out.resolve()):
                found = [p for p in found if not p.resolve().is_relative_to(out.resolve())]
            elif path.resolve() == out.resolve():
                found = [p for p in found if not _drawn_here(p)]
            if not found:
                raise UsageError(
                    f"predict: expected {path} to hold images ({', '.join(IMAGE_SUFFIXES)}), got none"
                )
        elif not path.exists():
            raise UsageError(f"predict: expected image files or folders, got {path}, which is not there")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _drawn_here(path: Path) -> bool:
    if path.suffix != ".png":
        return False
    try:
        with Image.open(path) as image:
            return MARK.items() <= image.info.items()
    except (OSError, UnidentifiedImageError):  # to be named with the other files that cannot be read
        return False


def output_paths(files: list[Path], out: Path, formats: list[Format]) -> list[dict[Format, Path]]:
    """The output files of each image.

    Raises:
        UsageError: one of them, or the results, would overwrite one of the files.
    """
    endings = {kind: ending for kind, ending in ENDINGS.items() if kind in formats}
    taken: set[str] = set()
    targets = []
    for file in files:
        stem = free_stem(file.stem, list(endings.values()), taken)
        targets.append({kind: out / f"{stem}{ending}" for kind, ending in endings.items()})
    inputs = {_identity(file): file for file in files}
    written = [path for target in targets for path in target.values()]
    written += [out / name for kind, name in WHOLE.items() if kind in formats]
    for path in written:
        if path.exists() and (image := inputs.get(_identity(path))):
            raise UsageError(
                f"predict: expected --out to be a folder where nothing is overwritten, got {out}, where "
                f"{path} is the image {image}"
            )
    return targets


def _identity(path: Path) -> tuple[int, int]:
    """The file itself, which links and letter case give other names."""
    found = path.stat()
    return found.st_dev, found.st_ino


def free_stem(stem: str, endings: list[str], taken: set[str]) -> str:
    """``stem``, with a number if another image has one of the names it would make."""
    name, number = stem, 1
    while any(f"{name}{ending}" in taken for ending in endings):
        number += 1
        name = f"{stem}-{number}"
    taken.update(f"{name}{ending}" for ending in endings)
    return name


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, completely or not at all, with the mark by which a later run recognises it."""
    mark = PngInfo()
    for key, value in MARK.items():
        mark.add_text(key, value)
    with replacing(path) as temporary:
        picture.save(temporary, pnginfo=mark)
