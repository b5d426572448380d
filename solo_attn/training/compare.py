"""The paper's experiment: its three systems, or others, trained alike over several seeds, in its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich.console import Console

from .._utils.environment import environment
from .._utils.files import write_durably
from .._utils.text import shown
from ..evaluation import (
    SYSTEMS,
    CocoMetrics,
    comparison_plot,
    paper_table3,
    paper_table4,
    side_by_side,
    summary_json,
    write_comparison_report,
)
from ..evaluation.pictures import spread
from ..models import ModelSettings, load_model
from .callbacks import UnfinishedError
from .config import Config, ConfigError, DataConfig, read_yaml, settled
from .datamodule import evaluated
from .runs import Run, finish

FIGURE_IMAGES = 3  # as many samples as the paper's Figure 5 has
_SYSTEMS_FILE = (
    "systems, each a name with the settings that it changes below it, such as "
    '"SOLOv2, light: {model: {head: solov2_light}}"'
)
_OF_ATTENTION = ("attention_vectors", "attention_gain", "attention_offset")

FORMS: dict[str, dict[str, str]] = {
    "Attention, dot products as they are": {"attention": "literal", "attention_vectors": "features"},
    "Attention, gated": {"attention": "gated", "attention_vectors": "features"},
    "Attention, gated, projection": {"attention": "gated", "attention_vectors": "projection"},
    "Attention, gated, position": {"attention": "gated", "attention_vectors": "position"},
}
"""Ways to add the attention (docs/method.md, "Attention"): the paper's to the letter, and the gate on each V.

