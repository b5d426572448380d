"""The learning rate as a fraction of its full value, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config import TrainConfig


def learning_rate_factor(train: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """From the number of steps done to the factor on the learning rate (spec 2, "Training recipe").

    Linear from ``warmup_ratio`` to 1 over ``warmup_steps``, times ``gamma`` at each milestone or a
    cosine to 0. A run shorter than its warm-up never comes to the full rate: such configurations want
    fewer warm-up steps.
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
    """``learning_rate``, given for ``base_batch`` images, for the images that a step really sees."""
    if train.base_batch is None:
        return train.learning_rate
    return train.learning_rate * train.batch_size * train.accumulate * world_size / train.base_batch
