"""``solo-attn predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.console import plain_console, progress
from .._utils.errors import UsageError
from .app import command, naming_file

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = {"Software": "solo-attn predict"}  # in the pictures written here, to know them again


class Format(str, Enum):
    """What `predict` writes."""

    PICTURE = "picture"
    COCO = "coco"
    GEOJSON = "geojson"
    IDS = "ids"


# Of the file that a format writes for each image, behind the image's stem; coco writes one file for all.
ENDINGS = {Format.PICTURE: ".png", Format.GEOJSON: ".geojson", Format.IDS: ".ids.png"}


@command
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders that are searched for them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for what is found.")],
    formats: Annotated[
        list[Format],
        typer.Option("--format", help="What to write, several times for several; docs/formats.md."),
    ] = [Format.PICTURE, Format.COCO],  # noqa: B006 - typer reads it
    score: Annotated[
        float,
        typer.Option("--score", min=0, max=1, help="Leave out lower scores, but for coco, which keeps all."),
    ] = 0.3,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...; auto takes the best.")] = "auto",
    tile: Annotated[
        int | None,
        typer.Option("--tile", min=0, help="Side of tiles in pixels, 0 for none; as trained by default."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels that such tiles share.")] = 64,
) -> None:
    """Find the objects in image files, and draw them.

    Example: [cyan]solo-attn predict runs/nuclei/best.ckpt photos/ one.jpg --out found[/cyan]

    The folder receives one picture for each image, and results.json in COCO's format, with each image's path
    as file_name; image_id counts the images from 1. [cyan]--format geojson --format ids[/cyan] writes
    polygons (photo.geojson) and a 16-bit picture of ids (photo.ids.png) for each image instead. A file that
    cannot be read, or that the model cannot take, is named, the others are processed, and the exit code is 1.
    Pictures that an earlier run left in the --out folder are not taken for images.
    """
    from PIL.Image import fromarray

    from ..data import ImageError
    from ..formats import to_id_map, write_geojson, write_results
    from ..predictor import load

    if out.exists() and not out.is_dir():
        raise UsageError(f"predict: expected --out to be a folder, got the file {out}")
    files = find_images(images, out)
    targets = output_paths(files, out, formats)
    changes = {} if tile is None else {"tile": tile or None, "tile_overlap": overlap}
    predictor = load(checkpoint, device, **changes)
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    count = 0
    with progress("predicting", len(files)) as advance:
        for image_id, (file, target) in enumerate(zip(files, targets, strict=True), start=1):
            try:
                with naming_file(file):
                    found = predictor(file)
            except (ImageError, UsageError) as error:  # no fault of the others
                failed.append(str(error))
            else:
                count += len(found)
                if Format.COCO in formats:
                    results += [{**r, "file_name": str(file)} for r in found.to_coco(image_id)]
                if Format.PICTURE in target:
                    save_png(fromarray(found.draw(score).permute(1, 2, 0).numpy()), target[Format.PICTURE])
                if Format.GEOJSON in target:
                    chosen = found.above(score)
                    write_geojson(target[Format.GEOJSON], chosen.as_dict(), chosen.class_names)
                if Format.IDS in target:
                    save_png(fromarray(to_id_map(found.above(score).as_dict())), target[Format.IDS])
            advance(1)
    if Format.COCO in formats:
        write_results(out / "results.json", results)
    done = len(files) - len(failed)
    plain_console(soft_wrap=True).print(f"{count} instances in {done} images, in {out}")
    if failed:
        errors = plain_console(stderr=True, soft_wrap=True)
        for line in failed:
            errors.print(line, style="red")
        raise typer.Exit(1)


def find_images(paths: list[Path], out: Path) -> list[Path]:
    """The files named, and the images in the folders named, each once, as it is spelt first.

    An earlier run's pictures are left out: what lies below ``out`` where that is in a folder named, and the
    marked ones where the folder named is ``out``.

    Raises:
        UsageError: a path that is not there, or a folder without images.
    """
    from ..data.images import IMAGE_SUFFIXES, image_files

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
    from PIL import Image, UnidentifiedImageError

    if path.suffix != ".png":
        return False
    try:
        with Image.open(path) as image:
            return MARK.items() <= image.info.items()
    except (OSError, UnidentifiedImageError):  # to be named with the other files that cannot be read
        return False


def output_paths(files: list[Path], out: Path, formats: list[Format]) -> list[dict[Format, Path]]:
    """Where what is found in each file goes.

    Raises:
        UsageError: one of them, or results.json, would overwrite one of the files.
    """
    endings = {kind: ending for kind, ending in ENDINGS.items() if kind in formats}
    taken: set[str] = set()
    targets = []
    for file in files:
        stem = free_stem(file.stem, list(endings.values()), taken)
        targets.append({kind: out / f"{stem}{ending}" for kind, ending in endings.items()})
    inputs = {_identity(file): file for file in files}
    written = [path for target in targets for path in target.values()]
    if Format.COCO in formats:
        written.append(out / "results.json")
    for path in written:
        if path.exists() and (image := inputs.get(_identity(path))):
            raise UsageError(
                f"predict: expected --out to be a folder where nothing is overwritten, got {out}, where "
                f"{path} is the image {image}"
            )
    return targets


def _identity(path: Path) -> tuple[int, int]:
    """The file itself: links and letter case give it other names."""
    found = path.stat()
    return found.st_dev, found.st_ino


def save_png(picture: Image, path: Path) -> None:
    """Write a picture with the mark by which a later run knows it."""
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    for key, value in MARK.items():
        mark.add_text(key, value)
    picture.save(path, pnginfo=mark)


def free_stem(stem: str, endings: list[str], taken: set[str]) -> str:
    """``stem``, numbered where another image took one of the names it would make."""
    name, number = stem, 1
    while any(f"{name}{ending}" in taken for ending in endings):
        number += 1
        name = f"{stem}-{number}"
    taken.update(f"{name}{ending}" for ending in endings)
    return name
