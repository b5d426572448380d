"""What the CUDA kernels promise beyond the tests that all backends share: bands, turns, widths, orders."""

import pytest
import torch
from op_cases import BANDS, as_good_as_pytorch, check_any_order, gradients, numpy64, same_bits
from test_upsample_add import at, inputs

from solo_attn.bench import plain

OP = "upsample_add"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


def check_against_pytorch(runner, args, size):
    out, grads = gradients(at(runner, size), args)
    same, same_grads = gradients(at(plain.upsample_add, size), args)
    exact, exact_grads = gradients(at(plain.upsample_add, size), [x.double() for x in args])
    as_good_as_pytorch(out, same, numpy64(exact))
    for triple in zip(grads, same_grads, exact_grads, strict=True):
        as_good_as_pytorch(triple[0], triple[1], numpy64(triple[2]), "gradient")


@pytest.mark.parametrize(
    ("coarse", "side", "size", "dtype"),
    [*BANDS, ((9, 9), 3, (30, 36), torch.float16)],
    ids=str,
)
def test_bands_of_rows(runner, coarse, side, size, dtype):
    check_against_pytorch(runner, inputs(runner, 2, coarse, side, dtype=dtype), size)


# 256 threads of 16 bytes: more tiles, and going back more turns, whose sums are not rounded between.
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (1030, torch.float32),
        (2056, torch.float32),
        (516, torch.float64),
        (2072, torch.float16),
        (1026, torch.bfloat16),
    ],
    ids=str,
)
def test_wider_than_a_block(runner, width, dtype):
    check_against_pytorch(runner, inputs(runner, 1, (2, 9), 2, dtype=dtype), (3, width))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 12, 16, 20, 127, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_widths_around_runs(runner, width, dtype):
    check_against_pytorch(runner, inputs(runner, 2, (3, 17), 5, dtype=dtype), (4, width))


def test_memory_that_16_bytes_do_not_divide(runner):
    upstream = runner.randn(2, 9, 16, dtype=torch.float32)
    store = upstream.new_zeros(upstream.numel() + 1)
    store[1:] = upstream.flatten()
    back = runner.overload("_bwd")
    moved = back(store[1:].view(upstream.shape), (5, 8), (3, 3))
    assert all(map(same_bits, moved, back(upstream, (5, 8), (3, 3))))


def test_each_gradient_alone_is_the_same(runner):
    upstream = runner.randn(2, 40, 24, dtype=torch.float32)
    back = runner.overload("_bwd")
    coarse, rows = back(upstream, (20, 12), (7, 7))
    alone, none = back(upstream, (20, 12), (0, 0))
    assert same_bits(alone, coarse)
    assert none.shape == (2, 0, 0)
    assert same_bits(back(upstream, (7, 7), (0, 0))[0], rows)


def test_infinity_stays_where_it_is(runner):
    x = torch.zeros(1, 8, 8, device=runner.device)
    x[:, 4, 4] = torch.inf
    out, wanted = runner(x, None, (24, 24)), plain.upsample_add(x, None, (24, 24))
    assert torch.equal(out.isinf(), wanted.isinf())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, dtype):
    args = inputs(runner, 2, (20, 17), 7, dtype=dtype)
    check_any_order(runner, lambda: gradients(at(runner, (40, 40)), args))


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does."""
    (coarse, rows), op = inputs(runner), runner.overload()
    for bad in (rows[:2], rows[0], rows[:, :0], rows[:, 1:], rows.half()):
        with pytest.raises(RuntimeError, match=r"^upsample_add: expected attention of "):
            op(coarse, bad, (8, 8))
    with pytest.raises(RuntimeError, match=r"^upsample_add: expected size "):
        op(coarse, rows, (8, 0))
    with pytest.raises(RuntimeError, match=r"^upsample_add_bwd: expected grad of shape"):
        runner.overload("_bwd")(coarse[0], (4, 5), (3, 3))
