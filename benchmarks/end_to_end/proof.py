"""Whether every way that `run.py` times gives what the dense way gives."""

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
    """A contender cannot go on; the others can."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class DifferentError(Exception):
    """A contender gives something else than the dense one."""


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
    """Its first line, and the second where torch.compile says the cause there."""
    first, *more = f"{type(error).__name__}: {error}".splitlines()
    return f"{first} {more[0]}" if first.endswith("raised:") and more else first


def prove(
    model: SOLO, images: list[Tensor], targets: list[dict[str, Tensor]], compiler: Compiler | None
) -> Proof:
    """Of training and of inference, what `beside_dense` says of each contender."""
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
    """Without the gradients."""
    return {key: float(x) for key, x in found.items() if key not in CHECKED}


def counts_of(found: list[dict[str, Tensor]]) -> dict[str, list[int]]:
    """How many instances of each image."""
    return {"instances": [len(image["scores"]) for image in found]}


def same_training(found: dict[str, Tensor], dense: dict[str, Tensor]) -> dict[str, float]:
    """How far `train_once`'s results are apart, as parts of the largest value.

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
    """How many of the first are not among the second."""
    missed = 0
    for ours, theirs in zip(instances, others, strict=True):
        for label, score, mask in zip(ours["labels"], ours["scores"], ours["masks"], strict=True):
            same = (theirs["labels"] == label) & ((theirs["scores"] - score).abs() < 1e-4)
            wrong = (theirs["masks"][same] != mask).flatten(1).float().mean(1)
            missed += not bool((wrong < 1e-3).any())
    return missed
