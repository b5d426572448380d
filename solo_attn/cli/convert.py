"""``solo-attn convert``: checkpoints and datasets of other formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from .._utils.console import plain_console, progress
from .._utils.errors import UsageError
from .._utils.files import check_output
from .._utils.text import quantity
from .app import app, command_of

OutFile = Annotated[Path, typer.Argument(help="The JSON to write.", metavar="OUT.json")]

P = ParamSpec("P")
R = TypeVar("R")

group: typer.Typer = typer.Typer(no_args_is_help=True)
app.add_typer(group, name="convert", help="Convert checkpoints and datasets of other formats.")


def conversion(function: Callable[P, R]) -> Callable[P, R]:
    """Register ``solo-attn convert NAME`` for a function NAME or NAME_command; errors as in `command`."""
    return command_of(group, function)


@conversion
def mmdet(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of mmdetection 3.x (.pth).")],
    out: Annotated[Path, typer.Argument(help="Where to write: a .ckpt or .safetensors file.")],
) -> None:
    """Convert a checkpoint of mmdetection's SOLO, Decoupled SOLO or SOLOv2 to one of this library.

    Example: [cyan]solo-attn convert mmdet epoch_36.pth solo.safetensors[/cyan]

    ResNet-18, 34, 50 and 101 with FPN and any number of classes. No code in the file is executed, and
    mmdetection need not be installed. docs/mmdet.md lists what is equal afterwards and what differs.
    """
    from ..interop.mmdet import convert_checkpoint

    if out.suffix not in (".ckpt", ".safetensors"):
        raise UsageError(f"convert: expected OUT to end with .ckpt or .safetensors, got {out}")
    check_output(out, "convert", "OUT")
    done = convert_checkpoint(checkpoint, out)
    console = plain_console(soft_wrap=True)
    for note in done.notes:
        console.print(f"note: {note}")
    model = done.info.model
    console.print(
        f"{out}: {model['head']}, {model['backbone']}, {quantity(model['num_classes'], 'class', 'classes')} "
        f"({', '.join(done.info.class_names[:5])}{', ...' if model['num_classes'] > 5 else ''})"
    )


@conversion
def cityscapes(
    root: Annotated[Path, typer.Argument(help="Folder that holds leftImg8bit and gtFine.")],
    out: Annotated[Path, typer.Argument(help="Folder for instances_train.json and instances_val.json.")],
    classes: Annotated[
        str | None, typer.Option("--classes", help="Names, separated by commas; the paper's five by default.")
    ] = None,
    subset: Annotated[
        tuple[int, int] | None,
        typer.Option(
            "--subset", help="Sample this many images of train and of val, such as the paper's 450 50."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the subset.")] = 0,
) -> None:
    """Cityscapes in its own layout.

    Example: [cyan]solo-attn convert cityscapes data/cityscapes data/cityscapes_coco --subset 450 50[/cyan]

    Masks are the visible pixels, groups become crowd regions, and the images are not copied. After it was
    killed, the same command resumes.
    """
    from ..formats.cityscapes import PAPER_CLASSES, SPLITS, convert_cityscapes, count_images

    check_output(out, "convert", "OUT", folder=True)
    with _arguments(), progress("converting", count_images(root, subset)) as advance:
        found = convert_cityscapes(
            root,
            out,
            classes=PAPER_CLASSES if classes is None else _names(classes),
            subset=subset,
            seed=seed,
            advance=advance,
        )
    for split in SPLITS:
        _tell(root / "leftImg8bit" / split, out / f"instances_{split}.json", str(found[split]))


@conversion
def id_masks(
    images: Annotated[Path, typer.Argument(help="Folder of the images.")],
    masks: Annotated[Path, typer.Argument(help="Folder of one PNG for each, of 8 or 16 bits.")],
    out: OutFile,
    class_name: Annotated[str, typer.Option("--class-name", help="Class name of the objects.")] = "object",
    mask_suffix: Annotated[
        str, typer.Option("--mask-suffix", help="Suffix of the masks' names, such as _mask.")
    ] = "",
    void: Annotated[
        int | None, typer.Option("--void", help="An id that is no object, such as 255 for outlines.")
    ] = None,
) -> None:
    """Images with one id image each: pixels of object k are k, the background is 0.

    Example: [cyan]solo-attn convert id-masks PNGImages PedMasks pedestrians.json --mask-suffix _mask[/cyan]

    After it was killed, the same command resumes.
    """
    from ..data.images import image_files
    from ..formats import convert_id_masks

    check_output(out, "convert", "OUT.json")
    with _arguments(), progress("converting", len(image_files(images))) as advance:
        found = convert_id_masks(
            images, masks, out, class_name=class_name, mask_suffix=mask_suffix, void=void, advance=advance
        )
    _tell(images, out, str(found))


@conversion
def labelme(
    folder: Annotated[Path, typer.Argument(help="Folder that is searched for labelme's JSON files.")],
    out: OutFile,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Labels to convert, separated by commas; all by default.")
    ] = None,
) -> None:
    """labelme's JSON files: polygons, rectangles, circles and masks.

    Example: [cyan]solo-attn convert labelme labelled labelled.json --classes leaf,stem[/cyan]

    Shapes with the same label and group_id are one object. After it was killed, the same command resumes.
    """
    from ..formats import convert_labelme

    check_output(out, "convert", "OUT.json")
    total = sum(1 for _ in folder.rglob("*.json"))
    with _arguments(), progress("converting", total) as advance:
        found = convert_labelme(
            folder, out, classes=None if classes is None else _names(classes), advance=advance
        )
    _tell(folder, out, str(found))


@conversion
def yolo(
    data: Annotated[Path, typer.Argument(help="The dataset's YAML file, often data.yaml.")],
    out: OutFile,
    split: Annotated[str, typer.Option("--split", help="train, val, test, or another name in it.")] = "train",
) -> None:
    """YOLO's segmentation labels: polygons, one text file an image.

    Example: [cyan]solo-attn convert yolo leaves/data.yaml leaves/train.json --split train[/cyan]

    File names in OUT.json are relative to the folder of the YAML file. After it was killed, the same command
    resumes.
    """
    from ..formats import convert_yolo
    from ..formats.yolo import read_yolo

    check_output(out, "convert", "OUT.json")
    with _arguments(), progress("converting", len(read_yolo(data, split)[1])) as advance:
        found = convert_yolo(data, out, split=split, advance=advance)
    _tell(data.parent, out, str(found))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def _arguments() -> Iterator[None]:
    """Show arguments that the functions refuse as errors of usage."""
    from ..data import DatasetError

    try:
        yield
    except DatasetError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _tell(images: Path, annotations: Path, summary: str) -> None:
    plain_console(soft_wrap=True).print(f"{annotations}: {summary}\n  its images: {images}")
