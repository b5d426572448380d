"""Averaged weights and early stopping, each beside what it is defined as."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import Killed, assert_same_run, curve

from solo_attn.models import load_model
from solo_attn.training import Config, TrainResult, UnfinishedError, train
from solo_attn.training import module as module_file

MakeConfig = Callable[..., Config]
Weights = dict[str, torch.Tensor]


def copied(module: Any) -> Weights:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def record(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Weights], list[Weights]]:
    """The weights after each optimizer step, and those that each validation in a training saw."""
    stepped: list[Weights] = []
    validated: list[Weights] = []
    step, validate = module_file.SOLOModule.optimizer_step, module_file.SOLOModule.validation_step

    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        stepped.append(copied(self))

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            validated.append(copied(self))
        validate(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "optimizer_step", optimizer_step)
    monkeypatch.setattr(module_file.SOLOModule, "validation_step", validation_step)
    return stepped, validated


def averages(stepped: Sequence[Weights], decay: float) -> list[Weights]:
    found = [stepped[0]]
    for n, now in enumerate(stepped[1:], 1):
        share = min(decay, (1 + n) / (10 + n))
        found.append({name: share * old + (1 - share) * now[name] for name, old in found[-1].items()})
    return found


def test_average_is_validated_saved_and_tested(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a decay that its beginning does not reach at step 1 and does at step 2."""
    stepped, validated = record(monkeypatch)
    result = train(config(ema=0.2, learning_rate=0.05, warmup_steps=0), tmp_path)
    assert (len(stepped), len(validated)) == (6, 2)
    expected = averages(stepped, 0.2)
    moved = max((expected[-1][name] - value).abs().max().item() for name, value in stepped[-1].items())
    assert moved > 1e-3, "or average and weights are the same"
    for seen, step in zip(validated, (2, 5), strict=True):
        torch.testing.assert_close(seen, expected[step])
    model, _ = load_model(result.last)
    torch.testing.assert_close(model.state_dict(), expected[-1])
    assert result.best is not None
    best, at = load_model(result.best)[0], torch.load(result.best, weights_only=True)["global_step"]
    torch.testing.assert_close(best.state_dict(), expected[at - 1])
    resumable = torch.load(result.last, weights_only=True)["current_model_state"]
    assert all(torch.equal(resumable[f"model.{name}"], value) for name, value in stepped[-1].items())


def test_the_last_weights_are_the_average_where_no_validation_came(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, validated = record(monkeypatch)
    train(config(ema=0.5, max_steps=4, eval_every=100), tmp_path)
    torch.testing.assert_close(validated, [averages(stepped, 0.5)[-1]])


def test_average_is_resumed_bitwise(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(ema=0.9, checkpoint_steps=1, max_steps=4, eval_every=2)
    whole = train(settings, tmp_path / "whole")
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 2:
            raise Killed
        return real(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
    with pytest.raises(Killed):
        train(settings, tmp_path / "broken")
    monkeypatch.undo()
    assert_same_run(whole, train(settings, tmp_path / "broken", resume=True))
    # The same by deadlines, which save themselves.
    result: TrainResult | None = None
    while result is None:
        with suppress(UnfinishedError):
            result = train(settings, tmp_path / "pieces", resume=True, deadline=time.monotonic())
    assert_same_run(whole, result)
    first, second = (
        torch.load(run.last, weights_only=True)["current_model_state"] for run in (whole, result)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """AP of the validations, by the number of optimizer steps in which they come."""
    real = module_file.SOLOModule.on_validation_epoch_end

    def script(values: list[float]) -> None:
        def end(self: Any) -> None:
            evaluate = module_file.evaluate
            value = values[min(self.global_step // 3, len(values)) - 1]
            module_file.evaluate = lambda *a, **k: replace(evaluate(*a, **k), ap=value)
            try:
                real(self)
            finally:
                module_file.evaluate = evaluate

        monkeypatch.setattr(module_file.SOLOModule, "on_validation_epoch_end", end)

    return script


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.3, 0.3, 0.2, 0.9], 2, 3),  # no better is not better
        ([0.1, 0.05, 0.2, 0.15, 0.1, 0.9], 2, 5),  # a better one begins anew
    ],
)
def test_patience(
    config: MakeConfig,
    tmp_path: Path,
    scripted: Callable[[list[float]], None],
    values: list[float],
    patience: int,
    epochs: int,
) -> None:
    scripted(values)
    settings = config(epochs=8, patience=patience)
    result = train(settings, tmp_path)
    assert result.steps == 3 * epochs
    assert result.metrics.ap == values[epochs - 1]
    assert result.best is not None
    assert torch.load(result.best, weights_only=True)["global_step"] == 3 * (
        values.index(max(values[:epochs])) + 1
    )
    # A run that has ended: by its patience as well as by its steps.
    assert json.loads((tmp_path / "result.json").read_text())["stopped"] is False
    assert train(settings, tmp_path, resume=True).steps == result.steps


def test_patience_is_resumed(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripted: Callable[[list[float]], None],
) -> None:
    scripted([0.5, 0.4, 0.3, 0.2])
    settings = config(epochs=4, patience=2)
    whole = train(settings, tmp_path / "whole")
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 7:
            raise Killed
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(module_file.SOLOModule, "training_step", step)
        with pytest.raises(Killed):
            train(settings, tmp_path / "broken")
    resumed = train(settings, tmp_path / "broken", resume=True)
    assert whole.steps == 9
    assert_same_run(whole, resumed)
    assert curve(whole) == curve(resumed)
