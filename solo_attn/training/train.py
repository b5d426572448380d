"""Train one model by a configuration, and resume where an earlier process stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import Progress

from .._utils.environment import environment, first_process
from .._utils.errors import SoloAttnError
from .._utils.files import alone_in, write_durably
from .._utils.readers import one_line
from .._utils.signals import SignalledError
from ..evaluation import CocoMetrics, evaluate_model, learning_curve, write_report
from ..models import CheckpointError, build_solo, take_weights
from .callbacks import (
    Average,
    BestCheckpoint,
    EpochBar,
    EpochLines,
    LastCheckpoint,
    Limits,
    Patience,
    StopAt,
    quiet_lightning,
)
from .config import Config, ConfigError, settled
from .datamodule import SOLODataModule
from .features import cache_features, refuse_varied
from .loggers import logged, logging_to
from .module import SOLOModule
from .resume import AtomicCheckpointIO, prepare, refuse_second
from .signals import StopOnSignal, own_interrupts

REPORT = "report.html"
RESULT = "result.json"  # of a run that is finished, or was stopped by its minutes


@dataclass(frozen=True)
class TrainResult:
    """The result of `train`.

    Attributes:
        run_dir: folder of config.yaml, the checkpoints and the logs.
        last: the newest checkpoint.
        best: the checkpoint with the best AP of the validations between epochs, None if there were none.
        metrics: of the model at the end, on the validation images.
        test_metrics: the same on the test images; None where the configuration names none.
        steps: optimizer steps, those before a resume included.
        seconds: of training and validation, those before a resume included.
        device: that it ended on.
    """

    run_dir: Path
    last: Path
    best: Path | None
    metrics: CocoMetrics
    test_metrics: CocoMetrics | None
    steps: int
    seconds: float
    device: str

    @property
    def report(self) -> Path:
        """The page with metrics, curves and pictures."""
        return self.run_dir / REPORT


def train(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = False,
    deadline: float | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> TrainResult:
    """Train, validate, and evaluate once on the test images, in float32, if there are any.

    The run folder receives ``config.yaml``, ``last.ckpt`` (after each epoch and every
    ``train.checkpoint_steps``), ``best.ckpt`` (of whole epochs, that with the highest validation AP; with
    ``train.ema`` the weights that both give to `load_model` are the averages, which were validated),
    the logs of ``train.logger``, ``csv/`` and at the end ``result.json``, ``curve.png`` and ``report.html``.

    On a CPU, a run that was killed, or stopped by ``train.max_minutes``, and then resumed has bitwise the
    weights, steps and metrics of an uninterrupted one: the order of the images, their augmentation and the
    random choices of a step depend only on the seed and the position. Each stop by minutes is validated too,
    which only adds to the logs.

    Args:
        config: what to train, on which data.
        run_dir: folder of the run, created if it does not exist.
        resume: continue from ``last.ckpt`` if there is one, else start.
        deadline: of `time.monotonic`, at which a checkpoint is saved and `UnfinishedError` raised.
        callbacks: Lightning's, which are called after those of this package.
        console: where progress goes; a new one by default.

    Raises:
        ConfigError: a setting that cannot be used, a run in ``run_dir`` though ``resume`` is off, or one
            that was started with other settings.
        CheckpointError: nothing of ``train.init_from`` can be used, or ``last.ckpt`` cannot be resumed.
        DatasetError: data that cannot be used; nothing has been trained then.
        UsageError: another run is at work in ``run_dir``.
        TrainingError: the loss is not finite.
        SignalledError: SIGTERM or SIGINT came; ``last.ckpt`` is saved where it can be.
        UnfinishedError: the deadline came first.
    """
    run_dir, console, config = Path(run_dir), console or Console(), settled(config)
    last = run_dir / "last.ckpt"
    refuse_second(last, resume)
    processes, first = config.train.processes, first_process()
    if deadline is not None and processes > 1:
        # Each process would use its own clock, and wait for the others when it saves.
        raise ConfigError(f"train: expected one device with a deadline, got {processes}")
    datamodule = SOLODataModule(config)
    datamodule.setup("fit")  # the model and the checks need the data before there is a trainer
    if config.train.cache_features is not None:
        refuse_varied(config)
    if len(datamodule.val_set) < processes:
        raise ConfigError(
            f"config: expected at least one validation image for each of {processes} devices, got "
            f"{len(datamodule.val_set)}"
        )
    if config.data.check_images and not last.exists() and first:
        _check_images(datamodule, console)
    for part in (datamodule.train_set, datamodule.val_set):
        if part.summary.images_without_objects == part.summary.images:
            console.print(
                f"warning: {part.annotations} has no object in any image", highlight=False, markup=False
            )
    with (
        alone_in(run_dir) if first else nullcontext(),
        quiet_lightning(),
        logging_to(config, run_dir) as loggers,
    ):
        refuse_second(last, resume)
        pl.seed_everything(config.train.seed, verbose=False)
        try:
            model = build_solo(datamodule.train_set.num_classes, config.model)
        except ValueError as error:
            raise ConfigError(f"config: the section model does not make a model: {error}") from error
        names = list(datamodule.train_set.class_names)
        begun = None
        if config.train.init_from is not None and not last.exists():
            begun = take_weights(model, config.train.init_from, names)
        if config.train.cache_features is not None:
            cache_features(model, config.train.cache_features)
        module = SOLOModule(model, config, names, list(datamodule.train_set.category_ids))
        timer, steps = Timer(), datamodule.total_steps(processes)
        watch = StopOnSignal(last, console, listens=processes == 1)
        files = AtomicCheckpointIO()
        trainer = _trainer(config, run_dir, files, timer, watch, steps, loggers, callbacks, console)
        if deadline is not None:
            # After the average, which it saves too.
            place = 0 if config.train.ema is None else 1
            trainer.callbacks.insert(place, StopAt(deadline, last))  # type: ignore[attr-defined]
        if trainer.precision != config.train.precision:  # Lightning would use another one with only a warning
            raise ConfigError(
                "config: expected train.precision to be one that this machine has, bf16-mixed or 32-true, "
                f"got {config.train.precision}"
            )
        resumed = last.exists()
        if trainer.is_global_zero:
            prepare(config, run_dir, last, datamodule, files)
            for line in [] if begun is None else begun.lines():
                console.print(f"{config.train.init_from}: {line}", highlight=False)
            begin = f"continuing from {last}" if last.exists() else "training"
            console.print(f"{begin}: {datamodule.train_set.summary}", highlight=False)
        try:
            with own_interrupts():
                trainer.fit(
                    module, datamodule=datamodule, ckpt_path=str(last) if resumed else None, weights_only=True
                )
        except SIGTERMException as error:  # of several processes
            raise SignalledError(
                f"train: ended by SIGTERM; continue from {last} with --resume", SIGTERM
            ) from error
        except Exception as error:
            if not resumed or watch.begun or isinstance(error, SoloAttnError):
                raise
            raise CheckpointError(f"checkpoint: {last} cannot be resumed: {one_line(error)}") from error
        seconds = timer.time_elapsed("train")  # validations between the epochs included
        patience = trainer.early_stopping_callback
        given_up = isinstance(patience, Patience) and patience.over
        stopped = trainer.global_step < steps and not given_up
        if trainer.is_global_zero and given_up:
            console.print(f"stopped: AP no better for {config.train.patience} validations (train.patience)")
        elif trainer.is_global_zero and stopped:
            console.print(f"stopped after {config.train.max_minutes:g} minutes (train.max_minutes)")
        if module.validated_step != trainer.global_step:
            with own_interrupts():
                trainer.validate(module, datamodule=datamodule, verbose=False)
            seconds += timer.time_elapsed("validate")
        tested = None
        if datamodule.test_set is not None and trainer.is_global_zero:
            tested, _ = evaluate_model(
                model.to(trainer.strategy.root_device),
                datamodule.test_set,
                batch_size=config.train.eval_batch_size,
                workers=config.data.workers,
                max_detections=config.train.eval_max_detections,
            )
    assert module.metrics is not None
    best = run_dir / "best.ckpt"
    result = TrainResult(
        run_dir,
        last,
        best if best.exists() else None,
        module.metrics,
        tested,
        trainer.global_step,
        seconds,
        str(trainer.strategy.root_device),
    )
    if trainer.is_global_zero:
        rows = logged(run_dir)
        _store(result, config, stopped, rows)
        write_report(
            run_dir / REPORT,
            datamodule.val_set,
            module.results,
            module.metrics,
            title=f"Training {run_dir.name}",
            facts={"steps": str(result.steps), "minutes": f"{seconds / 60:.1f}", "head": config.model.head},
            curve=rows,
            test_metrics=tested,
        )
    return result


def _check_images(datamodule: SOLODataModule, console: Console) -> None:
    sets = [s for s in (datamodule.train_set, datamodule.val_set, datamodule.test_set) if s is not None]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking images", total=sum(map(len, sets)))
        for dataset in sets:
            dataset.check_images(lambda count: bar.advance(task, count))


def _trainer(
    config: Config,
    run_dir: Path,
    files: AtomicCheckpointIO,
    timer: Timer,
    watch: StopOnSignal,
    steps: int,
    loggers: list[Logger],
    others: Sequence[Callback],
    console: Console,
) -> pl.Trainer:
    train = config.train
    callbacks: list[Callback] = [
        *([] if train.ema is None else [Average(train.ema)]),
        timer,
        Limits(steps, train.max_minutes, timer),
        *([] if train.patience is None else [Patience(train.patience)]),
        EpochLines(console),
        BestCheckpoint(
            run_dir,
            "best",
            monitor="val/ap",
            mode="max",
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        ),
        LastCheckpoint(run_dir / "last.ckpt", train.checkpoint_steps),  # after the best, whose AP it keeps
        watch,
        *others,
    ]
    if console.is_terminal:
        callbacks.append(EpochBar(train.epochs if train.max_steps is None else None))
    strategy: Any = "auto"
    precision: Any = train.precision
    if train.processes > 1:
        strategy = DDPStrategy(process_group_backend="nccl" if _on_cuda(train.accelerator) else "gloo")
    try:
        return pl.Trainer(
            accelerator=train.accelerator,
            devices=train.devices,
            num_nodes=train.nodes,
            strategy=strategy,
            precision=precision,
            max_epochs=-1,  # `Limits` ends it
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=train.clip_norm,
            check_val_every_n_epoch=train.eval_every,
            log_every_n_steps=train.log_every,
            num_sanity_val_steps=1,
            use_distributed_sampler=False,
            logger=loggers,
            callbacks=callbacks,
            plugins=[files],
            enable_model_summary=False,
            enable_progress_bar=console.is_terminal,
        )
    except (pl.utilities.exceptions.MisconfigurationException, ValueError) as error:
        raise ConfigError(
            f"train: {train.devices} device(s) of accelerator {train.accelerator!r} is not available: {error}"
        ) from error


def _store(result: TrainResult, config: Config, stopped: bool, rows: list[dict[str, float]]) -> None:
    """Write result.json, the numbers and how they were measured, and curve.png, the learning curve."""
    if any("train/loss_mask" in row or "val/ap" in row for row in rows):
        learning_curve(rows, result.run_dir / "curve.png")
    stored = {
        "metrics": _with_limit(result.metrics),
        "test_metrics": None if result.test_metrics is None else _with_limit(result.test_metrics),
        "steps": result.steps,
        "stopped": stopped,  # by train.max_minutes, and may be continued
        "seconds": round(result.seconds, 1),
        "environment": environment(result.device),
        "config": config.as_dict(),
        "curve": rows,
    }
    write_durably(result.run_dir / RESULT, (json.dumps(stored, indent=1) + "\n").encode())


def _with_limit(metrics: CocoMetrics) -> dict[str, Any]:
    return {**metrics.as_dict(), "max_detections": metrics.max_detections}


def _on_cuda(accelerator: str) -> bool:
    return accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
