"""``solo-attn predict``."""

from __future__ import annotations

import os
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console, progress
from .._utils.files import check_output
from .._utils.text import quantity
from .app import command


class Format(str, Enum):
    """What `predict` writes: `solo_attn.bulk.Format` as the command line lists it."""

    PICTURE = "picture"
    COCO = "coco"
    COCO_DATASET = "coco-dataset"
    PARQUET = "parquet"
    GEOJSON = "geojson"
    LABEL_STUDIO = "label-studio"
    IDS = "ids"


@command
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt, .safetensors or exported file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders that are searched for them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    formats: Annotated[
        list[Format],
        typer.Option("--format", help="What to write, several times for several; docs/formats.md."),
    ] = [Format.PICTURE, Format.COCO],  # noqa: B006 - typer reads it
    score: Annotated[
        float,
        typer.Option("--score", min=0, max=1, help="Leave out lower scores, except in coco and parquet."),
    ] = 0.3,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...; auto takes the best.")] = "auto",
    tile: Annotated[
        int | None,
        typer.Option("--tile", min=0, help="Side of tiles in pixels, 0 for none; as trained by default."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels that such tiles share.")] = 64,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images that go through the model at a time.")
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Threads that read images ahead of the model.")
    ] = 2,
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n: the i-th of n processes that share --out.")
    ] = None,
    piece: Annotated[
        int, typer.Option("--piece", min=1, help="Images of a piece, which is done as a whole.")
    ] = 64,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where an earlier run of the same command was killed.")
    ] = False,
) -> None:
    """Find the objects in image files, and draw them.

    Example: [cyan]solo-attn predict runs/nuclei/best.ckpt photos/ one.jpg --out found[/cyan]

    The folder receives one picture for each image, and results.json in COCO's format, with each image's path
    as file_name; image_id counts the images from 1. [cyan]--format geojson --format ids[/cyan] writes
    polygons (photo.geojson) and a 16-bit picture of ids (photo.ids.png) for each image instead,
    [cyan]--format parquet[/cyan] the folder results.parquet, one row an instance,
    [cyan]--format coco-dataset[/cyan] a dataset of its own, which CVAT imports, and
    [cyan]--format label-studio[/cyan] tasks with predictions for Label Studio. A file that cannot be
    read, or that the model cannot take, is named, the others are processed, and the exit code is 1. Pictures
    that an earlier run left in the --out folder are not taken for images.

    Several processes, on one machine or on many with a common folder, share the work by
    [cyan]--shard 1/3[/cyan], [cyan]--shard 2/3[/cyan], ... or as ranks of torchrun; the last to end writes
    results.json, the same as of one process.
    """
    from ..bulk import Shard, find_images, predict_files
    from ..predictor import load

    check_output(out, "predict", "--out", folder=True)
    part = Shard.parse(shard)
    files = find_images(images, out)
    changes = {} if tile is None else {"tile": tile or None, "tile_overlap": overlap}
    if device == "auto" and "LOCAL_RANK" in os.environ:
        device = f"auto:{os.environ['LOCAL_RANK']}"
    predictor = load(checkpoint, device, **changes)
    began = time.monotonic()
    with progress("predicting", len(files), unit="images") as advance:
        done = predict_files(
            predictor,
            files,
            out,
            formats=[kind.value for kind in formats],
            score=score,
            batch_size=batch_size,
            workers=workers,
            piece=piece,
            shard=part,
            resume=resume,
            advance=advance,
        )
    rate = done.images / max(time.monotonic() - began, 1e-9)
    console = plain_console(soft_wrap=True)
    console.print(
        f"{quantity(done.instances, 'instance')} in {quantity(done.images, 'image')}, in {out} "
        f"({rate:.2g} images a second)"
    )
    if not done.complete:
        console.print(
            "this shard is done; others are not yet, and the last one collects the results (started again "
            "without --resume, a shard begins a new run, for which the others must be started again too)"
        )
    if done.failed:
        errors = plain_console(stderr=True, soft_wrap=True)
        for line in done.failed:
            errors.print(line, style="red")
        if done.again:
            errors.print("the memory was full: the same command with --resume tries these pieces again")
        raise typer.Exit(1)
