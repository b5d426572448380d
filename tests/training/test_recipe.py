"""What the configuration says about learning is what is done: each number against its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from solo_attn.models import build_solo
from solo_attn.training import (
    Config,
    ConfigError,
    SOLODataModule,
    TrainResult,
    load_config,
    settled,
    train,
)
from solo_attn.training import module as module_file

MakeConfig = Callable[..., Config]
GATES = ("head.attention.log_gain", "head.attention.offset")  # with no weight decay


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each training step was given."""
    seen: list[Any] = []
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.append(batch)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
    return seen


def untrained(settings: Config) -> Any:
    """The model as `train` begins with it."""
    data = SOLODataModule(settings)
    data.setup("fit")
    classes = data.train_set.num_classes
    pl.seed_everything(settings.train.seed, verbose=False)
    return build_solo(classes, **settings.as_dict()["model"])


def gradients(model: Any, batch: Any) -> list[torch.Tensor]:
    model.zero_grad()
    sum(model(*batch).values()).backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return found


def clipped(gradients: list[torch.Tensor], norm: float) -> list[torch.Tensor]:
    total = float(sum(g.double().square().sum() for g in gradients)) ** 0.5
    assert total > 1.5 * norm, "or this tests nothing"
    return [g * (norm / total) for g in gradients]


def assert_trained_to(run_dir: Path, model: Any, before: list[torch.Tensor]) -> None:
    after = torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"]
    moved = 0.0
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        torch.testing.assert_close(after[f"model.{name}"], parameter.detach(), rtol=1e-5, atol=1e-6)
        moved = max(moved, (parameter.detach() - old).abs().max().item())
    assert moved > 1e-3


def test_sgd_with_momentum_decay_and_clipping(config: MakeConfig, tmp_path: Path, batches: list[Any]) -> None:
    rate, momentum, decay, norm = 0.02, 0.8, 0.1, 0.5
    settings = config(
        max_steps=2,
        learning_rate=rate,
        gate_rate=1.0,
        momentum=momentum,
        weight_decay=decay,
        clip_norm=norm,
        warmup_steps=0,
        milestones=[],
    )
    train(settings, tmp_path)
    assert len(batches) == 2
    model = untrained(settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(p) for p in before]
    for batch in batches:
        steps = clipped(gradients(model, batch), norm)
        with torch.no_grad():
            for (name, parameter), v, g in zip(model.named_parameters(), velocity, steps, strict=True):
                v.mul_(momentum).add_(g + (0 if name in GATES else decay) * parameter)
                parameter.sub_(rate * v)
    assert_trained_to(tmp_path, model, before)


