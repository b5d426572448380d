"""``solo-attn predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .app import UsageError, command

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@command
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders that are searched for them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures and results.json.")],
    score: Annotated[
        float, typer.Option("--score", min=0, max=1, help="Draw instances with at least this score.")
    ] = 0.3,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...; auto takes the best.")] = "auto",
) -> None:
    """Find the objects in image files, and draw them.

    Example: [cyan]solo-attn predict runs/nuclei/best.ckpt photos/ one.jpg --out found[/cyan]

    The folder receives one picture for each image and results.json in COCO's format, with each image's path
    as file_name; image_id counts the images from 1. A file that cannot be read is named, the others are
    processed, and the exit code is 1.
    """
    import torch

    from ..evaluation import coco_results, draw_instances, write_results
    from ..training import load_model
    from .progress import pick_device, progress

    files = find_images(images)
    device = pick_device(device)
    model, info = load_model(checkpoint, device)
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    taken: set[str] = set()
    with progress("predicting", len(files)) as advance:
        for image_id, file in enumerate(files, start=1):
            try:
                image = read_image(file)
            except (OSError, ValueError) as error:
                failed.append(f"{file}: {error}")
                advance(1)
                continue
            with torch.inference_mode():
                found = {key: value.cpu() for key, value in model([image.to(device)])[0].items()}
            results += [
                {**r, "file_name": str(file)} for r in coco_results(image_id, found, info.category_ids)
            ]
            drawn = draw_instances(image, found, info.class_names, score_threshold=score)
            save_png(drawn, out / free_name(file.stem, taken))
            advance(1)
    write_results(out / "results.json", results)
    done = len(files) - len(failed)
    Console().print(f"{len(results)} instances in {done} images, in {out}", highlight=False, soft_wrap=True)
    if failed:
        errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        for line in failed:
            errors.print(f"cannot be read: {line}", style="red")
        raise typer.Exit(1)


def find_images(paths: list[Path]) -> list[Path]:
    """The files named, and the images in the folders named, each once.

    Raises:
        UsageError: a path that is not there, or a folder without images.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UsageError(f"predict: expected {path} to hold images ({', '.join(SUFFIXES)}), got none")
            files.update(dict.fromkeys(found))
        elif path.exists():
            files[path] = None
        else:
            raise UsageError(f"predict: expected image files or folders, got {path}, which is not there")
    return list(files)


def read_image(path: Path) -> Tensor:
    """Float [3, H, W] in 0..1, turned as its EXIF says.

    Raises:
        OSError, ValueError: not an image.
    """
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    with Image.open(path) as opened:
        # A 16-bit or palette image, or one with transparency, becomes what the model was trained on.
        return pil_to_tensor(ImageOps.exif_transpose(opened).convert("RGB")).float() / 255


def save_png(image: Tensor, path: Path) -> None:
    """Write uint8 [3, H, W]."""
    from torchvision.transforms.functional import to_pil_image

    to_pil_image(image).save(path)


def free_name(stem: str, taken: set[str]) -> str:
    """``stem.png``, numbered where another folder had a file of that name."""
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name)
    return name
