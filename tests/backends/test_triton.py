"""The backend triton: when it runs, and that torch.compile sees its kernels. What they compute: tests/ops."""

import os
import subprocess
import sys

import pytest
import torch
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode

from solo_attn.backends import OPS, select, triton_runtime

HALVES = (torch.float16, torch.bfloat16)
needs_triton = pytest.mark.skipif(triton_runtime.MISSING is not None, reason=str(triton_runtime.MISSING))
pytestmark = pytest.mark.skipif(triton_runtime.INTERPRETED, reason="TRITON_INTERPRET is set")


def python(code, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def refuses(op, device_type, dtype):
    with pytest.raises(RuntimeError) as caught:
        select(op, device_type, dtype, "triton")
    return str(caught.value).removeprefix(f"{op}: backend 'triton' cannot run: ")


@needs_triton
def test_reasons():
    assert (
        refuses("grid_attention", "cuda", torch.float64)
        == "its sums are float32, too coarse for torch.float64"
    )
    assert refuses("grid_attention", "cuda", torch.int32) == "it has no kernels for torch.int32"
    wanted = "it needs CUDA tensors, got cpu (or TRITON_INTERPRET=1 from the start, to test it)"
    assert refuses("grid_attention", "cpu", torch.float32) == wanted
    if not torch.cuda.is_available():
        assert refuses("grid_attention", "cuda", torch.float32) == "PyTorch sees no CUDA device"


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch and Triton say that there is an H100."""
    from triton.backends import backends

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(backends["nvidia"].driver, "is_active", lambda: True)
    triton_runtime._device_refuses.cache_clear()
    yield
    triton_runtime._device_refuses.cache_clear()


@needs_triton
def test_on_a_gpu(gpu, monkeypatch):
    for op in {*OPS} & triton_runtime.KERNELS:
        for dtype in (torch.float32, *HALVES):
            assert select(op, "cuda", dtype, "triton").name == "triton"
        assert select(op, "cuda", torch.float64).name != "triton"
        assert select(op, "cpu", torch.float32).name != "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - 2 * index, 5))
    triton_runtime._device_refuses.cache_clear()
    wanted = "it needs compute capability 8.0, cuda:1 has 7.5"
    assert refuses("grid_attention", "cuda", torch.float32) == wanted


@needs_triton
def test_drivers_are_asked_once(gpu, monkeypatch):
    """Every call of an op asks whether Triton can run."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not asked.append(1))
    for _ in range(3):
        assert select("grid_attention", "cuda", torch.float32, "triton").name == "triton"
    assert len(asked) == 1


@needs_triton
def test_without_a_driver(gpu, monkeypatch):
    from triton.backends import backends

    monkeypatch.setattr(backends["nvidia"].driver, "is_active", lambda: False)
    triton_runtime._device_refuses.cache_clear()
    assert refuses("grid_attention", "cuda", torch.float32) == "Triton has no active driver for NVIDIA's GPUs"


@needs_triton
def test_an_op_without_a_kernel(gpu, monkeypatch):
    monkeypatch.setattr(triton_runtime, "KERNELS", frozenset())
    assert refuses("mask_bits", "cuda", torch.float32) == "mask_bits has no Triton kernel in this version"


def test_without_triton(monkeypatch):
    monkeypatch.setattr(triton_runtime, "MISSING", "Triton is not installed")
    assert refuses("grid_attention", "cuda", torch.float32) == "Triton is not installed"
    assert select("mask_bits", "cuda", torch.float32).name != "triton"


@needs_triton
def test_the_interpreter_runs_for_those_who_name_it():
    code = "import torch; from solo_attn.backends import select, registry; "
    code += "print(select('grid_attention', 'cpu', torch.float32, 'triton').name, "
    code += (
        "select('grid_attention', 'cpu', torch.float32).name); registry.BACKENDS = registry.BACKENDS[1:]; "
    )
    code += "print(select('grid_attention', 'cpu', torch.float32).name)"
    done = python(code, TRITON_INTERPRET="1")
    named, default, without_the_first = done.stdout.split()
    assert named == "triton", done.stderr
    assert "triton" not in (default, without_the_first)


@pytest.fixture
def hopper(monkeypatch):
    """Triton looks at kernels as it would for an H100, which it need not have for that."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    before = driver._active
    driver.set_active(Driver())
    yield
    driver._active = before


GRID = (2, 8, 4, 4)
LOGITS = (2, 16, 8, 9)


CALLS = [
    ("grid_attention", 1, [GRID, 1.0, None]),
    ("grid_attention", 1, [GRID, 1.0, (5, 2)]),
    ("grid_attention_bwd", 2, [(5, 4, 4), GRID, 1.0, (5, 2)]),
    ("attention_residual", 1, [LOGITS, GRID, 1.0]),
    ("attention_residual_", 1, [LOGITS, GRID, 1.0]),
    ("attention_residual_bwd", 2, [LOGITS, GRID, 1.0]),
]


def launches(name, shapes):
    """Those of Triton kernels in the graph that a compiler gets of the op; it holds no other op of ours."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    def function(*tensors):
        left = iter([x.clone() for x in tensors])
        args = [next(left) if isinstance(x, tuple) else x for x in shapes]
        out = getattr(torch.ops.solo_attn_triton, name)(*args)
        return args[0] if out is None else out

    with FakeTensorMode():
        tensors = [
            torch.empty(shape, device="cuda", dtype=torch.int64 if shape == (5, 2) else torch.float32)
            for shape in shapes
            if isinstance(shape, tuple)
        ]
        aot_function(function, fw_compiler=keep)(*tensors)
    (graph,) = graphs
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert not [node for node in nodes if "solo_attn" in str(node.target)]
    return [node for node in nodes if str(node.target) == "triton_kernel_wrapper_functional"]


@needs_triton
@pytest.mark.parametrize(("name", "kernels", "shapes"), CALLS)
def test_torch_compile_sees_the_kernels(hopper, name, kernels, shapes):
    """Each writes one tensor."""
    assert [len(node.kwargs["tensors_to_clone"]) for node in launches(name, shapes)] == [1] * kernels


@needs_triton
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(("name", "kernels", "shapes"), CALLS)
def test_float32_is_multiplied_as_the_op_was_told(hopper, name, kernels, shapes, tf32):
    given = {node.kwargs["kwargs"].get("PRECISION") for node in launches(name, [*shapes, tf32])}
    assert given - {None} == {"tf32" if tf32 else "ieee"}


FAR = "of fewer than 2^31 elements an image for backend 'triton', got [1, 1, 46341, 46341]"
TOO_MANY = "expected sizes that need at most 65535 programs along the second and third axis of a launch, got "


@needs_triton
@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        (
            "grid_attention",
            [(1, 1, 46_341, 46_341), 1.0, (5, 2)],
            f"grid_attention: expected grid_features {FAR}",
        ),
        (
            "grid_attention_bwd",
            [(5, 46_341, 46_341), (1, 1, 46_341, 46_341), 1.0, (5, 2)],
            f"grid_attention: expected grid_features {FAR}",
        ),
        (
            "attention_residual",
            [(1, 1, 46_341, 46_341), (1, 8, 1, 1), 1.0],
            "attention_residual: expected maps of fewer than 2^31 pixels for backend 'triton', "
            "got 46341 x 46341",
        ),
        (
            "grid_attention",
            [(65_536, 1, 1, 1), 1.0, None],
            f"grid_attention_fwd_kernel: {TOO_MANY}[1, 65536]",
        ),
        (
            "attention_residual",
            [(65_536, 1, 2, 2), (65_536, 1, 1, 1), 1.0],
            f"attention_residual_fwd_kernel: {TOO_MANY}[1, 1, 65536]",
        ),
    ],
)
def test_what_32_bits_or_a_launch_do_not_hold_is_refused(hopper, name, shapes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is below
        launches(name, shapes)
    assert str(caught.value) == message
