"""What the CUDA kernels promise beyond the tests that all backends share: blocks, orders, widths, tails."""

from functools import partial

import pytest
import torch
from op_cases import (
    as_good_as_pytorch,
    check_any_order,
    check_opcheck,
    check_tf32,
    gradients,
    numpy64,
    rounded_to_tf32,
    same_bits,
    tf32,
)
from test_attention_residual import check_refusals, inputs

from solo_attn.bench import plain

OP = "attention_residual"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


def check_against_pytorch(runner, args):
    out, grads = gradients(lambda m, g: runner(m, g, 0.4), args)
    same, same_grads = gradients(lambda m, g: plain.attention_residual(m, g, 0.4), args)
    exact, exact_grads = gradients(partial(plain.attention_residual, scale=0.4), [x.double() for x in args])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grads[1], same_grads[1], numpy64(exact_grads[1]), "gradient")


# The shim has room for 40 KB of maps at a time, and keeps 1 KB of one in shared memory: whole maps and parts
# of 64 rows or fewer, kept or read where they lie; blocks of several bands.
@pytest.mark.parametrize(
    ("batch", "channels", "side", "size", "dtype"),
    [
        (1, 3, 20, (37, 48), torch.float32),
        (1, 33, 20, (5, 6), torch.float32),  # reduced
        (1, 3, 21, (43, 29), torch.float32),
        (2, 3, 7, (29, 30), torch.float64),
        (1, 34, 12, (61, 64), torch.bfloat16),
        (1, 3, 9, (20, 33), torch.float16),
    ],
    ids=str,
)
def test_sizes_around_blocks(runner, batch, channels, side, size, dtype):
    check_against_pytorch(runner, inputs(runner, batch, channels, side, size, dtype=dtype))


TALL = [(1, (150, 4)), (2, (300, 3)), (3, (200, 8)), (2, (9, 16))]
WIDE = [(2, (2, 1044)), (2, (37, 1044)), (1, (1, 2060)), (3, (3, 1031))]


# 64 rows of pixels' taps at a time backwards, 512 and 32 to a thread forwards; 1,024 columns of pixels; a
# thread looks four or more rows ahead.
@pytest.mark.parametrize(("side", "size"), TALL + WIDE)
def test_tall_and_wide_maps(runner, side, size):
    check_against_pytorch(runner, inputs(runner, 1, 2, side, size, dtype=torch.float32))


# Of these maps the shim has room for a few rows at a time, which begin where 16 bytes do not.
@pytest.mark.parametrize(
    ("side", "size", "dtype"),
    [
        (26, (5, 60), torch.float32),
        (25, (3, 61), torch.float64),
        (25, (2, 24), torch.bfloat16),
        (27, (4, 13), torch.float32),
        (26, (3, 2), torch.float32),
        (29, (2, 1), torch.float32),
    ],
    ids=str,
)
def test_grids_of_any_size(runner, side, size, dtype):
    """The forward pass: for the gradient a grid of 25 is as one of 20."""
    args = inputs(runner, 1, 2, side, size, dtype=dtype)
    exact = plain.attention_residual(*(x.double() for x in args), 0.4)
    as_good_as_pytorch(runner(*args, 0.4), plain.attention_residual(*args, 0.4), numpy64(exact))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU would take hours for 90,000 cells")
@pytest.mark.parametrize(("side", "dtype"), [(300, torch.float32), (150, torch.float64)], ids=str)
def test_a_large_grid(runner, side, dtype):
    check_against_pytorch(runner, inputs(runner, 1, 2, side, (2, 700), dtype=dtype))


