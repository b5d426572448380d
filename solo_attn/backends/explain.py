"""A table of the backends, with the reason for each that cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import compiled
from .order import Row, row_of
from .registry import BACKENDS, OPS, Backend, select


@dataclass(frozen=True)
class Choice:
    """Whether one backend can run one op.

    Attributes:
        op: the op's public name.
        backend: the backend's name.
        chosen: this is the one that ``backend=None`` takes.
        reason: why it cannot run, or None if it can.
    """

    op: str
    backend: str
    chosen: bool
    reason: str | None


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; ``str()`` of it is the table, in which ops that are alike share their lines.

    Attributes:
        device: the device type.
        dtype: of the ops' floating-point input.
        choices: one for each op and backend.
        orders: for each op, the row that orders its backends, and the one for small inputs if it differs.
    """

    device: str
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    orders: tuple[tuple[str, Row], ...]

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[str]] = {}
        for op in dict.fromkeys(choice.op for choice in self.choices):
            groups.setdefault(tuple(self._lines(op)), []).append(op)
        lines = [f"backends for {self.dtype} on {self.device}"]
        for same, ops in groups.items():
            lines += [f"  {', '.join(ops)}", *(f"    {line}" for line in same)]
        return "\n".join(lines)

    def _lines(self, op: str) -> Iterator[str]:
        for choice in self.choices:
            if choice.op == op:
                runs = "runs" if choice.reason is None else f"cannot run: {choice.reason}"
                yield f"{choice.backend:<9}  {runs}" + ("  <- default" if choice.chosen else "")
        for name, row in self.orders:
            if name == op:
                yield f"order, if several can run: {row}"


def explain(
    op: str | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Explanation:
    """Whether each op runs on each backend here, with a reason for each that cannot.

    Args:
        op: one op's name, or None for all.
        device: where the tensors would be.
        dtype: dtype of the op's floating-point input.

    Raises:
        ValueError: ``op`` is not the name of an op.
    """
    if op is not None and op not in OPS:
        raise ValueError(f"explain: expected op to be one of {', '.join(OPS)}, got {op!r}")
    device_type = torch.device(device).type
    choices, orders = [], []
    for name in OPS if op is None else (op,):
        rows = (row_of(name, device_type, dtype), row_of(name, device_type, dtype, 0))
        orders += [(name, row) for row in dict.fromkeys(rows)]
        try:
            default = select(name, device_type, dtype)
        except RuntimeError:  # SOLO_ATTN_BACKEND names one that cannot run: its reason is in the table
            default = None
        choices += [
            Choice(name, backend.name, backend is default, _reason(backend, name, device_type, dtype))
            for backend in BACKENDS
        ]
    return Explanation(device_type, dtype, tuple(choices), tuple(orders))


def _reason(backend: Backend, op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """A broken extension cannot run, but stays the default: it is an error, without a fallback."""
    reason = backend.refuses(op, device_type, dtype)
    if reason is None and backend.namespace == compiled.NAMESPACE:
        return compiled.problem()
    return reason
