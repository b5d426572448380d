"""What the C++ kernels promise beyond the tests that all backends share: threads, taps, tails."""

import ctypes
import sys

import pytest
import torch
import torch.nn.functional as F
from op_cases import as_good_as_pytorch, check_message, gradients, numpy64, same_bits
from test_upsample_add import at, inputs

from solo_attn.bench import plain

OP = "upsample_add"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thread_count_changes_nothing(runner, threads, dtype):
    """Threads take runs of rows that begin anywhere in a cell."""
    args = inputs(runner, 7, (35, 41), 12, dtype=dtype)
    threads(1)
    expected, expected_grads = gradients(at(runner, (71, 90)), args)
    for count in (2, 3, 8):
        threads(count)
        out, grads = gradients(at(runner, (71, 90)), args)
        assert same_bits(out, expected)
        assert all(map(same_bits, grads, expected_grads))


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 47, 48, 100, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_widths_around_vectors(runner, width, dtype):
    args = inputs(runner, 2, (3, 17), 5, dtype=dtype)
    size = (4, width)
    out, grads = gradients(at(runner, size), args)
    same, same_grads = gradients(at(plain.upsample_add, size), args)
    exact, exact_grads = gradients(at(plain.upsample_add, size), [x.double() for x in args])
    as_good_as_pytorch(out, same, numpy64(exact))
    for triple in zip(grads, same_grads, exact_grads, strict=True):
        as_good_as_pytorch(triple[0], triple[1], numpy64(triple[2]), "gradient")


@pytest.fixture
def heap_of_nan():
    """What malloc hands out next was used before, and left full of NaN."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def fill():
        sizes = [size for size in range(32, 4096, 16) for _ in range(8)]
        blocks = [libc.malloc(size) for size in sizes]
        for block, size in zip(blocks, sizes, strict=True):
            ctypes.memset(block, 0xFF, size)
        for block in blocks:
            libc.free(block)

    return fill


@pytest.mark.skipif(sys.platform != "linux", reason="fills the heap through the C library of Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 15, 16, 17, 31])
def test_what_lies_beyond_a_row_is_not_looked_at(runner, threads, heap_of_nan, width, dtype):
    """The last outputs have a weight of 0 for the input after the last, which must not be NaN for that."""
    threads(1)
    coarse, rows = inputs(runner, 1, (2, width), 5, dtype=dtype)
    size = (4, 2 * width + 1)
    expected = plain.upsample_add(coarse.double(), rows.double(), size)
    for _ in range(5):
        heap_of_nan()
        out = runner(coarse, rows, size)
        torch.testing.assert_close(out, expected.to(dtype))


def test_taps_are_those_of_interpolate(runner):
    """Every output of every pair of small sizes, and some where float32 would choose another tap."""
    pairs = [(n, m) for n in range(1, 20) for m in range(1, 40)] + [(997, 2991), (1000, 7), (336, 1344)]
    for n, m in pairs:
        x = runner.randn(1, 1, n, seed=n)
        exact = F.interpolate(x.unsqueeze(0), (1, m), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(runner(x, None, (1, m)), exact, rtol=0, atol=1e-11)


def test_infinity_stays_where_it_is(runner):
    x = torch.zeros(1, 1, 8)
    x[..., 4] = torch.inf
    out = runner(x, None, (1, 24))
    part = F.interpolate(x[None].isinf().double(), (1, 24), mode="bilinear")[0]
    assert torch.equal(out, torch.where(part > 0, torch.inf, 0))  # F.interpolate has NaN where the part is 0


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does."""
    (coarse, rows), op = inputs(runner), runner.overload()
    k, side, _ = rows.shape
    shaped = (
        f"upsample_add: expected attention of shape [K, S, S] with S >= 1, K = {k} as coarse_logits has, got "
    )
    for bad, got in (
        (rows[:2], f"[2, {side}, {side}] (3 dims)"),
        (rows[0], f"[{side}, {side}] (2 dims)"),
        (rows[:, :0], f"[{k}, 0, {side}] (3 dims)"),
        (rows[:, 1:], f"[{k}, {side - 1}, {side}] (3 dims)"),
    ):
        check_message(lambda bad=bad: op(coarse, bad, (8, 8)), RuntimeError, shaped + got)
    wanted = "upsample_add: expected attention of coarse_logits's dtype and device, float64 "
    wanted += (
        f"[{', '.join(map(str, coarse.shape))}] (3 dims) on cpu, got float32 [{k}, {side}, {side}] (3 dims)"
    )
    check_message(lambda: op(coarse, rows.float(), (8, 8)), RuntimeError, f"{wanted} on cpu")
    wanted = "upsample_add: expected coarse_logits of shape [K, h, w] with h, w >= 1, got "
    wanted += f"[{k}, 0, {coarse.shape[2]}] (3 dims)"
    check_message(lambda: op(coarse[:, :0], rows, (8, 8)), RuntimeError, wanted)
    wanted = "upsample_add: expected size (height, width) of at least 1, got (8, 0)"
    check_message(lambda: op(coarse, rows, (8, 0)), RuntimeError, wanted)
    back = runner.overload("_bwd")
    for args, said in (
        ((coarse[0], (4, 4), (0, 0)), "grad of shape [K, H, W] with H, W >= 1, got [4, 5] (2 dims)"),
        ((coarse, (4, 0), (0, 0)), "coarse_size (height, width) of at least 1, got (4, 0)"),
        ((coarse, (4, 4), (0, -1)), "attention_size (height, width), 0 without attention, got (0, -1)"),
    ):
        check_message(lambda args=args: back(*args), RuntimeError, f"upsample_add_bwd: expected {said}")
