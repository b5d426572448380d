"""Store a finished run's numbers in benchmarks/results, from which `make results` writes the pages.

python -m benchmarks.report.keep_run demo demo
python -m benchmarks.report.keep_run nuclei nuclei_small runs/nuclei_small
python -m benchmarks.report.keep_run nuclei nuclei_pretrained runs/nuclei --found runs/overlays/results.json
python -m benchmarks.report.keep_run comparison nuclei runs/compare
python -m benchmarks.report.keep_run inspect nuclei=runs/inspect_nuclei photographs=runs/inspect_photographs
"""

from __future__ import annotations

import json
import shutil
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .stored import CPU, IMAGES, RESULTS

PICTURES, SCORE = 3, 0.3  # of the images that are drawn, and from which on

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="The folder that `solo-attn demo` wrote.")]) -> None:
    """Numbers and figure of the demo."""
    shutil.copyfile(folder / "results.json", RESULTS / CPU / "demo.json")
    shutil.copyfile(folder / "figure5.png", IMAGES / "demo_figure5.png")


class Recipe(str, Enum):
    """Configurations for nuclei whose numbers docs/results.md shows."""

    nuclei_pretrained = "nuclei_pretrained"
    nuclei_small = "nuclei_small"


@app.command()
def nuclei(
    name: Annotated[Recipe, typer.Argument(help="The configuration that was trained.")],
    run: Annotated[Path, typer.Argument(help="The folder that `solo-attn train` wrote.")],
    found: Annotated[
        Path | None, typer.Option(help="results.json that `solo-attn predict` wrote, to draw some of.")
    ] = None,
) -> None:
    """Numbers of a training, and the instances found on a few images, from many objects to few."""
    shutil.copyfile(run / "result.json", RESULTS / CPU / f"{name.value}.json")
    if found is None:
        return
    images: dict[str, list[dict[str, object]]] = {}
    for result in json.loads(found.read_text(encoding="utf-8")):
        if result["score"] >= SCORE:
            images.setdefault(Path(result["file_name"]).name, []).append(result)
    names = sorted(images, key=lambda name: (-len(images[name]), name))
    chosen = [names[k] for k in sorted({k * (len(names) - 1) // (PICTURES - 1) for k in range(PICTURES)})]
    kept = [{**r, "file_name": name} for name in chosen for r in images[name]]
    (RESULTS / CPU / "nuclei_found.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


class Data(str, Enum):
    """The datasets that systems are compared on; docs/results.md has a section for each."""

    nuclei = "nuclei"
    scenes = "scenes"


@app.command()
def comparison(
    name: Annotated[Data, typer.Argument(help="What it was trained on.")],
    folder: Annotated[Path, typer.Argument(help="The folder that `solo-attn compare` wrote.")],
    machine: Annotated[str, typer.Option(help="A folder of benchmarks/results.")] = CPU,
) -> None:
    """Numbers and plot of a finished comparison; for synthetic scenes also the systems' instances.

    Photographs stay with their dataset.
    """
    (RESULTS / machine).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "results.json", RESULTS / machine / f"comparison_{name.value}.json")
    for kind in ("comparison", "figure5") if name is Data.scenes else ("comparison",):
        # Without checkpoints, which need not be kept, there is no figure 5.
        if (folder / f"{kind}.png").exists():
            shutil.copyfile(folder / f"{kind}.png", IMAGES / f"{machine}_{name.value}_{kind}.png")


@app.command()
def inspect(
    reports: Annotated[list[str], typer.Argument(help="NAME=FOLDER that `solo-attn inspect` wrote.")],
) -> None:
    """The counts of each dataset."""
    named = (report.partition("=") for report in reports)
    found = {name: json.loads((Path(folder) / "inspect.json").read_text()) for name, _, folder in named}
    (RESULTS / CPU / "inspect.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    (RESULTS / CPU).mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    app()
