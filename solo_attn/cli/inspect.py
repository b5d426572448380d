"""``solo-attn inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .._utils.console import plain_console
from .._utils.environment import environment
from .._utils.errors import UsageError
from .._utils.files import check_output, replacing
from .app import Overrides, command

if TYPE_CHECKING:
    from ..inspection import GridCount, GridSetting, ImageValues, Inspection

CLASSES_SHOWN = 20


@command
def inspect(
    overrides: Overrides = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder of the images; the training images of --config by default."),
    ] = None,
    annotations: Annotated[Path | None, typer.Option("--annotations", help="Their COCO JSON.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file with the model's settings; the paper's by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for contact_sheet.png and inspect.json.")] = Path(
        "runs/inspect"
    ),
    write: Annotated[
        Path | None, typer.Option("--write", help="Write a configuration with the proposal.")
    ] = None,
    val_images: Annotated[
        Path | None, typer.Option("--val-images", help="Folder of its validation images.")
    ] = None,
    val_annotations: Annotated[
        Path | None, typer.Option("--val-annotations", help="Their COCO JSON.")
    ] = None,
    keep_size: Annotated[
        bool, typer.Option("--keep-size", help="Propose grids and ranges without changing the input size.")
    ] = False,
) -> None:
    """Show statistics of a dataset and the objects that a grid setting loses, and propose a better setting.

    Example: [cyan]solo-attn inspect --images images --annotations instances.json[/cyan]

    With [cyan]--write mine.yaml[/cyan] the proposal becomes the configuration of a training, which needs
    --val-images and --val-annotations too. Without --images the training images of --config are inspected.

    An object is learned by the cells around its centre; where a later object of the image takes the cell, it
    is lost. The proposal comes from a small search, described in docs/data.md, and is measured by the same
    counting. With [cyan]model.percentiles='[0.5, 99.5]'[/cyan] images of 16 bits and floats are read too, and
    the values at several percentiles are shown, of which that setting takes two.
    """
    from ..data import CocoInstances
    from ..inspection import (
        contact_sheet,
        grid_setting,
        image_values,
        inspect_dataset,
        measure_objects,
        with_proposal,
    )
    from ..training import Config, changes, differences, load_config

    check_output(out, "inspect", "--out", folder=True)
    if write is not None:
        check_output(write, "inspect", "--write")
    before = load_config(config, overrides or [])
    data = before.data
    inspected = _pair("", images, annotations, (data.train_images, data.train_annotations))
    if inspected is None:
        got = "neither" if config is None else f"{config} without them"
        raise UsageError(
            "inspect: expected --images and --annotations, or a --config that has data.train_images and "
            f"data.train_annotations, got {got}"
        )
    images, annotations = inspected
    val = _pair("val-", val_images, val_annotations, (data.val_images, data.val_annotations))
    if write is not None and val is None:
        raise UsageError(
            "inspect: expected --val-images and --val-annotations with --write, or a --config that has them: "
            "a training needs both"
        )
    console = plain_console()
    percentiles = before.model.percentiles
    dataset = CocoInstances(images, annotations, on_degenerate="skip", percentiles=percentiles)
    try:
        with console.status("counting cells"):
            found = inspect_dataset(dataset, grid_setting(before.as_dict()), keep_size=keep_size)
    except ValueError as error:
        if len(measure_objects(dataset).area):  # then it is something else
            raise
        raise UsageError(
            f"inspect: expected {annotations} to have an object with a pixel, got none"
        ) from error
    console.print(f"{annotations}, images in {images}", soft_wrap=True)
    _show(console, found)
    report = {"environment": environment(), **found.as_dict()}
    if percentiles is not None:
        values = image_values(dataset)
        console.print(_values(values, percentiles))
        report["values"] = values.as_dict()
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(dataset, out / "contact_sheet.png")
    with replacing(out / "inspect.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"  {out / 'contact_sheet.png'}\n  {out / 'inspect.json'}", soft_wrap=True)
    if write is None:
        return
    after = Config.from_dict(with_proposal(before.as_dict(), found))
    after.data.train_images, after.data.train_annotations = str(images), str(annotations)
    if val is not None:
        after.data.val_images, after.data.val_annotations = map(str, val)
    if dataset.summary.degenerate:
        after.data.on_degenerate = "skip"
    write.parent.mkdir(parents=True, exist_ok=True)
    after.save(write)
    console.print(f"  {write}, in which", soft_wrap=True)
    for line in changes(before, after, differences(before, after)):
        console.print(f"    {line}", soft_wrap=True)


def _pair(
    part: str, images: Path | None, annotations: Path | None, of_config: tuple[str, str]
) -> tuple[Path, Path] | None:
    """A folder and its JSON as they were given, else the configuration's; None where that has not both."""
    given = {f"--{part}images": images, f"--{part}annotations": annotations}
    if images is not None and annotations is not None:
        return images, annotations
    for name, path in given.items():
        if path is not None:
            (missing,) = set(given) - {name}
            raise UsageError(f"inspect: expected {missing} with {name}, got {name} {path} alone")
    return (Path(of_config[0]), Path(of_config[1])) if all(of_config) else None


