"""Averaged weights and early stopping, each beside what it is defined as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from solo_attn.training import Config
from solo_attn.training import module as module_file

MakeConfig = Callable[..., Config]


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights that each validation between epochs saw."""
    seen: list[dict[str, torch.Tensor]] = []
    real = module_file.SOLOModule.on_validation_epoch_end

    def end(self: Any) -> None:
        # Callbacks put the training's weights back before this hook: look during the steps.
        real(self)

    real_step = module_file.SOLOModule.validation_step

    def step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        real_step(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "on_validation_epoch_end", end)
    monkeypatch.setattr(module_file.SOLOModule, "validation_step", step)
    return seen
