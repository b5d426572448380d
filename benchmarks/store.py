"""Keep a finished run's numbers beside the code, for `make results` to write into the README.

python benchmarks/store.py demo demo
python benchmarks/store.py nuclei runs/nuclei runs/nuclei/overlays/results.json
python benchmarks/store.py inspect nuclei=runs/inspect_nuclei photographs=runs/inspect_photographs
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from readme import IMAGES, RESULTS

PICTURES, SCORE = 3, 0.3  # of the images that are drawn, and from which on

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="The folder that `solo-attn demo` wrote.")]) -> None:
    """Numbers and figure of the demo."""
    shutil.copyfile(folder / "results.json", RESULTS / "demo.json")
    shutil.copyfile(folder / "figure5.png", IMAGES / "demo_figure5.png")


@app.command()
def nuclei(
    run: Annotated[Path, typer.Argument(help="The folder that `solo-attn train` wrote.")],
    found: Annotated[Path, typer.Argument(help="results.json that `solo-attn predict` wrote.")],
) -> None:
    """Numbers of a training, and the instances found on a few images from crowded to sparse."""
    shutil.copyfile(run / "result.json", RESULTS / "nuclei.json")
    images: dict[str, list[dict[str, object]]] = {}
    for result in json.loads(found.read_text(encoding="utf-8")):
        if result["score"] >= SCORE:
            images.setdefault(Path(result["file_name"]).name, []).append(result)
    names = sorted(images, key=lambda name: (-len(images[name]), name))
    chosen = [names[k * (len(names) - 1) // PICTURES] for k in range(PICTURES)]
    kept = [{**r, "file_name": name} for name in chosen for r in images[name]]
    (RESULTS / "nuclei_found.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@app.command()
def inspect(
    reports: Annotated[list[str], typer.Argument(help="NAME=FOLDER that `solo-attn inspect` wrote.")],
) -> None:
    """What was counted on each data set."""
    named = (report.partition("=") for report in reports)
    found = {name: json.loads((Path(folder) / "inspect.json").read_text()) for name, _, folder in named}
    (RESULTS / "inspect.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    RESULTS.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    app()