def _show(console: Console, found: Inspection) -> None:
    from ..inspection.dataset import QUANTILES

    console.print(found.summary)
    quantiles = Table("", *(f"{100 * q:g} %" for q in QUANTILES), title="Of the images / objects, at most")
    quantiles.add_row("objects in an image", *(f"{value:g}" for value in found.per_image))
    quantiles.add_row("side of an object, pixels", *(f"{value:g}" for value in found.side))
    console.print(quantiles)
    parts = [f"{100 * n / found.objects:.0f} % {name}" for n, name in _by_size(found)]
    console.print(f"by COCO's sizes: {', '.join(parts)}")
    sizes = [f"{n} of {size}" for size, n in found.image_sizes.items()]
    console.print(f"image sizes: {_first(sizes)}")
    classes = Table("class", "objects", "images")
    for name, (objects, images) in list(found.classes.items())[:CLASSES_SHOWN]:
        classes.add_row(name, str(objects), str(images))
    if len(found.classes) > CLASSES_SHOWN:
        classes.caption = f"and {len(found.classes) - CLASSES_SHOWN} more"
    console.print(classes)
    console.print(_levels("As set", found.setting, found.count))
    if found.proposal == found.setting:
        console.print("no setting was found with fewer collisions")
    else:
        console.print(_levels("Proposed", found.proposal, found.proposal_count))
        console.print(_totals(found))


def _values(found: ImageValues, chosen: tuple[float, float]) -> Table:
    kinds = ", ".join(f"{n} of {name}" for name, n in found.dtypes.items())
    table = Table(
        "percentile",
        *(f"{q:g} %" for q in found.percentiles),
        title=f"Values in the channels of {found.images} images ({kinds})",
        caption=f"as set, the percentiles {chosen[0]:g} and {chosen[1]:g} of each channel become 0 and 255",
    )
    for name, row in (("lowest", found.lowest), ("median", found.median), ("highest", found.highest)):
        table.add_row(name, *(f"{value:g}" for value in row))
    return table


def _by_size(found: Inspection) -> list[tuple[int, str]]:
    return [(found.small, "small"), (found.medium, "medium"), (found.large, "large")]


def _first(parts: list[str], shown: int = 5) -> str:
    more = f", and {len(parts) - shown} other sizes" if len(parts) > shown else ""
    return ", ".join(parts[:shown]) + more


def _levels(title: str, setting: GridSetting, count: GridCount) -> Table:
    head = ("S", "range, pixels", "objects", "centre taken", "no cell", "cells used")
    table = Table(
        "level", *head, title=f"{title}: shorter side {setting.min_size}, longer to {setting.max_size}"
    )
    for number, level in enumerate(count.levels):
        low, high = level.scale_range
        counted = (level.objects, level.centre_taken, level.no_cell, level.cells)
        table.add_row(f"P{number + 2}", str(level.num_grid), f"{low:g}-{high:g}", *map(str, counted))
    return table


def _totals(found: Inspection) -> Table:
    before, after = found.count, found.proposal_count
    table = Table("", "as set", "proposed", title=f"Of {found.objects} objects")
    rows = (
        ("in no level's range", before.no_level, after.no_level),
        ("with no cell: never learned", before.no_cell, after.no_cell),
        ("with no cell at their centre", before.centre_taken, after.centre_taken),
        ("below 8 x 8 pixels of the input", before.too_small, after.too_small),
    )
    for name, *numbers in rows:
        table.add_row(name, *(f"{n} ({100 * n / found.objects:.1f} %)" for n in numbers))
    table.add_section()
    table.add_row("what it costs: cells in all, S x S", str(before.cells), str(after.cells))
    table.add_row("pixels of an input", f"{before.pixels:.0f}", f"{after.pixels:.0f}")
    return table
