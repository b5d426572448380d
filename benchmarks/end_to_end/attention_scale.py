"""What the scale of the attention's dot products does to learning: short runs that differ in nothing else.

python -m benchmarks.end_to_end.attention_scale configs/nuclei_small.yaml --steps 400 --out FILE.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console

from solo_attn.training import load_config, train
from solo_attn.training.train import RESULT

# The same model without attention; the literal reading of eq. 3, C^-1/2, vectors of length 1, and these times
# a factor.
SETTINGS: dict[str, list[str]] = {
    "no attention": ["model.attention=false"],
    "1": ["model.attention=true", "model.attention_scale=1.0"],
    "C^-1/2": ["model.attention=true", "model.attention_scale=rsqrt"],
    **{
        "cosine" if factor == 1 else f"{factor} x cosine": [
            "model.attention=true",
            "model.attention_scale=cosine",
            f"model.cosine_factor={factor}",
        ]
        for factor in (1, 2, 4, 8, 16)
    },
}


def main(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 400,
    only: Annotated[list[str] | None, typer.Option(help="Of these alone; the file keeps the others.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file with the results.")] = Path("attention_scale.json"),
) -> None:
    """Train each setting for the same steps on the same images, and store losses and AP."""
    console = Console()
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if only and out.exists() else {}
    for name in only or SETTINGS:
        changes = SETTINGS[name]
        console.print(f"attention scale: {name}", highlight=False)
        # Logged every step: means over the last tenth say more than single batches.
        settings = [*(overrides or []), *changes, f"train.max_steps={steps}", "train.log_every=1"]
        run = load_config(config, [*settings, "train.max_minutes=null", f"train.eval_every={steps}"])
        with tempfile.TemporaryDirectory() as folder:
            train(run, folder, console=console)
            result = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
        curve = [row for row in result.pop("curve") if "train/dice" in row]
        last = curve[-max(1, steps // 10) :]
        for key in ("train/dice", "train/loss_category"):
            result[key] = round(fmean(row[key] for row in last), 4)
        found[name] = result
        console.print(
            f"{name}: dice {result['train/dice']:.3f}, AP50 {100 * result['metrics']['ap50']:.1f}",
            highlight=False,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {name: found[name] for name in SETTINGS if name in found}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
