"""What the tests of all ops share: who runs an op, the rule of comparison, the checks that each passes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import shim
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import solo_attn
from solo_attn.backends import BACKENDS, compiled, registry

# In the tests the CUDA kernels' source runs on the CPU too, as one backend more.
TESTED = (*BACKENDS, shim.BACKEND)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Function = Callable[..., Tensor]

# Sizes (h, w), S, (H, W) whose rows the CUDA kernels cut into bands: those of the output and, in the backward
# pass, those of both inputs, which do not end together.
BANDS = [
    ((20, 9), 7, (41, 20), torch.float32),
    ((7, 9), 20, (41, 19), torch.float32),
    ((3, 5), 1, (70, 16), torch.float32),
    ((40, 30), 9, (11, 8), torch.float32),  # reduced
    ((33, 12), 40, (34, 10), torch.float64),
    ((20, 16), 8, (40, 32), torch.bfloat16),
]

# The runner of a test is a constant, so hypothesis may see the same one again and again. Inputs that are made
# slowly say nothing of the op: the machine may have other work.
few = functools.partial(
    settings,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Runner:
    """One op on one backend and device, called like the public function."""

    op: str
    backend: str
    device: str
    reason: str | None = None
    simd: str | None = None  # the instruction set that the C++ kernels are held to

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the op, and see that it wrote to nothing it was given (unless it was told to)."""
        before = [(x, x.detach().clone(), x._version) for x in args if isinstance(x, Tensor)]
        out = self.raw(*args, **kwargs)
        if not kwargs.get("inplace"):
            for x, copy, version in before:
                assert x._version == version
                assert same_bits(x, copy), f"{self.op} modified an input"
        return out

    def raw(self, *args: Any, **kwargs: Any) -> Any:
        """The op itself, for torch.compile and for wrong arguments."""
        return getattr(solo_attn, self.op)(*args, backend=self.backend, **kwargs)

    def refuses(self, dtype: torch.dtype) -> str | None:
        return self._backend.refuses(self.op, self.device, dtype)

    def needs(self, dtype: torch.dtype) -> None:
        """Skip the test, with the backend's reason, where this dtype does not run."""
        if (reason := self.refuses(dtype)) is not None:
            pytest.skip(f"{self.op}: backend {self.backend!r} cannot run {dtype}: {reason}")

    @property
    def finest(self) -> torch.dtype:
        return torch.float32 if self.refuses(torch.float64) else torch.float64

    @property
    def takes_levels(self) -> bool:
        """Whether it has a form for all levels at once; there is one call for each elsewhere."""
        return "levels" in self._backend.forms

    @property
    def _backend(self) -> registry.Backend:
        return next(backend for backend in TESTED if backend.name == self.backend)

    def overload(self, suffix: str = "") -> Any:
        """The registered op, such as suffix "_bwd", as this backend's namespace has it."""
        return getattr(getattr(torch.ops, self._backend.namespace), self.op + suffix).default

    def randn(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(self.device, dtype or self.finest)

    def rand_bool(self, *shape: int, seed: int = 0) -> Tensor:
        return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.5).to(self.device)


def runners(op: str, only: str | None = None) -> list[Any]:
    """Every backend of the registry on every device here; one that runs nowhere skips, with its reason."""
    present = "cpu cuda" if torch.cuda.is_available() else "cpu"
    devices = os.environ.get("SOLO_ATTN_TEST_DEVICES", present).split()
    params = []
    for backend in TESTED:
        if only not in (None, backend.name):
            continue
        reasons = {device: backend.refuses(op, device, torch.float32) for device in devices}
        able = [device for device in devices if reasons[device] is None]
        for device in able:
            for simd in simd_levels() if backend.name == "cpu" else [None]:
                runner = Runner(op, backend.name, device, simd=simd)
                params.append(pytest.param(runner, id="-".join(filter(None, [backend.name, device, simd]))))
        if not able:
            why = "; ".join(f"on {device}: {reason}" for device, reason in reasons.items())
            skip = pytest.mark.skip(reason=f"{op}: backend {backend.name!r} cannot run {why}")
            params.append(pytest.param(Runner(op, backend.name, "none", why), id=backend.name, marks=skip))
    return params


@functools.cache
def simd_levels() -> list[str]:
    """The instruction sets that the C++ kernels can use on this processor, the best last."""
    best = compiled.simd()
    levels = [level for level in ("plain", "avx2", "avx512") if compiled.simd(level) == level]
    compiled.simd("")
    return [*(level for level in levels if level != best), best]


