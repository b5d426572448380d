"""The shim itself finds what it says it finds; and the kernels under ASan."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import shim
import torch

SOURCE = shim.SHIM / "faults.cu"
FAULTS = [
    "none",
    "no_barrier",
    "no_second_barrier",
    "barrier_for_some",
    "two_barriers",
    "returned",
    "exchange_for_some",
    "not_waited",
    "not_written",
    "same_word",
    "same_word_of_blocks",
    "beyond_shared",
    "beyond_global",
    "overflow",
]  # as the source numbers them
pytestmark = pytest.mark.skipif(shim.MISSING is not None, reason=str(shim.MISSING))

DEFINE = """
import sys, torch
torch.library.define("solo_attn_shim::reverse", "(Tensor x, int fault) -> Tensor")
torch.ops.load_library(sys.argv[1])
x = torch.arange(512, dtype=torch.int32)
out = torch.ops.solo_attn_shim.reverse(x, int(sys.argv[2]))
assert torch.equal(out, x.view(4, 128).flip(1).flatten()), out
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The faulty kernels, instrumented for races, and for ASan."""
    folder = tmp_path_factory.mktemp("shim")
    return {kind: shim.compile_all(kind, [SOURCE], folder / kind) for kind in shim.KINDS}


def preloaded():
    """ASan has to be there before anything else is."""
    # It looks up what C++ throws with as it starts, which Python has not loaded by then.
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libstdc++.so")
    ]
    preload = ":".join(path.strip() for path in paths)
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "SOLO_ATTN_SHIM": "asan"}


def run(built, kind, fault):
    environment = {**os.environ, **(preloaded() if kind == "asan" else {})}
    command = [sys.executable, "-c", DEFINE, str(built[kind]), str(FAULTS.index(fault))]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def ops(built):
    for name, schema in (
        ("reverse", "(Tensor x, int fault) -> Tensor"),
        ("bytes_of_words", "(Tensor x, int missing) -> Tensor"),
        ("read_by_all", "(Tensor x, int blocks, int readers) -> Tensor"),
        ("counted", "(Tensor x, int blocks) -> Tensor"),
        ("product", "(Tensor a, Tensor b) -> Tensor"),
        ("sums", "(Tensor x) -> Tensor"),
        ("twice_early", "(Tensor x, bool wait) -> Tensor"),
    ):
        torch.library.define(f"solo_attn_shim::{name}", schema)
    torch.ops.load_library(built["race"])
    seed = ctypes.CDLL(str(built["race"])).solo_attn_shim_seed
    return torch.ops.solo_attn_shim, lambda value: seed(ctypes.c_uint64(value))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", None),
        ("no_barrier", r"lane \d+ (reads shared memory that nobody wrote|\w+ shared memory .* touches too)"),
        (
            "no_second_barrier",
            r"lane \d+ (reads|writes) shared memory after line \d+ that lane \d+ .* touches too",
        ),
        ("barrier_for_some", r"(lanes wait for each other|lane \d+ reads shared memory)"),
        ("two_barriers", r"lanes wait for each other: lane \d+ waits at the __syncthreads of line \d+, lane"),
        ("returned", r"lanes wait for each other: .* has returned"),
        ("exchange_for_some", r"lanes wait for each other: lane \d+ waits for its warp at line \d+"),
        ("not_waited", r"lane \d+ reads shared memory that nobody wrote"),
        ("not_written", r"lane \d+ reads shared memory that nobody wrote"),
        ("same_word", r"lane \d+ writes global memory after line \d+ that lane \d+ of block \d+ touches too"),
        (
            "same_word_of_blocks",
            r"lane \d+ writes global memory after line \d+ that lane \d+ of block \d+ touches",
        ),
    ],
)
def test_faults_are_found(ops, fault, message):
    shim, seed = ops
    x = torch.arange(512, dtype=torch.int32)
    for order in range(3):
        seed(order)
        if message is None:
            assert torch.equal(shim.reverse(x, FAULTS.index(fault)), x.view(4, 128).flip(1).flatten())
            continue
        with pytest.raises(RuntimeError, match=f"^reverse: block \\d: {message}"):
            shim.reverse(x, FAULTS.index(fault))


def test_bytes_of_words_are_watched(ops):
    """Whole words are kept as one, until a byte of one is accessed."""
    shim, seed = ops
    x = torch.arange(512, dtype=torch.int32) % 256
    for order in range(3):
        seed(order)
        assert torch.equal(shim.bytes_of_words(x, 0), x)
        with pytest.raises(RuntimeError, match=r"lane \d+ writes shared memory .* touches too"):
            shim.bytes_of_words(x, 1)
        with pytest.raises(RuntimeError, match=r"lane \d+ (reads|writes) shared memory .* touches too"):
            shim.bytes_of_words(x, 2)


@pytest.mark.parametrize(
    ("blocks", "readers", "other"),
    [
        (1, 32, None),
        (2, 1, r"0 of block \d"),
        (2, 32, r"\d+ of block \d"),
        (1, 33, "(0|32) of block 0"),  # of two warps
    ],
)
def test_later_readers_hide_no_race_with_an_earlier_one(ops, blocks, readers, other):
    shim, seed = ops
    x = torch.zeros(1, dtype=torch.int32)
    for order in range(4):
        seed(order)
        if other is None:
            assert not shim.read_by_all(x, blocks, readers).any()
            continue
        with pytest.raises(RuntimeError, match=rf"lane \d+ \w+ global memory .* that lane {other} touches"):
            shim.read_by_all(x, blocks, readers)


def test_atomic_updates_hide_no_race_with_those_of_another_block(ops):
    shim, seed = ops
    x = torch.zeros(1, dtype=torch.int32)
    for order in range(4):
        seed(order)
        assert shim.counted(x, 1).item() == 128
        with pytest.raises(RuntimeError, match=r"lane \d+ \w+ global memory .* of block \d touches"):
            shim.counted(x, 2)


def test_a_kernel_that_begins_early_waits(ops):
    """Also: what shared memory a kernel was once allowed is not taken back by a smaller launch."""
    shim, _ = ops
    x = torch.arange(512, dtype=torch.int32)
    for _ in range(2):
        assert torch.equal(shim.twice_early(x, True), 4 * x)
    with pytest.raises(RuntimeError, match="reads memory of the launch before, for which it has not waited"):
        shim.twice_early(x, False)


@pytest.mark.parametrize(
    ("kind", "fault", "report"),
    [
        ("asan", "none", None),
        ("asan", "beyond_shared", "AddressSanitizer: heap-buffer-overflow"),
        ("asan", "beyond_global", "AddressSanitizer: heap-buffer-overflow"),
        ("race", "overflow", "runtime error: signed integer overflow"),
    ],
)
def test_sanitizers_see_the_kernels(built, kind, fault, report):
    done = run(built, kind, fault)
    assert (done.returncode == 0) == (report is None), done.stderr
    assert report is None or report in done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_twin_of_a_product(ops, dtype):
    depth = 8 if dtype == torch.float32 else 16
    # Few bits, so that tf32 holds them, and sums are exact.
    a, b = (torch.randint(-8, 9, (rows, depth)).to(dtype) for rows in (16, 8))
    assert torch.equal(ops[0].product(a, b), a.float() @ b.float().T)


def test_the_twin_of_common_bits(ops):
    a, b = (torch.randint(-(1 << 31), 1 << 31, (rows, 8)).int() for rows in (16, 8))
    bits = [
        x[..., None].bitwise_right_shift(torch.arange(32)).bitwise_and(1).flatten(1).float() for x in (a, b)
    ]
    assert torch.equal(ops[0].product(a, b), bits[0] @ bits[1].T)


def test_atomics_and_reductions(ops):
    x = torch.randint(0, 1000, (512,)).int()
    expected = [x.sum(), x.max(), *x.view(4, 128).sum(1)]
    assert ops[0].sums(x).tolist() == [int(value) for value in expected]


@pytest.mark.timeout(900)  # it compiles all of them once more
def test_the_kernels_under_asan():
    """Every kernel, at the sizes that hypothesis comes upon. All tests of the shim run them under UBSan."""
    some = "test_any_size or test_layouts or test_one_call_for_each_level"
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", folder, "-q", "-k", f"shim and ({some})"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env={**os.environ, **preloaded()},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-3000:]
    assert int(passed[1]) >= 2 * len(shim.OPS), done.stdout[-3000:]
