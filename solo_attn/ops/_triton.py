"""The Triton kernels as ops that torch.compile can look into.

What ``torch.library.triton_op`` does, with our own declarations: it makes a schema of its own from type
annotations (it has no ``SymInt[2]`` and no aliases), takes the launching function for the fake, which would
need Triton to trace an op on a machine without it, and registers no gradient per namespace.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from ..backends import compiled, triton_runtime


def kernel_of(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the same name in ``solo_attn.kernels``, imported when it is first called."""
    module = reference.__module__.replace(".reference.", ".kernels.")

    @functools.wraps(reference)
    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(module), reference.__name__)(*args)

    return run


def show_kernels(qualified: str, kernel: Callable[..., Any]) -> None:
    """Let torch.compile replace the op by its launches, which Inductor plans with what is around them."""
    if triton_runtime.INTERPRETED:  # nothing is compiled there
        return

    def decompose(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        if custom_triton_ops_decomposition_disabled():  # torch.export keeps ops whole
            return mode.__torch_dispatch__(op, types, args, kwargs)
        traced = importlib.import_module(f"{compiled.NAMESPACE}.kernels").traced
        with mode, traced():
            return kernel(*args, **kwargs)

    torch.library.register_torch_dispatch(qualified, FunctionalTensorMode, decompose)