def test_adamw(config: MakeConfig, tmp_path: Path, batches: list[Any]) -> None:
    """Its first step is as long as the learning rate, and the decay is no part of the gradient."""
    rate, decay = 0.01, 0.5
    settings = config(
        max_steps=1,
        optimizer="adamw",
        learning_rate=rate,
        gate_rate=1.0,
        weight_decay=decay,
        clip_norm=None,
        warmup_steps=0,
        milestones=[],
    )
    train(settings, tmp_path)
    model = untrained(settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = gradients(model, batches[0])
    with torch.no_grad():
        for (name, parameter), g in zip(model.named_parameters(), found, strict=True):
            # Both averages, corrected for their zero beginning, are those of this one gradient.
            parameter.mul_(1 if name in GATES else 1 - rate * decay).sub_(rate * g / (g.abs() + 1e-8))
    assert_trained_to(tmp_path, model, before)


@pytest.mark.parametrize(
    ("precision", "lowered"), [("32-true", None), ("bf16-mixed", torch.bfloat16)], ids=str
)
def test_precision_and_clipping_reach_the_trainer(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    lowered: torch.dtype | None,
) -> None:
    seen: list[tuple[Any, ...]] = []
    real = module_file.SOLOModule.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        seen.append((self.trainer.precision, self.trainer.gradient_clip_val, autocast))
        return real(self, batch, batch_idx)

    monkeypatch.setattr(module_file.SOLOModule, "training_step", step)
    train(config(max_steps=1, precision=precision, clip_norm=0.25), tmp_path)
    assert seen == [(precision, 0.25, lowered)]


def test_tensorboard_shows_the_losses(trained: TrainResult) -> None:
    (file,) = trained.run_dir.glob("tensorboard/events.*")
    events = EventAccumulator(str(file)).Reload()
    wanted = {"train/loss", "train/dice", "train/loss_category", "train/loss_mask", "train/lr", "val/ap"}
    assert wanted <= set(events.Tags()["scalars"])
    dice, mask = events.Scalars("train/dice"), events.Scalars("train/loss_mask")
    assert len(dice) == 6
    assert [e.value for e in mask] == pytest.approx([3 * e.value for e in dice], rel=1e-6)
    assert all(e.value > 0 for e in events.Scalars("train/loss_category"))


def test_validation_counts_eval_max_detections(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = module_file.evaluate, []

    def spy(coco: Any, results: list[dict[str, Any]], **settings: Any) -> Any:
        seen.append((len(results), settings))
        return real(coco, results, **settings)

    monkeypatch.setattr(module_file, "evaluate", spy)
    result = train(config(max_steps=1, eval_max_detections=12), tmp_path)
    assert result.metrics.max_detections == 12
    assert seen == [(3 * 30, {"max_detections": 12})]  # all that the model gives, of which 12 count


def test_backbone_and_gates_learn_at_rates_of_their_own(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parameter in one group, with the rate and the decay of its kind."""
    seen: dict[str, tuple[float, float]] = {}
    real = module_file.SOLOModule.configure_optimizers

    def configure(self: Any) -> Any:
        made = real(self)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group in made["optimizer"].param_groups:
            for parameter in group["params"]:
                name = names.pop(parameter)
                seen[name] = (round(group["initial_lr"], 9), group["weight_decay"])
        assert not names
        return made

    monkeypatch.setattr(module_file.SOLOModule, "configure_optimizers", configure)
    rates = {"learning_rate": 0.01, "backbone_rate": 0.2, "gate_rate": 3.0, "weight_decay": 0.1}
    train(config(max_steps=1, eval_every=100, **rates), tmp_path)
    kinds: dict[str, set[tuple[float, float]]] = {"body": set(), "gate": set(), "rest": set()}
    for name, found in seen.items():
        kind = "body" if name.startswith("backbone.body.") else "gate" if name in GATES else "rest"
        kinds[kind].add(found)
    assert kinds == {
        "body": {(0.002, 0.1)},
        "gate": {(0.03, 0.0)},
        "rest": {(0.01, 0.1)},
    }


def test_accumulated_batches_are_a_step_of_their_mean(
    config: MakeConfig, tmp_path: Path, batches: list[Any]
) -> None:
    rate = 0.02
    settings = config(
        max_steps=1,
        batch_size=1,
        accumulate=3,
        learning_rate=rate,
        gate_rate=1.0,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=None,
        warmup_steps=0,
        milestones=[],
        eval_every=100,
    )
    train(settings, tmp_path)
    assert len(batches) == 3
    model = untrained(settings)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    each = [[g.clone() for g in gradients(model, batch)] for batch in batches]
    with torch.no_grad():
        for parameter, *found in zip(model.parameters(), *each, strict=True):
            parameter.sub_(rate * sum(found) / 3)
    assert_trained_to(tmp_path, model, before)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_f": True}, "32-true"),
    ],
    ids=str,
)
def test_automatic_precision_is_that_of_the_machine(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    able: dict[str, bool],
    expected: str,
) -> None:
    """And what it was is what the run's files say: elsewhere it would be another training."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    settings = config(max_steps=1, precision="auto", eval_every=100)
    assert settled(settings).train.precision == expected
    assert settings.train.precision == "auto"
    if expected == "32-true":
        return
    train(settings, tmp_path)
    assert load_config(tmp_path / "config.yaml").train.precision == expected
    assert train(settings, tmp_path, resume=True).steps == 1
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ConfigError, match=r'train\.precision: "bf16-mixed" -> "32-true"'):
        train(settings, tmp_path, resume=True)


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_automatic_precision_of_a_gpu(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    """Equal AP has not been measured there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert settled(config(precision="auto", accelerator=accelerator)).train.precision == "32-true"
    assert settled(config(precision="auto", accelerator="cpu")).train.precision == "bf16-mixed"
