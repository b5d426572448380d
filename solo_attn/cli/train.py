"""``solo-attn train``, ``eval``, ``compare`` and ``demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .app import UsageError, command, plain_console

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see configs/.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, such as train.epochs=3 model.attention=false.", metavar="[KEY=VALUE]..."
    ),
]


@command
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/train"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last.ckpt where there is one.")
    ] = False,
) -> None:
    """Train one model.

    Example: [cyan]solo-attn train configs/nuclei_small.yaml train.epochs=5 --out runs/nuclei[/cyan]

    The folder receives config.yaml, last.ckpt, best.ckpt (the best whole epoch), TensorBoard logs and CSV. A
    killed run goes on with the same command and --resume, and ends as if it had not been killed.
    """
    from ..training import load_config
    from ..training import train as run

    # With several devices Lightning starts this command again for each: the first one speaks.
    console = plain_console(quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    result = run(load_config(config, overrides or []), out, resume=resume, console=console)
    console.print(str(result.metrics))
    if result.test_metrics is not None:
        console.print(f"on the test images:\n{result.test_metrics}")
    console.print(f"checkpoints: {result.last}" + (f", {result.best}" if result.best else ""), soft_wrap=True)


@command
def eval_command(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the images.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="Their COCO JSON.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the found instances as COCO results JSON.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...; auto takes the best.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that load images.")] = 0,
    max_detections: Annotated[
        int | None,
        typer.Option(
            "--max-detections",
            min=10,
            help="Instances of an image that count; as many as in the model's training by default.",
        ),
    ] = None,
) -> None:
    """Print COCO's twelve numbers of a trained model.

    Example: [cyan]solo-attn eval runs/nuclei/best.ckpt --images images --annotations instances.json[/cyan]

    COCO's numbers are defined with 100 instances of an image; others are not to be compared with them.
    """
    from .._utils.console import pick_device, progress, taking
    from ..data import CocoInstances, eval_transforms
    from ..evaluation import write_results
    from ..training import evaluate_model, load_model

    model, info = load_model(checkpoint, pick_device(device))
    # An object without width or height counts as COCO counts it; only training could not use it.
    dataset = CocoInstances(images, annotations, eval_transforms(), on_degenerate="skip")
    if dataset.category_ids != info.category_ids:
        raise UsageError(
            f"eval: expected {annotations} to have the categories that {checkpoint} was trained for, "
            f"{info.category_ids}, got {dataset.category_ids}"
        )
    # Rather now than at the end of an evaluation that comes to nothing.
    for image_id in dataset.image_ids:
        entry = dataset.coco.imgs[image_id]
        with taking(images / str(entry["file_name"])):
            model.check_image_sizes([(entry["height"], entry["width"])])
    if max_detections is None:
        # What the training printed, and chose its best checkpoint by.
        max_detections = info.config.get("train", {}).get("eval_max_detections", 100)
    with progress("evaluating", len(dataset)) as advance:
        metrics, results = evaluate_model(
            model,
            dataset,
            batch_size=batch_size,
            workers=workers,
            max_detections=max_detections,
            advance=advance,
        )
    plain_console().print(str(metrics))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_results(out, results)


@command
def compare(
    config: ConfigFile,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds for each system.")] = 3,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and tables.")] = Path("runs/compare"),
    scales: Annotated[
        bool, typer.Option("--scales", help="Also attention of other scales: 1, C^-1/2, cosine, 4 x cosine.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Stop after so many, with exit status 75 if more remains to be done."),
    ] = None,
) -> None:
    """Train the three systems of the paper's Table 3 over several seeds and tabulate them.

    Example: [cyan]solo-attn compare configs/paper_nuclei.yaml --seeds 3 --out runs/paper_nuclei[/cyan]

    Finished runs are kept: the same command again goes on where it was stopped. The seeds are train.seed,
    train.seed + 1 and so on. The tables are of data.test_annotations where the configuration has them.
    """
    from ..training import UnfinishedError, load_config, systems_of
    from ..training import compare as run

    settings, console = load_config(config, overrides or []), plain_console()
    first, systems = settings.train.seed, systems_of(settings, scales=scales)
    try:
        comparison = run(
            settings, range(first, first + seeds), out, systems, minutes=minutes, console=console
        )
    except UnfinishedError as error:
        console.print(str(error), soft_wrap=True)
        raise typer.Exit(TRY_AGAIN) from error
    _show(console, comparison)


@command
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds for each system.")] = 1,
) -> None:
    """Draw synthetic street scenes, train the paper's three systems small, and compare them.

    Example: [cyan]solo-attn demo[/cyan]   (a few minutes on two CPU cores, nothing is downloaded)

    Run again, it skips what is done.
    """
    from ..training import demo as run

    console = plain_console()
    _show(console, run(out, seeds=seeds, overrides=overrides or [], console=console))
    if seeds == 1:
        console.print("one seed and minutes of training: a demonstration, not evidence")


def _show(console: Console, comparison: object) -> None:
    from ..evaluation import rich_table
    from ..training import Comparison

    assert isinstance(comparison, Comparison)
    console.print(rich_table(comparison.rows))
    for path in comparison.files:
        console.print(f"  {path}", soft_wrap=True)
