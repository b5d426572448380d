"""How kernels are launched, and listed for compiling ahead of time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.library import wrap_triton

from ._tuning import INTERPRETED, Tuner

# Options of a launch that keep the kernel's assertions, but not those that Triton adds to integer sums.
ASSERTING = {"debug": True, "sanitize_overflow": False}
MOST_PROGRAMS = 65_535  # that CUDA starts along the second and the third axis
_state = threading.local()


def _mend_interpreter() -> None:
    """Triton 3.6's converts arrays to integers in a way that NumPy 2.4 refuses, and truncates bfloat16."""
    from triton.runtime import interpreter

    original, cast = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.cast_impl

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar != tl.float32 or kind.scalar != tl.bfloat16:
            return cast(self, source, kind)
        narrow = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16).numpy()
        return interpreter.TensorHandle(narrow.view(np.uint16), kind.scalar)

    interpreter._patch_lang_tensor = patch
    interpreter.InterpreterBuilder.cast_impl = rounded
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(**ASSERTING)


if INTERPRETED:
    _mend_interpreter()


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Launches become nodes of the graph that is being traced, so that a compiler sees the kernels."""
    before = getattr(_state, "traced", False)
    _state.traced = True
    try:
        yield
    finally:
        _state.traced = before


def asserting() -> dict[str, bool]:
    """`ASSERTING`; nothing in a traced launch, which takes no such options: there an op checks for itself."""
    return {} if getattr(_state, "traced", False) else ASSERTING


def is_open(kernel: Tuner, *args: Any, **constants: Any) -> bool:
    """Whether such a launch of ``kernel`` would first time its configurations."""
    return not getattr(_state, "traced", False) and kernel.is_open(*args, **constants)


def launch(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
    """Run ``kernel`` on the device of its first argument.

    A direct call takes microseconds, a call that a compiler can trace a millisecond; and ``wrap_triton``
    refuses kernels in the interpreter.
    """
    name = getattr(kernel, "fn", kernel).__name__

    def checked(meta: dict[str, Any]) -> tuple[int, ...]:
        sizes = grid(meta) if callable(grid) else grid
        if any(size > MOST_PROGRAMS for size in sizes[1:]):
            raise ValueError(
                f"{name.lstrip('_')}: expected sizes that need at most {MOST_PROGRAMS} programs along the "
                f"second and third axis of a launch, got {list(sizes)}"
            )
        return tuple(sizes)

    if getattr(_state, "traced", False):
        wrap_triton(kernel)[checked](*args, **constants)
    elif args[0].is_cuda:
        with torch.cuda.device(args[0].device):
            kernel[checked](*args, **constants)
    else:
        kernel[checked](*args, **constants)


@dataclass(frozen=True)
class Aot:
    """A kernel with the types of its arguments, to be compiled without a GPU in every tuned configuration.

    Attributes:
        kernel: what `tuned` or ``triton.jit`` made.
        types: of each argument that is no constant, in Triton's words: "*fp32", "i32"; "*T" stands for each
            of ``dtypes`` in turn. Arguments left out are "i32".
        constants: values of the constants that no configuration sets; "T" as above.
        dtypes: of the tensors.
        label: tells apart what has the same kernel, constants and dtypes.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    label: str = ""