# Tiles of 64 cells, 16 channels at a time; both widths of reads.
@pytest.mark.parametrize(("batch", "channels", "side", "size"), [(1, 33, 12, (25, 28)), (2, 64, 7, (9, 10))])
def test_tf32_where_pytorch_may(runner, batch, channels, side, size):
    logits, features = inputs(runner, batch, channels, side, size, dtype=torch.float32)
    check_tf32(
        lambda m, g: runner(m, g, 0.4),
        partial(plain.attention_residual, scale=0.4),
        [logits, features],
        [logits, rounded_to_tf32(features)],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_tf32_is_for_float32_alone(runner, dtype):
    args = inputs(runner, channels=9, dtype=dtype)
    before = gradients(runner, args)
    with tf32():
        out, grads = gradients(runner, args)
    assert same_bits(out, before[0])
    assert all(map(same_bits, grads, before[1]))


def test_the_backward_pass_rounds_as_the_forward_did(runner):
    logits, features = inputs(runner, channels=8, dtype=torch.float32)
    upstream = runner.randn(*logits.shape, dtype=torch.float32, seed=3)
    grads = [runner.overload("_bwd")(upstream, features, 0.3, given) for given in (False, True)]
    assert not same_bits(*grads)
    features.requires_grad_()
    for given in (True, False):
        with tf32(given):
            out = runner(logits, features, 0.3)
        with tf32(not given):
            (grad,) = torch.autograd.grad(out, features, upstream)
        assert same_bits(grad, grads[given])


def test_tf32_in_place_and_compiled(runner):
    args = inputs(runner, channels=9, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda m, g: runner.raw(m * 2, g), fullgraph=True, backend="aot_eager")
    results = []
    for on in (False, True):
        with tf32(on):
            results.append(runner(*args))
            assert same_bits(runner(args[0].clone(), args[1], inplace=True), results[-1])
            found = gradients(compiled, args)
            expected = gradients(lambda m, g: runner.raw(m * 2, g), args)
        assert same_bits(found[0], expected[0])
        assert all(map(same_bits, found[1], expected[1]))
    assert not same_bits(*results)
    check_opcheck(runner.overload(), *(x.requires_grad_() for x in args), 0.7, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, dtype):
    args = inputs(runner, 2, 33, 7, (19, 24), dtype=dtype)
    check_any_order(runner, lambda: gradients(runner, args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_in_place_is_out_of_place_to_the_bit(runner, dtype):
    for width in (16, 13):
        logits, features = inputs(runner, channels=3, side=4, size=(19, width), dtype=dtype)
        expected = runner(logits, features)
        assert same_bits(runner(logits.clone(), features, inplace=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_that_16_bytes_do_not_divide(runner, dtype):
    """Where the first pixel, or the first feature, lies decides about the width of reads alone."""
    args = inputs(runner, channels=3, side=4, size=(5, 16), dtype=dtype)
    expected, expected_grads = gradients(runner, args)
    for which in (0, 1):
        store = args[which].new_zeros(args[which].numel() + 1)
        store[1:] = args[which].flatten()
        moved = list(args)
        moved[which] = store[1:].view(args[which].shape)
        out, grads = gradients(runner, moved)
        assert same_bits(out, expected)
        assert all(map(same_bits, grads, expected_grads))
    upstream = expected_grads[0]
    store = upstream.new_zeros(upstream.numel() + 1)
    store[1:] = upstream.flatten()
    back = runner.overload("_bwd")
    moved = back(store[1:].view(upstream.shape), args[1], 1.0)
    assert same_bits(moved, back(upstream, args[1], 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_half_precision_are_rounded_once(runner, dtype):
    """The gradient of the maps stays in float32."""
    logits, features = inputs(runner, channels=40, side=5, size=(21, 24), dtype=dtype)
    back = runner.overload("_bwd")
    single = back(logits.float(), features.float(), 0.7)
    room = 0.51 * torch.finfo(dtype).eps * single.abs() + 1e-6 * single.abs().max()
    assert ((back(logits, features, 0.7).float() - single).abs() <= room).all()


def test_infinite_logits_and_gradients_stay_where_they_are(runner):
    logits, features = inputs(runner, 1, 3, 4, (16, 16), dtype=torch.float32)
    logits[0, 5, 3, 3] = torch.inf
    assert runner(logits, features).isinf().sum() == 1
    grad = torch.zeros_like(logits)
    grad[0, 5, 3, 3] = torch.nan  # between the inputs 0 and 1 of each axis
    back = runner.overload("_bwd")(grad, features, 1.0)
    touched = torch.zeros(1, 3, 16, dtype=torch.bool, device=back.device)
    # dV_n takes V_m (dG_nm + dG_mn): the row of cell 5 has the NaN, at cells 0, 1, 4 and 5.
    touched[..., [0, 1, 4, 5]] = True
    assert torch.equal(back.flatten(2).isnan(), touched)


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does."""
    check_refusals(runner)
