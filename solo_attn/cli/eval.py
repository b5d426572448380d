"""``solo-attn eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._utils.console import plain_console, progress
from .._utils.environment import device_named
from .._utils.errors import UsageError, naming_file
from .._utils.files import check_output
from .app import command


@command
def eval_command(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of the images.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="Their COCO JSON.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the found instances as COCO results JSON.")
    ] = None,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors",
            help="Say why objects are missed and what false positives are; with --out FILE.json also in "
            "FILE.errors.json and FILE.errors.png.",
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw some images with the ground truth and with the predictions."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write numbers, curves and the worst images as one HTML page."),
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

    COCO's numbers are defined with 100 instances of an image; other limits are not comparable.
    """
    from ..data import CocoInstances, classes_differ, eval_transforms
    from ..evaluation import evaluate_model, find_errors, found_beside_truth, write_report
    from ..formats import write_results
    from ..models import load_model

    if errors and batch_size != 1:
        raise UsageError(f"eval: expected --batch-size to be 1 with --errors, got {batch_size}")
    for argument, path in {"--out": out, "--picture": picture, "--report": report}.items():
        if path is not None:
            check_output(path, "eval", argument)
    model, info = load_model(checkpoint, device_named(device))
    # An object without width or height counts as in COCO; only training cannot use it.
    dataset = CocoInstances(
        images,
        annotations,
        eval_transforms(),
        on_degenerate="skip",
        percentiles=model.settings.percentiles,
    )
    if difference := classes_differ(info.categories, dataset.categories):
        raise UsageError(
            f"eval: expected {annotations} to have the categories that {checkpoint} was trained for, got "
            f"{difference}"
        )
    # Checked now and not at the end of an evaluation that would be lost.
    for image_id in dataset.image_ids:
        entry = dataset.coco.imgs[image_id]
        with naming_file(images / str(entry["file_name"])):
            model.check_image_sizes([(entry["height"], entry["width"])])
    if max_detections is None:
        # The number that the training printed, and by which it chose its best checkpoint.
        max_detections = info.config.get("train", {}).get("eval_max_detections", 100)
    with progress("evaluating", len(dataset), unit="images") as advance:
        if errors:
            lost, results = find_errors(model, dataset, max_detections=max_detections, advance=advance)
            metrics = lost.metrics
        else:
            metrics, results = evaluate_model(
                model,
                dataset,
                batch_size=batch_size,
                workers=workers,
                max_detections=max_detections,
                advance=advance,
            )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_results(out, results)
        if errors:
            lost.save(out.with_suffix(".errors.json"))
            lost.draw(out.with_suffix(".errors.png"))
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        found_beside_truth(dataset, results, picture)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_report(
            report,
            dataset,
            results,
            metrics,
            title=f"{checkpoint.name} on {annotations.name}",
            errors=lost if errors else None,
        )
    plain_console().print(str(metrics))
    if errors:
        plain_console().print(lost.table())
