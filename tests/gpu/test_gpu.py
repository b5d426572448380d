"""What only a GPU can show: streams, graphs, sanitizers, sizes beyond 2^31. ``make gpu-test`` runs this.

With SOLO_ATTN_TEST_DEVICES=cpu in Triton's interpreter, what a CPU allows of it: ``make gpu-test DRY_RUN=1``.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_cases import CASES, PAPER, SMALL, backends, gradients
from small_export import exportable

import solo_attn

DEVICE = os.environ.get("SOLO_ATTN_TEST_DEVICES", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 150
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="there is no GPU")
# Half of Triton's interpreter is too slow for.
SIZES = PAPER if DEVICE == "cuda" else SMALL
RUNS = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name, case in CASES.items()
    for backend in backends(case.op, DEVICE)
]
every_op = pytest.mark.parametrize(("name", "backend"), RUNS)


def make(name, dtype=torch.float32, sizes=SIZES):
    return [x.to(DEVICE) for x in CASES[name].inputs(sizes, dtype)]


def call(name, backend, inputs):
    out = CASES[name].call(backend, *inputs)
    return list(out) if isinstance(out, tuple) else [out]


def same(outs, others):
    assert len(outs) == len(others)
    for out, other in zip(outs, others, strict=True):
        assert torch.equal(out, other)


def test_a_kernel_runs():
    """Otherwise every test below is none."""
    assert {name for name, *_ in (run.values for run in RUNS)} == set(CASES)


@every_op
def test_the_same_on_every_run(name, backend):
    """To the bit, gradients included, in float32 and half precision."""
    for dtype in (torch.float32, torch.float16):
        first = gradients(CASES[name], backend, make(name, dtype))
        for _ in range(3 if DEVICE == "cuda" else 1):
            same(gradients(CASES[name], backend, make(name, dtype)), first)


@every_op
def test_as_the_reference(name, backend):
    """At the paper's sizes. tests/ops says how near; here a block that is missing would show."""
    out = gradients(CASES[name], backend, make(name))
    for x, expected in zip(out, gradients(CASES[name], "reference", make(name)), strict=True):
        assert x.shape == expected.shape
        if x.is_floating_point() and x.numel():
            largest = max(1e-3, float(expected.abs().max()))
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-4 * largest)
        else:  # pixels whose probability is the threshold up to rounding
            assert int((x != expected).sum()) <= 1e-3 * x.numel() + 1


@needs_gpu
@every_op
def test_on_another_stream(name, backend):
    """Inputs arrive on that stream, late: a kernel on the default one would read them too early."""
    inputs = make(name)
    expected = call(name, backend, [x.clone() for x in inputs])
    blank = [torch.zeros_like(x) for x in inputs]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x, value in zip(blank, inputs, strict=True):
            x.copy_(value)
        out = call(name, backend, blank)
    stream.synchronize()
    same(out, expected)