Bare cosines and products times C^-1/2 are not among them: what they come to is known (docs/results.md, "The
scale of the attention").
"""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: a system's name -> the metrics of each seed.
        files: the tables, the numbers behind them and the pictures.
    """

    rows: dict[str, list[CocoMetrics]]
    files: list[Path]


def systems_of(config: Config, *, forms: bool = False) -> tuple[str, ...]:
    """The systems of Table 3; with ``forms`` also the attention in the forms that ``config`` has not."""
    model = config.as_dict()["model"]
    others = [name for name, form in FORMS.items() if model != model | form]
    return (*SYSTEMS, *(others if forms else ()))


def system_config(config: Config, system: str, seed: int) -> Config:
    """``config`` with what tells a system of Table 3, or of `FORMS`, from the others.

    Raises:
        ConfigError: no system of that name, or a configuration without attention.
    """
    coords = config.model.coords or "paper"
    if config.model.attention is None:
        raise ConfigError("compare: expected model.attention to be the form that is compared, got null")
    # What only attention uses is the same for all without it, so that finished runs serve whatever it is.
    unused = {name: ModelSettings.model_fields[name].default for name in _OF_ATTENTION}
    without = {**unused, "attention": None}
    settings: dict[str, dict[str, Any]] = {
        SYSTEMS[0]: {"coords": None, **without},
        SYSTEMS[1]: {"coords": coords, **without},
        SYSTEMS[2]: {"coords": coords},
        **{name: {"coords": coords, **form} for name, form in FORMS.items()},
    }
    if system not in settings:
        raise ConfigError(f"compare: expected systems among {', '.join(settings)}, got {system!r}")
    values = config.as_dict()
    values["model"] |= settings[system]
    values["train"]["seed"] = seed
    return Config.from_dict(values)


def read_systems(path: str | Path) -> dict[str, Mapping[str, Any]]:
    """Systems from a YAML file: a name of each, and under it what it changes in a configuration, by section.

    Raises:
        ConfigError: no such file, or one that holds something else.
    """
    found = read_yaml(path, _SYSTEMS_FILE)
    if not found:
        raise ConfigError(f"{path}: expected {_SYSTEMS_FILE}, got none")
    systems = {name: {} if changed is None else changed for name, changed in found.items()}
    for name, changed in systems.items():
        if not isinstance(changed, Mapping) or not all(
            isinstance(section, str) and isinstance(part, Mapping) for section, part in changed.items()
        ):
            if set(found) <= set(Config.model_fields):
                raise ConfigError(
                    f"{path}: expected {_SYSTEMS_FILE}, got the sections of a configuration, "
                    f"{shown([*found])}"
                )
            raise ConfigError(
                f"{path}: expected under the system {name!r} sections (model, data, train) with their "
                f"settings, got {shown(changed)}"
            )
    if len({_slug(name) for name in systems}) < len(systems):
        raise ConfigError(
            f"{path}: expected systems whose names differ in letters or digits, got {shown([*systems])}"
        )
    return systems


def _named(config: Config, name: str, changed: Mapping[str, Any], seed: int) -> Config:
    values = config.given()  # a head that a system has brings its own defaults
    for section, settings in {**changed, "train": {**changed.get("train", {}), "seed": seed}}.items():
        values[section] = values.get(section, {}) | dict(settings)
    return Config.from_dict(values, f"compare: {name}")


def _config_of(
    config: Config, systems: Sequence[str] | Mapping[str, Mapping[str, Any]], system: str, seed: int
) -> Config:
    if isinstance(systems, Mapping):
        return _named(config, system, systems[system], seed)
    return system_config(config, system, seed)


def compare(
    config: Config,
    seeds: Sequence[int],
    out_dir: str | Path,
    systems: Sequence[str] | Mapping[str, Mapping[str, Any]] = SYSTEMS,
    *,
    minutes: float | None = None,
    jobs: int = 1,
    console: Console | None = None,
) -> Comparison:
    """Train and evaluate each system with each seed, and write the paper's Tables 3 and 4 and Figure 5.

    The numbers are those of the test images where the configuration names some, else of the validation
    images. Every run lies in a folder of its own below ``out_dir/runs``. One that is finished is read from
    its ``result.json``, which is all of it that has to be kept; one that was interrupted continues from its
    checkpoint. The weights are those of the last epoch, not of the best one: the validation images must not
    choose the model. Processes with seeds of their own may share ``out_dir``: the same command with all the
    seeds then only makes the tables.

    Args:
        config: what the systems have in common; ``train.seed`` is not used.
        seeds: one run of each system for each.
        out_dir: receives ``tables.md``, ``results.json``, ``comparison.png``, ``figure5.png`` and
            ``report.html``.
        systems: names of Table 3 and of `FORMS`, or systems as `read_systems` gives them.
        minutes: end with `UnfinishedError` after so many, for machines with a time limit. A run that is at
            its end by then is still evaluated.
        jobs: train so many runs at a time, each in a process of its own with its share of the threads and
            with its own memory; what it prints goes to ``train.log`` in its folder. A run that is the only
            one left is trained here, by all threads. On a CPU small models are trained faster so. On a
            GPU the runs share its memory. The processes are started anew, so that a program calls this below
            ``if __name__ == "__main__":``, and what it has set in Python itself, such as
            ``solo_attn.limits``, is not set in them, but environment variables are. After an error or a
            signal the other runs save a checkpoint and end.
        console: where progress goes; a new one by default.

    Raises:
        ConfigError: an unknown system, no seed, more than one device, no number of jobs, or finished runs in
            ``out_dir`` that had other settings.
        DatasetError, TrainingError: see `train`; with ``jobs`` also a process that was killed.
        SignalledError: SIGTERM or SIGINT came.
        UnfinishedError: ``minutes`` are over; the same call continues.
    """
    out_dir, console, config = Path(out_dir), console or Console(), settled(config)
    if not seeds or not systems:
        raise ConfigError(f"compare: expected seeds and systems, got {list(seeds)} and {list(systems)}")
    if config.train.processes != 1:
        # DDP starts this whole program again on every rank, and each would find other runs finished.
        raise ConfigError(
            f"compare: expected train.devices to be 1, got {config.train.processes}; use several devices by "
            f"running one process for each, with CUDA_VISIBLE_DEVICES and train.seed of its own"
        )
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ConfigError(f"compare: expected jobs to be an integer of at least 1, got {shown(jobs)}")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    # Seeds outside: an interrupted comparison has whole rows of the table rather than single systems.
    runs = [
        Run(system, _folder(out_dir, system, seed), _config_of(config, systems, system, seed))
        for seed in seeds
        for system in systems
    ]
    try:
        finish(runs, jobs, deadline, console)
    except UnfinishedError as error:
        done = sum(run.done for run in runs)
        raise UnfinishedError(
            f"compare: {minutes:g} minutes are over with {done} of {len(runs)} runs finished; the same "
            f"command continues"
        ) from error
    results: dict[str, list[dict[str, Any]]] = {
        system: [run.result() for run in runs if run.system == system] for system in systems
    }
    part = _tables_of(config.data)
    rows = {system: [CocoMetrics(**r[part.metrics]) for r in found] for system, found in results.items()}
    return Comparison(rows, _write(config, seeds, out_dir, rows, results))


class _Part(NamedTuple):
    """What the tables are of: its name, its metrics in `RESULT`, its images and annotations."""

    name: str
    metrics: str
    images: str
    annotations: str


def _tables_of(data: DataConfig) -> _Part:
    if data.test_annotations:
        return _Part("test", "test_metrics", data.test_images, data.test_annotations)
    return _Part("validation", "metrics", data.val_images, data.val_annotations)


def _folder(out_dir: Path, system: str, seed: int) -> Path:
    return out_dir / "runs" / f"{_slug(system)}-seed{seed}"


def _slug(system: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in system.lower()).strip("_").replace("__", "_")


def _write(
    config: Config,
    seeds: Sequence[int],
    out_dir: Path,
    rows: dict[str, list[CocoMetrics]],
    results: dict[str, list[dict[str, Any]]],
) -> list[Path]:
    tables, numbers = out_dir / "tables.md", out_dir / "results.json"
    plot, figure, page = (out_dir / name for name in ("comparison.png", "figure5.png", "report.html"))
    split = _tables_of(config.data).name
    many = f"mean ± standard deviation of {len(seeds)} seeds"
    of_seeds = many if len(seeds) > 1 else "of one seed"
    # The paper's Table 4 leaves the system without coordinates out; a fuller table does no harm.
    text = (
        f"AP on the {split} images, {of_seeds}.\n\n"
        f"Table 3\n\n{paper_table3(rows)}\nTable 4\n\n{paper_table4(rows)}"
    )
    write_durably(tables, text.encode())
    _write_json(
        numbers,
        {
            "split": split,
            "summary": summary_json(rows),
            "config": config.as_dict(),
            "environment": environment(),
            "runs": {
                system: [
                    {
                        "seed": seed,
                        **{key: run[key] for key in ("steps", "seconds", "environment")},
                        "losses": last_losses(run["curve"]),
                        "validation": run["metrics"],
                    }
                    for seed, run in zip(seeds, found, strict=True)
                ]
                for system, found in results.items()
            },
        },
    )
    comparison_plot(rows, plot)
    drawn = _figure5(config, seeds[0], out_dir, list(rows), figure)
    write_comparison_report(
        page,
        rows,
        title=f"Comparison {out_dir.name}",
        facts={"AP on": f"the {split} images"},
        curves={system: found[0]["curve"] for system, found in results.items()},
        pictures={"Objects and instances": figure} if drawn else {},
    )
    return [tables, numbers, plot, *([figure] if drawn else []), page]


def last_losses(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Dice and focal loss, means over what was logged in the last tenth of the steps."""
    logged = [row for row in curve if "train/dice" in row]
    end = [row for row in logged if row["step"] >= 0.9 * logged[-1]["step"]]
    return {
        name: fmean(row[key] for row in end)
        for name, key in (("dice", "train/dice"), ("focal", "train/loss_category"))
        if end
    }


def _figure5(config: Config, seed: int, out_dir: Path, systems: Sequence[str], path: Path) -> bool:
    """The systems' instances on the same images, from few objects to many; False if there are none."""
    checkpoints = {system: _folder(out_dir, system, seed) / "last.ckpt" for system in systems}
    checkpoints = {system: file for system, file in checkpoints.items() if file.exists()}
    if not checkpoints:
        return False
    part = _tables_of(config.data)
    dataset = evaluated(config, part.images, part.annotations)
    samples = [dataset[index] for index in spread(dataset, FIGURE_IMAGES, empty=False)]
    if not samples:
        return False
    images, truth = [image for image, _ in samples], [target for _, target in samples]
    predictions = {}
    for system, checkpoint in checkpoints.items():
        model, _ = load_model(checkpoint)
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
    return True


def _write_json(path: Path, value: Any) -> None:
    write_durably(path, (json.dumps(value, indent=2) + "\n").encode())
