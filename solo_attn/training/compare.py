"""The paper's experiment: its three systems, trained alike over several seeds, in its own tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..bench import environment
from ..data import CocoInstances, eval_transforms
from ..evaluation import (
    SYSTEMS,
    CocoMetrics,
    comparison_plot,
    paper_table3,
    paper_table4,
    side_by_side,
    summary_json,
)
from .checkpoint import load_model, write_atomically
from .config import Config, ConfigError, changes, differences
from .train import FREE, RESULT, train

FIGURE_IMAGES = 3  # as many samples as the paper's Figure 5 has


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: a system's name -> the metrics of each seed.
        files: the tables, the numbers behind them and the pictures.
    """

    rows: dict[str, list[CocoMetrics]]
    files: list[Path]


def system_config(config: Config, system: str, seed: int) -> Config:
    """``config`` with what tells a system of Table 3 from the others.

    Raises:
        ConfigError: no system of that name.
    """
    settings: dict[str, dict[str, Any]] = {
        SYSTEMS[0]: {"coords": None, "attention": False},
        SYSTEMS[1]: {"coords": config.model.coords or "paper", "attention": False},
        SYSTEMS[2]: {"coords": config.model.coords or "paper", "attention": True},
    }
    if system not in settings:
        raise ConfigError(f"compare: expected systems among {', '.join(SYSTEMS)}, got {system!r}")
    values = config.as_dict()
    values["model"] |= settings[system]
    values["train"]["seed"] = seed
    return Config.from_dict(values)


def compare(
    config: Config,
    seeds: Sequence[int],
    out_dir: str | Path,
    systems: Sequence[str] = SYSTEMS,
    *,
    console: Console | None = None,
) -> Comparison:
    """Train and validate each system with each seed, and write the paper's Tables 3 and 4 and Figure 5.

    Every run lies in a folder of its own below ``out_dir/runs``. One that is finished is read from its
    ``result.json``, one that was interrupted goes on from its checkpoint. The numbers are those of the last
    epoch, not of the best one: the validation images must not choose the model. Processes with seeds of
    their own may share ``out_dir``: the same command with all the seeds then only makes the tables.

    Args:
        config: what the systems have in common; ``train.seed`` is not used.
        seeds: one run of each system for each.
        out_dir: receives ``tables.md``, ``results.json``, ``comparison.png`` and ``figure5.png``.
        systems: names of Table 3.
        console: where progress goes; a new one by default.

    Raises:
        ConfigError: an unknown system, no seed, more than one device, or finished runs in ``out_dir`` that
            had other settings.
        DatasetError, TrainingError: see `train`.
    """
    out_dir, console = Path(out_dir), console or Console()
    if not seeds or not systems:
        raise ConfigError(f"compare: expected seeds and systems, got {list(seeds)} and {list(systems)}")
    if config.train.devices != 1:
        # DDP starts this whole program again on every rank, and each would find other runs finished.
        raise ConfigError(
            f"compare: expected train.devices to be 1, got {config.train.devices}; use several devices by "
            f"running one process for each, with CUDA_VISIBLE_DEVICES and train.seed of its own"
        )
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    # Seeds outside: an interrupted comparison has whole rows of the table rather than single systems.
    for seed in seeds:
        for system in systems:
            results[system].append(_run(system_config(config, system, seed), system, out_dir, console))
    rows = {system: [CocoMetrics(**r["metrics"]) for r in found] for system, found in results.items()}
    return Comparison(rows, _write(config, seeds, out_dir, rows, results))


def _folder(out_dir: Path, system: str, seed: int) -> Path:
    slug = "".join(c if c.isalnum() else "_" for c in system.lower()).strip("_").replace("__", "_")
    return out_dir / "runs" / f"{slug}-seed{seed}"


def _run(config: Config, system: str, out_dir: Path, console: Console) -> dict[str, Any]:
    seed = config.train.seed
    folder = _folder(out_dir, system, seed)
    file = folder / RESULT
    done = file.exists()
    if not done:
        console.print(f"{system}, seed {seed}: training", highlight=False)
        train(config, folder, resume=True, console=console)
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    before = Config.from_dict(result["config"], str(file))
    if keys := [key for key in differences(before, config) if key not in FREE]:
        raise ConfigError(
            f"compare: expected the settings that {folder} was trained with, but "
            f"{changes(before, config, keys)}; name another folder with --out or remove {out_dir}"
        )
    if done:
        console.print(
            f"{system}, seed {seed}: done before, AP {100 * result['metrics']['ap']:.1f}", highlight=False
        )
    return result


def _write(
    config: Config,
    seeds: Sequence[int],
    out_dir: Path,
    rows: dict[str, list[CocoMetrics]],
    results: dict[str, list[dict[str, Any]]],
) -> list[Path]:
    tables, numbers = out_dir / "tables.md", out_dir / "results.json"
    plot, figure = out_dir / "comparison.png", out_dir / "figure5.png"
    # The paper's Table 4 leaves the system without coordinates out; a fuller table does no harm.
    text = (
        f"Validation AP, mean ± standard deviation of {len(seeds)} seed(s).\n\n"
        f"Table 3\n\n{paper_table3(rows)}\nTable 4\n\n{paper_table4(rows)}"
    )
    write_atomically(tables, text.encode())
    _write_json(
        numbers,
        {
            "summary": summary_json(rows),
            "config": config.as_dict(),
            "environment": environment(),
            "runs": {
                system: [
                    {"seed": seed, **{key: run[key] for key in ("steps", "seconds", "environment")}}
                    for seed, run in zip(seeds, found, strict=True)
                ]
                for system, found in results.items()
            },
        },
    )
    comparison_plot(rows, plot)
    _figure5(config, seeds[0], out_dir, list(rows), figure)
    return [tables, numbers, plot, figure]


def _figure5(config: Config, seed: int, out_dir: Path, systems: Sequence[str], path: Path) -> None:
    """The systems' instances on the first validation images, the same for all."""
    data = config.data
    dataset = CocoInstances(
        data.val_images, data.val_annotations, eval_transforms(), on_degenerate=data.on_degenerate
    )
    samples = [dataset[index] for index in range(min(FIGURE_IMAGES, len(dataset)))]
    images, truth = [image for image, _ in samples], [target for _, target in samples]
    predictions = {}
    for system in systems:
        model, _ = load_model(_folder(out_dir, system, seed) / "last.ckpt")
        with torch.inference_mode():
            predictions[system] = [model([image])[0] for image in images]
    side_by_side(
        images,
        predictions,
        path,
        class_names=dataset.class_names,
        ground_truth=[
            {key: value for key, value in t.items() if key in ("boxes", "labels", "masks")} for t in truth
        ],
    )


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