class Called(TorchDispatchMode):
    """Notes the names of this library's ops that run inside it, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith(compiled.NAMESPACE):
            self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (x.detach().contiguous().flatten().view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def numpy64(x: Tensor | None) -> Any:
    return None if x is None else x.detach().double().cpu().numpy()


def close(out: Tensor, expected: Any) -> None:
    """Shape, and values up to what a sum in another order may change in ``out``'s dtype."""
    assert tuple(out.shape) == expected.shape
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(out.dtype, 4 * torch.finfo(out.dtype).eps)
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(numpy64(out), expected, rtol=0, atol=rounding * largest)


def as_good_as_pytorch(out: Tensor, same_dtype: Tensor, exact: Any, what: str = "output") -> None:
    """max|out - ref64| <= 2 max|same-dtype PyTorch - ref64| + rounding of the dtype."""
    exact = np.asarray(exact)
    assert tuple(out.shape) == tuple(same_dtype.shape) == exact.shape, what
    error, allowed = (np.abs(numpy64(x) - exact).max(initial=0) for x in (out, same_dtype))
    # One rounding to the dtype; in float64 the oracle rounds as much as the op does.
    rounding = torch.finfo(out.dtype).eps * (64 if out.dtype == torch.float64 else 1)
    bound = 2 * allowed + rounding * np.abs(exact).max(initial=0)
    assert error <= bound, f"{what}: off by {error:.3g}, PyTorch by {allowed:.3g}, bound {bound:.3g}"


def check_rounded_once(runner: Runner, run: Function, inputs: Sequence[Tensor]) -> None:
    """Half precision is the result in float32, rounded: nothing in between is. Stricter than the rule."""
    for dtype in (torch.float16, torch.bfloat16):
        if runner.refuses(dtype) is None:
            halves = [x.to(dtype) for x in inputs]
            out, single = numpy64(run(*halves)), numpy64(run(*(x.float() for x in halves)))
            room = 0.51 * torch.finfo(dtype).eps * np.abs(single) + 1e-6 * np.abs(single).max()
            assert (np.abs(out - single) <= room).all(), dtype


def leaves(inputs: Sequence[Tensor], grad: Sequence[bool] | None = None) -> list[Tensor]:
    """Fresh leaves with the strides of ``inputs`` that ask for a gradient."""
    flags = [True] * len(inputs) if grad is None else grad
    return [x.detach().requires_grad_(flag) for x, flag in zip(inputs, flags, strict=True)]


