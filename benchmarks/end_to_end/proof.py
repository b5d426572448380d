"""Checks that every contender of `run.py` gives the results of the dense formulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from solo_attn.models import SOLO

from .dense_solo import Compiler
from .model import contenders

CHECKED = ("backbone.body.conv1.weight", "head.mask_tower.0.weight", "head.mask_outputs.0.weight")
Proof = dict[str, dict[str, dict[str, Any]]]


class FailedError(Exception):
    """One contender failed; the others continue."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class DifferentError(Exception):
    """The results of a contender differ from those of the dense one."""


def watched(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """Raises `FailedError` where it fails."""

    def go() -> Any:
        try:
            return run()
        except Exception as error:
            said = in_one_line(error)
        raise FailedError(name, said)  # not from `error`, whose traceback would keep what fills the memory

    return go


def in_one_line(error: Exception) -> str:
    """The first line of the error, and the second if torch.compile gives the cause there."""
    first, *more = f"{type(error).__name__}: {error}".splitlines()
    return f"{first} {more[0]}" if first.endswith("raised:") and more else first


def prove(
    model: SOLO, images: list[Tensor], targets: list[dict[str, Tensor]], compiler: Compiler | None
) -> Proof:
    """The result of `beside_dense` for each contender, for training and for inference."""
    train = functools.partial(train_once, model, images, targets)
    return {
        "training": beside_dense(contenders(model, "training", compiler), train, same_training, losses_of),
        "inference": beside_dense(
            contenders(model, "inference", compiler), lambda run: run(images), same_instances, counts_of
        ),
    }


def beside_dense(
    runs: dict[str, Callable[..., Any]],
    once: Callable[..., Any],
    compare: Callable[[Any, Any], dict[str, Any]],
    about: Callable[[Any], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """How each contender differs from the dense one, or in "failed" why it counts for none.

    Of the dense one itself, what shows that there was something to compare.
    """
    dense = once(runs.pop("dense"))
    found = {"dense": about(dense)}

    def compared(run: Callable[..., Any]) -> dict[str, Any]:
        return compare(once(run), dense)

    for name, run in runs.items():
        try:
            found[name] = watched(name, functools.partial(compared, run))()
        except FailedError as failure:
            found[name] = {"failed": failure.reason}
    return found


def train_once(
    model: SOLO, images: list[Tensor], targets: list[dict[str, Tensor]], run: Callable[..., Any]
) -> dict[str, Tensor]:
    """Both losses, and the gradients of `CHECKED`."""
    try:
        losses = run(images, targets)
        sum(losses.values()).backward()
        grads = {key: model.get_parameter(key).grad.clone() for key in CHECKED}  # type: ignore[union-attr]
        return {**{key: loss.detach() for key, loss in losses.items()}, **grads}
    finally:
        model.zero_grad()


def losses_of(found: dict[str, Tensor]) -> dict[str, float]:
    """The losses, without the gradients."""
    return {key: float(x) for key, x in found.items() if key not in CHECKED}


def counts_of(found: list[dict[str, Tensor]]) -> dict[str, list[int]]:
    """The number of instances of each image."""
    return {"instances": [len(image["scores"]) for image in found]}


def same_training(found: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, float]:
    """The difference of two results of `train_once`, relative to the largest value.

    Raises:
        DifferentError: too far.
    """
    apart = {key: float((found[key] - x).abs().max() / x.abs().max()) for key, x in dense.items()}
    for key, off in apart.items():
        if not off < 1e-3:
            raise DifferentError(f"{key} differs from dense by {off:.1e} of its largest value")
    return apart


def same_instances(found: list[dict[str, Tensor]], dense: list[dict[str, Tensor]]) -> dict[str, int]:
    """How many instances one way has and the other has not, for rounding at a threshold.

    Raises:
        DifferentError: too many.
    """
    counts = counts_of(dense)["instances"]
    if min(counts) < 6:
        raise DifferentError(f"{min(counts)} instances in an image are too few to compare")
    missed = max(without_a_twin(found, dense), without_a_twin(dense, found))
    if missed > sum(counts) // 50:
        raise DifferentError(f"{missed} of {sum(counts)} instances differ from dense")
    return {"without_a_twin": missed}


def without_a_twin(instances: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> int:
    """The number of the first instances that are not among the second ones."""
    missed = 0
    for ours, theirs in zip(instances, others, strict=True):
        for label, score, mask in zip(ours["labels"], ours["scores"], ours["masks"], strict=True):
            same = (theirs["labels"] == label) & ((theirs["scores"] - score).abs() < 1e-4)
            wrong = (theirs["masks"][same] != mask).flatten(1).float().mean(1)
            missed += not bool((wrong < 1e-3).any())
    return missed