@needs_gpu
@every_op
def test_in_a_graph(name, backend):
    """Captured once, replayed on other data; nothing in between may wait for the host."""
    if backend in CASES[name].waits:
        pytest.skip(f"with {backend} the host finds the masks or cells of each level or image")
    inputs = make(name)
    pairs = [x.dtype == torch.int64 and x.dim() == 2 for x in inputs]  # (image, cell) of chosen cells
    others = [
        x.flip(0) if listed else x.roll(1, -1).contiguous() for x, listed in zip(inputs, pairs, strict=True)
    ]
    held = [x.clone() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        call(name, backend, held)  # tunes
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = call(name, backend, held)
    for values in (others, inputs):
        for x, value in zip(held, values, strict=True):
            x.copy_(value)
        graph.replay()
        same(out, call(name, backend, [x.clone() for x in values]))


@needs_gpu
@torch.no_grad()
def test_a_detection_in_a_graph():
    """Backbone, head, candidates, masks and NMS, captured once; what a replay finds in other images."""
    model = exportable(attention="gated").to(DEVICE)
    batches = [torch.rand(2, 3, 64, 96, device=DEVICE) for _ in range(3)]
    held = batches[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model.detect(held)  # compiles and tunes
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model.detect(held)
    for batch in batches[1:]:
        held.copy_(batch)
        graph.replay()
        expected = model.detect(batch)
        assert int(expected.count.min()) > 0
        same([out.count, out.labels, out.masks], [expected.count, expected.labels, expected.masks])
        torch.testing.assert_close(out.scores, expected.scores)


@needs_gpu
@pytest.mark.parametrize("backend", backends("attention_residual", DEVICE))
def test_beyond_two_to_the_31(backend):
    """The last image of a batch of more than 2^31 logits, and the gradient that comes from it."""
    batch, side, size = 9, 40, (400, 400)
    needed = 3 * 2 * batch * side**2 * size[0] * size[1]
    assert batch * side**2 * size[0] * size[1] > 1 << 31
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"it takes {needed >> 30} GiB of memory")
    logits = torch.randn(1, side**2, *size, device=DEVICE, dtype=torch.bfloat16).expand(batch, -1, -1, -1)
    features = torch.randn(1, 16, side, side, device=DEVICE, dtype=torch.bfloat16).expand(batch, -1, -1, -1)
    logits = logits.contiguous().requires_grad_()
    features = features.contiguous().requires_grad_()
    out = solo_attn.attention_residual(logits, features, backend=backend)
    with torch.no_grad():
        one = solo_attn.attention_residual(logits[:1], features[:1], backend=backend)
    assert torch.equal(out[-1:], one)
    (grad,) = torch.autograd.grad(out, features, logits.detach())
    assert torch.equal(grad[0], grad[-1])


@needs_gpu
@pytest.mark.parametrize("backend", backends("grid_attention", DEVICE))
def test_cells_out_of_range(backend):
    """The device says so, as of PyTorch's own indexing: in a process of its own, which dies of it."""
    code = "import torch, solo_attn; x = torch.ones(1, 2, 3, 3, device='cuda'); "
    code += "cells = torch.tensor([[0, 9]], device='cuda'); "
    code += f"solo_attn.grid_attention(x, 1.0, cells, backend={backend!r}); torch.cuda.synchronize()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "grid_attention: expected cells of (image < B, cell < S*S)" in done.stdout + done.stderr


@needs_gpu
@pytest.mark.parametrize("backend", backends("grid_attention", DEVICE))
def test_tf32_is_an_option(backend):
    """Off by default; on, the sums lose digits, and a compiled function follows."""
    x = torch.randn(1, 256, 40, 40, device=DEVICE)
    compiled = torch.compile(lambda x: solo_attn.grid_attention(x, backend=backend), fullgraph=True)
    exact = solo_attn.grid_attention(x.double(), backend="reference")
    before = torch.backends.cuda.matmul.fp32_precision
    errors = {}
    for mode in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = mode
        out = solo_attn.grid_attention(x, backend=backend)
        torch.testing.assert_close(compiled(x), out)
        errors[mode] = float((out - exact).abs().max() / exact.abs().max())
    torch.backends.cuda.matmul.fp32_precision = before
    assert errors["ieee"] < 1e-6 < 1e-5 < errors["tf32"] < 2e-3


def sanitizer() -> str | None:
    """The program, on the path or beside nvcc."""
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


class Sanitized:
    """Every op in compute-sanitizer, all its tools at the same time: it takes as long as the slowest."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).parents[1] / "helpers" / "gpu_cases.py"
        # PyTorch's caching allocator would hide what is read beyond a tensor's end; tuning takes for ever.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SOLO_ATTN_TUNE": "0"}
        environment["PYTHONUNBUFFERED"] = "1"
        self.said = {tool: folder / f"{tool}.txt" for tool in TOOLS}
        self.end = time.monotonic() + SANITIZER_SECONDS
        self.processes = {}
        for tool, said in self.said.items():
            command = [sanitizer(), "--tool", tool, "--error-exitcode", "1", sys.executable, str(script)]
            with said.open("w") as file:
                self.processes[tool] = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment
                )

    def wait(self, tool: str) -> tuple[int | None, str]:
        """Exit status, None where its time was over, and what it said."""
        try:
            status = self.processes[tool].wait(max(0.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.processes[tool].kill()
            status = None
        return status, self.said[tool].read_text()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    if sanitizer() is None:
        pytest.skip("compute-sanitizer is not installed")
    started = Sanitized(tmp_path_factory.mktemp("sanitizer"))
    yield started
    for process in started.processes.values():
        process.kill()


@needs_gpu
@pytest.mark.parametrize("tool", TOOLS)
def test_sanitizer(sanitized, tool):
    status, said = sanitized.wait(tool)
    reached = {line.split()[0] for line in said.splitlines() if line.split()[0:1]} & set(CASES)
    assert status is not None, (
        f"cut off after {SANITIZER_SECONDS} s, {len(reached)} of {len(CASES)} cases done"
    )
    assert status == 0, said[-3000:]
    assert reached == set(CASES)
