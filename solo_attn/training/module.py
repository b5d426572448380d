"""SOLO's losses, optimizer and validation as a Lightning module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from .._utils.errors import SoloAttnError
from ..evaluation import CocoMetrics, evaluate
from ..formats import coco_results
from ..models import SOLO, ModelInfo
from ..models.checkpoint import write_info
from .config import Config, TrainConfig
from .datamodule import SOLODataModule, mix


class TrainingError(SoloAttnError, RuntimeError):
    """Training cannot continue: names the step, the images, and what to try."""


class SOLOModule(pl.LightningModule):
    """Trains a `SOLO` by a `Config` (docs/method.md, "Training") and validates it as COCO does.

    Logs ``train/loss``, ``train/loss_category``, ``train/loss_mask``, ``train/dice`` (the dice loss in
    0..1: staying near 1 means that masks have not started to learn) and ``train/lr``; after each validation
    ``val/ap``, ``val/ap50`` and so on.

    Attributes:
        metrics: of the last validation, None before it.
        results: of all ranks that it was made from, on the first one; as COCO results.
        validated_step: the optimizer step that ``metrics`` belong to, -1 before.
    """

    model: SOLO
    config: Config
    info: ModelInfo
    validated_step: int

    def __init__(self, model: SOLO, config: Config, class_names: list[str], category_ids: list[int]) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.info = ModelInfo(model.config, class_names, category_ids, config.as_dict())
        self.metrics: CocoMetrics | None = None
        self.results: list[dict[str, Any]] = []
        self.validated_step = -1
        self._results: list[dict[str, Any]] = []

    @property
    def datamodule(self) -> SOLODataModule:
        """The trainer's."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD or AdamW with warm-up and decay at every optimizer step."""
        train, world_size = self.config.train, self.trainer.world_size
        rate = scaled_learning_rate(train, world_size)
        parameters = self._parameter_groups(rate)
        optimizer: torch.optim.Optimizer
        if train.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, rate, train.momentum, weight_decay=train.weight_decay)
        else:
            # One pass over the weights instead of ten; but Lightning does not clip the gradients of a fused
            # optimizer in mixed precision.
            fused = train.precision == "32-true"
            optimizer = torch.optim.AdamW(parameters, rate, weight_decay=train.weight_decay, fused=fused)
        factor = learning_rate_factor(train, self.datamodule.total_steps(world_size))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups with their own learning rate: backbone body, attention gains and offsets."""
        train = self.config.train
        groups: dict[str, list[torch.nn.Parameter]] = {"body": [], "gate": [], "rest": []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                group = "rest"
                if name.startswith("backbone.body."):
                    group = "body"
                elif name.startswith("head.attention.") and name.endswith(("log_gain", "offset")):
                    group = "gate"
                groups[group].append(parameter)
        decay = train.weight_decay
        settings = {
            "rest": {"lr": rate, "weight_decay": decay},
            "body": {"lr": rate * train.backbone_rate, "weight_decay": decay},
            "gate": {"lr": rate * train.gate_rate, "weight_decay": 0.0},
        }
        return [{"params": groups[name], **found} for name, found in settings.items() if groups[name]]

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> Tensor:
        """The sum of both losses.

        Raises:
            TrainingError: it is not finite.
        """
        images, targets = batch
        # The random choices of a step, such as the image's size, depend only on its number, so that a resumed
        # run makes the same ones.
        torch.manual_seed(mix(self.config.train.seed, self.datamodule.batches_done, self.global_rank))
        self.datamodule.batch_taken()
        losses = self.model(images, targets)
        loss = losses["loss_category"] + losses["loss_mask"]
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
            ids = ", ".join(str(int(t["image_id"])) for t in targets)
            raise TrainingError(
                f"training: expected a finite loss at step {self.global_step}, got {values} on the images "
                f"with id {ids}; try a lower train.learning_rate, more train.warmup_steps"
                + (" or train.precision=bf16-mixed" if self.config.train.precision == "16-mixed" else "")
            )
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        logged = {f"train/{name}": value.detach() for name, value in losses.items()}
        logged["train/dice"] = logged["train/loss_mask"] / self.model.settings.mask_loss_weight
        logged["train/lr"] = torch.tensor(self.lr_schedulers().get_last_lr()[0])  # type: ignore[union-attr]
        self.log_dict(logged, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Clear the last validation's results."""
        self._results = []

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        """Collect the instances found on this batch."""
        images, targets = batch
        for target, prediction in zip(targets, self.model.predict(images, rle=True), strict=True):
            self._results += coco_results(int(target["image_id"]), prediction, self.info.category_ids)

    def on_validation_epoch_end(self) -> None:
        """Evaluate the results of all ranks."""
        if self.trainer.sanity_checking:
            return
        self.metrics, self.results = gather_and_evaluate(
            self.datamodule.val_set.coco, self._results, self.config.train.eval_max_detections
        )
        self.validated_step = self.global_step
        named = {f"val/{name}": value for name, value in self.metrics.as_dict().items()}
        # Steps done and the epoch of the last one, the same in a training, after it and where it is resumed
        # behind its end: Lightning's own numbers differ by one there.
        named |= {"step": float(self.global_step), "epoch": float(self.datamodule.epochs_begun - 1)}
        # Equal on all ranks, so their mean changes nothing; without it Lightning warns.
        self.log_dict(named, sync_dist=self.trainer.world_size > 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `load_model` needs to rebuild the model."""
        write_info(checkpoint, self.info)


def gather_and_evaluate(
    coco: Any, results: list[dict[str, Any]], max_detections: int
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """The metrics of the results of all ranks together, the same on each rank, and these results."""
    if not (dist.is_available() and dist.is_initialized()):
        return evaluate(coco, results, max_detections=max_detections), results
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    together = [result for part in gathered for result in part]
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        answer = [evaluate(coco, together, max_detections=max_detections)]
    dist.broadcast_object_list(answer, src=0)
    return answer[0], together


def learning_rate_factor(train: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """From the number of steps done to the factor on the learning rate (docs/method.md, "Training").

    Linear from ``warmup_ratio`` to 1 over ``warmup_steps``, times ``gamma`` at each milestone or a
    cosine to 0. A run shorter than its warm-up never reaches the full rate: such configurations need fewer
    warm-up steps.
    """
    milestones = [round(m * total_steps) for m in train.milestones]

    def factor(step: int) -> float:
        warm = 1.0
        if step < train.warmup_steps:
            warm = train.warmup_ratio + (1 - train.warmup_ratio) * step / train.warmup_steps
        if train.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))
        return warm * train.gamma ** sum(step >= m for m in milestones)

    return factor


def scaled_learning_rate(train: TrainConfig, world_size: int) -> float:
    """``learning_rate``, which is given for ``base_batch`` images, scaled to the actual images of a step."""
    if train.base_batch is None:
        return train.learning_rate
    return train.learning_rate * train.batch_size * train.accumulate * world_size / train.base_batch
