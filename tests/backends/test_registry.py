"""Which backend runs: chosen by device and dtype, named by the caller or by SOLO_ATTN_BACKEND."""

import os
import subprocess
import sys

import pytest
import torch

import solo_attn
from solo_attn.backends import BACKENDS, NAMES, OPS, Backend, registry, select

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COARSE = torch.ones(1, 2, 2)
CALLS = {
    "grid_attention": lambda backend: solo_attn.grid_attention(torch.ones(1, 2, 2, 2), backend=backend),
    "attention_residual": lambda backend: solo_attn.attention_residual(
        torch.ones(1, 4, 3, 3), torch.ones(1, 2, 2, 2), backend=backend
    ),
    "upsample_add": lambda backend: solo_attn.upsample_add(COARSE, None, (3, 3), backend=backend),
    "dice_loss": lambda backend: solo_attn.dice_loss(
        COARSE, None, torch.ones(1, 3, 3, dtype=torch.bool), backend=backend
    ),
    "mask_bits": lambda backend: solo_attn.mask_bits(COARSE, None, (3, 3), (4, 4), backend=backend),
    "mask_iou": lambda backend: solo_attn.mask_iou(torch.ones(2, 2, 2).bool(), backend=backend),
    "matrix_nms": lambda backend: solo_attn.matrix_nms(
        torch.ones(1, 3, 3, dtype=torch.bool), torch.zeros(1).long(), torch.ones(1), backend=backend
    ),
    "paste_masks": lambda backend: solo_attn.paste_masks(
        COARSE, None, (3, 3), (4, 4), (9, 9), (5, 5), backend=backend
    ),
}
# Those that choose their kernel by a name of their own.
VARIANTS = {
    "attention_residual": lambda backend: solo_attn.attention_residual(
        torch.ones(1, 4, 3, 3), torch.ones(1, 2, 2, 2), inplace=True, backend=backend
    ),
    "paste_masks": lambda backend: solo_attn.paste_masks(
        COARSE, None, (3, 3), (4, 4), (9, 9), (5, 5), rle=True, backend=backend
    ),
}
ALL_CALLS = [*CALLS.items(), *VARIANTS.items()]


def only_half_on_cuda(op, device_type, dtype):
    if device_type != "cuda":
        return f"it needs CUDA tensors, got {device_type}"
    return None if dtype == torch.float16 else f"it has no {op} for {dtype}"


@pytest.fixture
def fast(monkeypatch):
    """A backend that stands before the others and is picky."""
    backend = Backend("fast", "solo_attn", only_half_on_cuda)
    monkeypatch.setattr(registry, "BACKENDS", (backend, *BACKENDS))
    monkeypatch.setattr(registry, "NAMES", ("fast", *NAMES))
    monkeypatch.setattr(registry, "_DEFAULT", None)
    return backend


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_reference_refuses_nothing():
    reference = BACKENDS[-1]
    assert reference.name == "reference", "it comes last: `select` takes the first that does not refuse"
    for op in OPS:
        for device_type in ("cpu", "cuda", "mps", "meta"):
            for dtype in FLOATS:
                assert reference.refuses(op, device_type, dtype) is None


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES) == len(BACKENDS)


def test_by_device_and_dtype(fast):
    for op in OPS:
        assert select(op, "cuda", torch.float16) is fast
        assert select(op, "cuda", torch.float64) is not fast
        assert select(op, "cpu", torch.float16) is not fast
        assert select(op, "cpu", torch.float32, "reference").name == "reference"
        assert select(op, "cuda", torch.float16, "reference").name == "reference"


def test_a_named_backend_never_falls_back(fast):
    with pytest.raises(RuntimeError) as caught:
        select("dice_loss", "cuda", torch.float64, "fast")
    assert str(caught.value) == "dice_loss: backend 'fast' cannot run: it has no dice_loss for torch.float64"


@pytest.mark.parametrize(("op", "call"), ALL_CALLS)
def test_every_op_asks_the_registry(fast, op, call):
    call(None)
    call("reference")
    with pytest.raises(RuntimeError) as caught:
        call("fast")
    assert str(caught.value) == f"{op}: backend 'fast' cannot run: it needs CUDA tensors, got cpu"


@pytest.mark.parametrize(("op", "call"), ALL_CALLS)
@pytest.mark.parametrize("name", ["nonsense", "", "Reference"])
def test_unknown_backend(op, call, name):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is below
        call(name)
    assert str(caught.value) == f"{op}: expected backend to be one of {', '.join(NAMES)}, got {name!r}"


def test_every_op_is_called_here():
    assert set(CALLS) == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_namespaces_hold_the_same_ops(op):
    """Backends differ in their namespace alone: the same schemas, forward and backward."""
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "solo_attn" in name}
    mine = [name for name in names if name in (op, op + "_", op + "_bwd", op + "_rle")]
    assert op in mine
    for name in mine:
        schemas = set()
        for namespace in {"solo_attn", *(backend.namespace for backend in BACKENDS)}:
            schema = str(getattr(getattr(torch.ops, namespace), name).default._schema)
            schemas.add(schema.partition("::")[2])
        assert len(schemas) == 1


def test_nothing_compiled_falls_back_to_the_reference():
    """An op of the namespace of compiled kernels exists where nothing is compiled."""
    x = torch.randn(2, 3, 2, 2)
    for namespace in (torch.ops.solo_attn, torch.ops.solo_attn_reference):
        torch.testing.assert_close(
            namespace.grid_attention(x, 1.0, None), solo_attn.grid_attention(x, backend="reference")
        )
        assert namespace.grid_attention(x.to("meta"), 1.0, None).shape == (2, 4, 2, 2)


RUN = """
import solo_attn, torch
from solo_attn.backends import registry
print(registry._DEFAULT.name if registry._DEFAULT else "the fastest", flush=True)
solo_attn.upsample_add(torch.ones(1, 2, 2), None, (3, 3))
print("ran")
"""


@pytest.mark.parametrize("name", ["", *NAMES])
def test_environment(name):
    """An op runs on the backend that is named, or says why that cannot be."""
    done = python(RUN, SOLO_ATTN_BACKEND=name)
    lines = done.stdout.split("\n")
    assert lines[0] == (name or "the fastest")
    reasons = {backend.name: backend.refuses("upsample_add", "cpu", torch.float32) for backend in BACKENDS}
    reason = reasons.get(name)
    if reason is None:
        assert (done.returncode, lines[1]) == (0, "ran"), done.stderr
    else:
        assert done.returncode == 1
        assert f"upsample_add: backend '{name}' cannot run: {reason}" in done.stderr


def test_environment_names_no_backend():
    done = python(RUN, SOLO_ATTN_BACKEND="nonsense")
    wanted = f"SOLO_ATTN_BACKEND: expected backend to be one of {', '.join(NAMES)}, got 'nonsense'"
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"ValueError: {wanted}"


def test_environment_sets_the_default_and_no_more(fast, monkeypatch):
    monkeypatch.setattr(registry, "_DEFAULT", fast)
    assert select("mask_bits", "cuda", torch.float16) is fast
    with pytest.raises(RuntimeError, match="mask_bits: backend 'fast' cannot run: it needs CUDA tensors"):
        select("mask_bits", "cpu", torch.float16)
    assert select("mask_bits", "cpu", torch.float16, "reference").name == "reference"


def test_environment_is_read_once(monkeypatch):
    """What runs must not change between two calls of a compiled function."""
    before = select("dice_loss", "cpu", torch.float32)
    monkeypatch.setenv("SOLO_ATTN_BACKEND", "nonsense")
    assert select("dice_loss", "cpu", torch.float32) is before