def gradients(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients for a random upstream gradient that has no symmetry."""
    inputs = leaves(inputs)
    out = function(*inputs)
    seed = torch.Generator().manual_seed(99)
    upstream = torch.randn(out.shape, generator=seed, dtype=torch.float64).to(out.device, out.dtype)
    return out.detach(), list(torch.autograd.grad(out, inputs, upstream.to(inputs[0].dtype).to(out.dtype)))


def check_rule(run: Function, plain: Function, inputs: Sequence[Tensor], oracle: Any = None) -> None:
    """Forward and gradients of ``run`` by the rule; ``plain`` is the same in PyTorch, ``oracle`` in loops."""
    out, grads = gradients(run, inputs)
    same, same_grads = gradients(plain, inputs)
    exact, exact_grads = gradients(plain, [x.double() for x in inputs])
    as_good_as_pytorch(out, same, numpy64(exact) if oracle is None else oracle)
    for k, triple in enumerate(zip(grads, same_grads, exact_grads, strict=True)):
        grad, same_grad, exact_grad = triple
        assert grad.dtype == inputs[k].dtype
        as_good_as_pytorch(grad, same_grad, numpy64(exact_grad), f"gradient of input {k}")


def check_gradcheck(run: Function, inputs: Sequence[Tensor], fast: bool = False) -> None:
    """Numerical derivatives: for all inputs, and for each alone; ``fast``: along random directions only."""
    alone = [[k == j for j in range(len(inputs))] for k in range(len(inputs))]
    for grad in [[True] * len(inputs), *alone]:
        assert torch.autograd.gradcheck(
            run, leaves(inputs, grad), nondet_tol=1e-12 if inputs[0].is_cuda else 0, fast_mode=fast
        )


def check_opcheck(overload: Any, *args: Any) -> None:
    torch.library.opcheck(overload, args)


COMPILERS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: no g++"),
    ),
]


# A graph kept from an earlier run would hide a fake that has changed since.
@torch.compiler.config.patch(force_disable_caches=True)
def check_compile(
    run: Function, inputs: Sequence[Tensor], compiler: str, *more: Sequence[Tensor], grad: bool = True
) -> None:
    """Values and gradients of the compiled function; ``more`` inputs of other sizes must not break it."""
    torch._dynamo.reset()

    def function(*args: Tensor) -> Any:
        if compiler == "inductor":  # the op alone: nothing to hand to the C++ compiler, which takes long
            return run(*args)
        return run(*(x * 2 if x.is_floating_point() else x for x in args)) * 3

    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for args in (inputs, *more):
        if not grad:
            torch.testing.assert_close(compiled(*args), function(*args))
            continue
        out, grads = gradients(compiled, args)
        expected, expected_grads = gradients(function, args)
        torch.testing.assert_close([out, *grads], [expected, *expected_grads])


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values with other strides."""
    wide = torch.stack([torch.full_like(x, 7), x], dim=-1)
    yield "every other element", wide[..., 1]
    yield "transposed", x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "first dim last", x.movedim(0, -1).contiguous().movedim(-1, 0)
    if x.dim() == 4:
        yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    store = x.new_full((x.numel() + 1,), 7)
    store[1:] = x.flatten()
    yield "odd offset", store[1:].view(x.shape)


def check_layouts(run: Function, inputs: Sequence[Tensor]) -> None:
    """Strides change nothing, and results come contiguous as the fakes promise to torch.compile."""
    expected, expected_grads = gradients(run, inputs)
    for variants in itertools.zip_longest(*(list(layouts(x)) for x in inputs)):
        args = [x if v is None else v[1] for x, v in zip(inputs, variants, strict=True)]
        out, grads = gradients(run, args)
        assert all(x.is_contiguous() for x in (out, *grads))
        torch.testing.assert_close([out, *grads], [expected, *expected_grads], msg=str(variants[0][0]))


def check_expanded(run: Function, one: Sequence[Tensor], count: int) -> None:
    """Inputs that repeat one row without storing it, and an upstream gradient that does."""
    wide = leaves([x.expand(count, *x.shape[1:]) for x in one])
    full = leaves([x.detach().clone() for x in wide])
    outs = [run(*args) for args in (wide, full)]
    torch.testing.assert_close(*outs)
    upstream = torch.ones((), dtype=outs[0].dtype, device=outs[0].device).expand(outs[0].shape)
    grads = [torch.autograd.grad(out, args, upstream) for out, args in zip(outs, (wide, full), strict=True)]
    torch.testing.assert_close(*grads)


def check_repeatable(runner: Runner, run: Function, inputs: Sequence[Tensor]) -> None:
    """Bitwise the same on every run, without PyTorch's switch for it."""
    # PyTorch's own CUDA kernels for the transpose of a resize add in the order in which threads arrive.
    atomics = runner.backend == "reference" and runner.device == "cuda"
    with deterministic(False):
        first, first_grads = gradients(run, inputs)
        for _ in range(3):
            out, grads = gradients(run, inputs)
            assert same_bits(out, first)
            assert atomics or all(map(same_bits, grads, first_grads))


def check_any_order(runner: Runner, run: Callable[[], Any]) -> None:
    """No bit of what ``run()`` gives depends on the order of the shim's lanes and blocks."""
    if runner.backend != "shim":
        pytest.skip("a GPU takes lanes and blocks in an order of its own")
    results = []
    for seed in (1, 2, 3):
        shim.seed(seed)
        results.append(tree_leaves(run()))
    for other in results[1:]:
        for value, first in zip(other, results[0], strict=True):
            assert same_bits(value, first) if isinstance(value, Tensor) else value == first


@contextlib.contextmanager
def tf32(on: bool = True) -> Iterator[None]:
    """With PyTorch's switch for products of float32 on a GPU."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def rounded_to_tf32(x: Tensor) -> Tensor:
    """To the nearest float32 with 10 bits of mantissa, of two the one that is further from 0."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check_tf32(run: Function, plain: Function, inputs: Sequence[Tensor], rounded: Sequence[Tensor]) -> None:
    """The rule with the rounding of tf32: PyTorch is given the inputs ``rounded``. Without it, float32's."""
    with tf32():
        out, grads = gradients(run, inputs)
    same, same_grads = gradients(plain, rounded)
    exact, exact_grads = gradients(plain, [x.double() for x in inputs])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grads[-1], same_grads[-1], numpy64(exact_grads[-1]), "gradient")
    close(out, numpy64(plain(*(x.double() for x in rounded))))  # of what was rounded nothing more is lost
    off = [np.abs(numpy64(a) - numpy64(b)).max() for a, b in ((out, exact), (grads[-1], exact_grads[-1]))]
    assert min(off) > 2e-5, "nothing was rounded"
    with tf32(False):
        close(run(*inputs), numpy64(exact))


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """PyTorch's deterministic mode, in which torch.empty is filled with NaN (integers: the largest)."""
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def check_message(function: Function, error: type[Exception], message: str) -> None:
    """The whole message, so that its form stays one form."""
    with pytest.raises(error) as caught:
        function()
    assert str(caught.value) == message
