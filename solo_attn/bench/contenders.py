"""Who runs against whom, each proven right before it is timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import explain
from .case import Case, agree
from .timing import Contender

PLAIN, COMPILED, FLOOR = "PyTorch", "torch.compile", "floor"


def backends(op: str, device: str) -> list[str]:
    """Names of those that can run ``op`` here, the default first."""
    able = [choice for choice in explain(op, device=device).choices if choice.reason is None]
    return [choice.backend for choice in sorted(able, key=lambda choice: not choice.chosen)]


def forward(case: Case, device: str, *, compiled: bool = False) -> dict[str, Contender]:
    """Every backend that can run it here, the default first, then plain PyTorch, others and the floor.

    Args:
        case: what runs.
        device: where its inputs are.
        compiled: let torch.compile have the plain version as well, which takes a while.

    Raises:
        AssertionError: one of them is wrong.
    """
    runs = _functions(case, device, compiled)
    expected = case.plain(*_copies(case))
    for name, run in runs.items():
        if name != PLAIN:
            agree(run(*_copies(case)), expected)
    found = {name: functools.partial(_without_grad, run, case.inputs) for name, run in runs.items()}
    return {**found, **case.others, FLOOR: case.floor}


def backward(case: Case, device: str, *, compiled: bool = False) -> dict[str, Contender]:
    """The same of the gradient alone, whose forward pass has run before.

    Raises:
        AssertionError: one of them is wrong.
    """
    assert case.differentiable
    assert case.floor_backward is not None
    runs = _functions(case, device, compiled)
    found: dict[str, Contender] = {}
    expected = None
    for name in (PLAIN, *(name for name in runs if name != PLAIN)):
        leaves = [x.detach().requires_grad_() for x in case.inputs[: case.differentiable]]
        out = runs[name](*leaves, *case.inputs[case.differentiable :])
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(device)
        found[name] = functools.partial(torch.autograd.grad, out, leaves, upstream, retain_graph=True)
        grads = found[name]()
        expected = grads if expected is None else expected
        agree(grads, expected)
    return {**{name: found[name] for name in runs}, FLOOR: case.floor_backward}


def _functions(case: Case, device: str, compiled: bool) -> dict[str, Callable[..., Any]]:
    names = backends(case.op, device)
    found: dict[str, Callable[..., Any]] = {name: functools.partial(case.kernel, name) for name in names}
    found[PLAIN] = case.plain
    if compiled:
        torch._dynamo.reset()
        found[COMPILED] = torch.compile(case.plain, dynamic=False)
    return found


def _copies(case: Case) -> list[Tensor]:
    """Some cases write over their inputs."""
    return [x.clone() for x in case.inputs]


def _without_grad(run: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return run(*inputs)
