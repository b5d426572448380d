"""Declares an op once for every backend's namespace: schema, kernel, fake and gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from ..backends import BACKENDS, compiled, select, triton_runtime
from ._triton import kernel_of, show_kernels

# Compiled kernels register in the first, by dispatch key; see backends/registry.py.
NAMESPACES = (compiled.NAMESPACE, triton_runtime.NAMESPACE, f"{compiled.NAMESPACE}_reference")

_OVERLOADS: dict[tuple[str, str], OpOverload] = {}
_DIRECT: dict[tuple[str, str], Callable[..., Any]] = {}  # see _direct


def declare(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    in_triton: bool = True,
) -> None:
    """Define ``name`` in every namespace, with the reference as the kernel that any device falls back to.

    In Triton's the kernel is the function of the reference's name in ``solo_attn.kernels``.

    Args:
        name: the op's name.
        schema: its arguments and results in torch.library's language.
        reference: the implementation in plain PyTorch.
        fake: shapes and dtypes of the results, without data.
        setup_context: saves for ``backward`` what it needs.
        backward: ``(namespace, ctx, *grads) -> grads``, in terms of that namespace's own ``_bwd`` op. None
            says that the op has no gradient: asking for one raises an error that says so.
        in_triton: whether ``solo_attn.kernels`` has that function; if not, the reference is the kernel.
    """

    def declare_in(namespace: str) -> None:
        qualified = f"{namespace}::{name}"
        torch.library.define(qualified, schema)
        triton = in_triton and namespace == triton_runtime.NAMESPACE
        kernel = _without_autocast(kernel_of(reference) if triton else reference)
        if namespace == compiled.NAMESPACE:
            kernel = _compiled_first(name, kernel)
        torch.library.impl(qualified, "default", kernel)
        torch.library.register_fake(qualified, fake)
        if triton:
            show_kernels(qualified, kernel)
        run = direct = getattr(getattr(torch.ops, namespace), name).default
        if "!" not in schema:  # torch.library has no gradients for ops that write to their inputs
            formula = _bind(backward, namespace) if backward is not None else _no_gradient(name)
            torch.library.register_autograd(qualified, formula, setup_context=setup_context)
            direct = _direct(run, _NO_FUNCTION.format(name) if backward is not None else _refusal(name))
        _OVERLOADS[namespace, name], _DIRECT[namespace, name] = run, direct

    for namespace in NAMESPACES:
        declare_in(namespace)


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """An op computes in the dtype of its inputs: autocast must not reach the PyTorch calls inside it."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]  # of all levels
        with torch.autocast(first.device.type, enabled=False):
            return kernel(*args)

    return run


def _compiled_first(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Load the extension before the first call of a graph of torch.compile, which holds this op already."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        if compiled.loaded:
            return kernel(*args)
        compiled.load()  # a compiled kernel, if there is one, now stands before this one
        return overload(compiled.NAMESPACE, name)(*args)

    return run


def _bind(backward: Callable[..., Any], namespace: str) -> Callable[..., Any]:
    def formula(ctx: Any, *grads: Any) -> Any:
        return backward(namespace, ctx, *grads)

    return formula


def _refusal(name: str) -> str:
    if name.endswith("_bwd"):
        return (
            f"{name.removesuffix('_bwd')} has no second derivative: its backward pass is not differentiable"
        )
    return f"{name} is not differentiable: detach its inputs, or call it under torch.no_grad()"


def _no_gradient(name: str) -> Callable[..., Any]:
    def formula(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(_refusal(name))

    return formula


def overload(namespace: str, name: str) -> OpOverload:
    """The op ``name`` as declared in ``namespace``."""
    return _OVERLOADS[namespace, name]


def is_of(run: Any, namespace: str, name: str) -> bool:
    """Whether ``run``, which `pick` has returned, is the op ``name`` of ``namespace``."""
    return run in (_OVERLOADS[namespace, name], _DIRECT[namespace, name])


def pick(
    op: str,
    x: torch.Tensor,
    backend: str | None,
    variant: str = "",
    dtype: torch.dtype | None = None,
    size: int | None = None,
) -> Callable[..., Any]:
    """The op that runs ``op`` on ``x``: the chosen backend's, in its form ``variant`` ("_", "_rle").

    ``dtype`` is that of the floating-point result where no input has one; ``size`` what the table of order
    counts by, where that is not the elements of ``x``.
    """
    size = x.numel() if size is None else size
    namespace = select(op, x.device.type, dtype or x.dtype, backend, size).namespace
    if torch.compiler.is_compiling():
        return overload(namespace, op + variant)
    # Here, and not in the op alone, so that no other thread runs the op while its kernels are registered.
    if namespace == compiled.NAMESPACE:
        compiled.load()
    # Forward-mode derivatives would pass an op by: torch.library has no rule for them and drops the tangents.
    if forward_ad._current_level >= 0:
        return _without_tangents(op, overload(namespace, op + variant))
    return _DIRECT[namespace, op + variant]


_NO_FUNCTION = (
    "{}: expected no gradient by torch.func (grad, vjp, jacrev), which ops of torch.library do not have; "
    "take backward() or torch.autograd.grad"
)


def _direct(run: OpOverload, no_function: str) -> Callable[..., Any]:
    """``run``, past the gradients where none is asked for.

    torch.library's are in Python, where every call goes, also one that needs none: that is 8 of the 30 us of
    a call on little data. The question, and what follows from it, are torch.library's own.
    """

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return _transformed(run, args, no_function)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return run(*args)
        if torch.overrides.has_torch_function(args):  # what is run there may need gradients
            return run(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*args)

    return call


def _transformed(run: OpOverload, args: tuple[Any, ...], no_function: str) -> Any:
    try:
        return run(*args)
    except RuntimeError as error:
        if "setup_context" not in str(error):  # of the autograd.Function that torch.library makes
            raise
        raise RuntimeError(no_function) from error


def _without_tangents(op: str, run: OpOverload) -> Any:
    def checked(*args: Any) -> Any:
        for x in tree_leaves(args):
            if isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                raise RuntimeError(
                    f"{op}: expected inputs without a tangent, got one: there is no forward-mode derivative "
                    "(torch.func.jvp, jacfwd, dual tensors); take backward() or torch.autograd.grad"
                )
        return run(*args)

    return checked


assert {backend.namespace for backend in BACKENDS} <= set(NAMESPACES)


def pick_form(
    op: str, x: torch.Tensor, backend: str | None, form: str, variant: str = ""
) -> Callable[..., Any] | None:
    """The form of ``op`` that takes "factors" or "levels"; None where the backend that is to run has none.

    There the product is made by PyTorch, or ``op`` is called for each level.
    """
    chosen = select(op, x.device.type, x.dtype, backend)
    return pick(op, x, chosen.name, f"_{form}{variant}") if form in chosen.forms else None
