import math

import op_oracles as naive
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    COMPILERS,
    DTYPES,
    check_compile,
    check_expanded,
    check_gradcheck,
    check_layouts,
    check_message,
    check_opcheck,
    check_repeatable,
    check_rounded_once,
    check_rule,
    close,
    few,
    gradients,
    numpy64,
)

from solo_attn.bench import plain

OP = "upsample_add"


def enlarge(x, size):
    return F.interpolate(x.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def inputs(runner, count=3, coarse=(4, 5), side=3, dtype=None, seed=0):
    shapes = [(count, *coarse)] + ([(count, side, side)] if side else [])
    return [runner.randn(*shape, dtype=dtype, seed=seed + k) for k, shape in enumerate(shapes)]


def at(runner, size):
    return lambda coarse, rows=None: runner(coarse, rows, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 10), (5, 13), (2, 3)], ids=["doubled", "odd", "reduced"])
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_rule(runner, dtype, size, side):
    runner.needs(dtype)
    args = inputs(runner, side=side, dtype=dtype)
    exact = naive.logits(numpy64(args[0]), numpy64(args[1]) if side else None, size)
    check_rule(at(runner, size), at(plain.upsample_add, size), args, exact)


@few(max_examples=20)
@given(
    st.integers(0, 3),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 4),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
)
def test_any_size(runner, count, coarse, side, size):
    args = inputs(runner, count, coarse, side)
    out, grads = gradients(at(runner, size), args)
    close(out, naive.logits(numpy64(args[0]), numpy64(args[1]) if side else None, size))
    assert [grad.shape for grad in grads] == [x.shape for x in args]
    if count:  # F.interpolate refuses 0
        exact = gradients(at(plain.upsample_add, size), [x.double() for x in args])[1]
        for grad, wanted in zip(grads, exact, strict=True):
            close(grad, numpy64(wanted))


@pytest.mark.parametrize(("coarse", "side"), [((25, 42), 12), ((50, 84), 40)])
def test_sizes_of_the_paper(runner, coarse, side):
    args = inputs(runner, 2, coarse, side, dtype=torch.float32)
    size = (2 * coarse[0], 2 * coarse[1])
    check_rule(at(runner, size), at(plain.upsample_add, size), args)


def test_same_size_is_a_copy(runner):
    (x,) = inputs(runner, side=0)
    out = runner(x, None, (4, 5))
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_convolution_and_enlarging_commute(runner):
    """Spec 4.1: up2(W f + b) = W up2(f) + b for a 1x1 convolution."""
    features, weight, bias = runner.randn(6, 4, 5), runner.randn(9, 6, seed=1), runner.randn(9, seed=2)
    coarse = torch.einsum("kc,chw->khw", weight, features) + bias[:, None, None]
    large = torch.einsum("kc,chw->khw", weight, enlarge(features, (8, 10))) + bias[:, None, None]
    close(runner(coarse, None, (8, 10)), numpy64(large))


def test_attention_of_chosen_cells(runner):
    """Spec 4.4: up(V_k . V) = V_k . up(V)."""
    vectors, coarse = runner.randn(6, 3, 3), torch.zeros(9, 4, 4, dtype=runner.finest, device=runner.device)
    rows = torch.einsum("ck,cij->kij", vectors.flatten(1), vectors)
    large = torch.einsum("ck,chw->khw", vectors.flatten(1), enlarge(vectors, (8, 8)))
    close(runner(coarse, rows, (8, 8)), numpy64(large))


@pytest.mark.parametrize("side", [2, 0], ids=["attention", "plain"])
def test_gradcheck(runner, side):
    runner.needs(torch.float64)
    check_gradcheck(at(runner, (5, 7)), inputs(runner, 2, (2, 3), side))


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    leaves = [x.requires_grad_() for x in inputs(runner, side=side)]
    check_opcheck(runner.overload(), leaves[0], leaves[1] if side else None, (7, 9))
    check_opcheck(runner.overload("_bwd"), runner.randn(3, 7, 9), (4, 5), (side, side))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_compile(runner, compiler, side):
    first = inputs(runner, side=side, dtype=torch.float32)
    # The number of chosen cells changes from image to image.
    second = inputs(runner, 5, side=side, dtype=torch.float32)
    more = [second] if compiler != "inductor" else []
    check_compile(lambda c, a=None: runner.raw(c, a, (8, 10)), first, compiler, *more)


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_layouts(runner, side):
    check_layouts(at(runner, (7, 9)), inputs(runner, side=side, dtype=torch.float32))
    check_expanded(at(runner, (7, 9)), inputs(runner, 1, side=side), 4)


def test_half_precision_is_rounded_once(runner):
    check_rounded_once(runner, at(runner, (13, 17)), inputs(runner))


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    check_repeatable(runner, at(runner, (56, 62)), inputs(runner, 5, (28, 31), 12, dtype=torch.float32))


@pytest.mark.parametrize("to", [(7, 9), (56, 140)], ids=["one block", "several"])
def test_nan_in_a_gradient_stays_near(runner, to):
    """It reaches the inputs that have a part in its pixel, and neither other inputs nor other masks."""
    args = inputs(runner, 3, (28, 70), 12, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in args]
    upstream = runner.randn(3, *to, dtype=torch.float32, seed=9)
    upstream[1, to[0] // 2, to[1] // 2] = math.nan
    grads = torch.autograd.grad(runner(*leaves, to), leaves, upstream)
    wanted = torch.autograd.grad(plain.upsample_add(*leaves, to), leaves, upstream)
    for grad, allowed in zip(grads, wanted, strict=True):
        assert grad[1].isnan().any()
        assert not (grad.isnan() & ~allowed.isnan()).any()


def test_no_second_derivative(runner):
    (x,) = (x.requires_grad_() for x in inputs(runner, side=0))
    (grad,) = torch.autograd.grad(runner(x, None, (8, 8)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_add has no second derivative"):
        grad.sum().backward()


def test_messages(runner):
    coarse, rows = inputs(runner)
    wanted = "of shape [K, S, S] with K = 3 as coarse_logits has, and S >= 1"

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"upsample_add: expected {message}")

    refuses("coarse_logits of shape [K, h, w], got [4, 5] (2 dims)", coarse[0], rows, (8, 8))
    refuses("coarse_logits of shape [K, h, w] with h, w >= 1, got [3, 0, 5]", coarse[:, :0], rows, (8, 8))
    refuses("attention of shape [K, S, S], got [3, 3] (2 dims)", coarse, rows[0], (8, 8))
    refuses(f"attention {wanted}, got [2, 3, 3]", coarse, rows[:2], (8, 8))
    refuses(f"attention {wanted}, got [3, 3, 2]", coarse, rows[..., :2], (8, 8))
    refuses(f"attention {wanted}, got [3, 0, 0]", coarse, rows[:, :0, :0], (8, 8))
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"coarse_logits {floats}, got torch.int32", coarse.int(), rows, (8, 8))
    dtypes = "attention of coarse_logits's dtype torch.float32, got torch.bfloat16"
    refuses(dtypes, coarse.float(), rows.bfloat16(), (8, 8))
    refuses(f"attention on coarse_logits's device {coarse.device}, got meta", coarse, rows.to("meta"), (8, 8))
    refuses("size (height, width) of at least 1, got (0, 8)", coarse, rows, (0, 8))
    refuses("size (height, width) of at least 1, got (8, -1)", coarse, rows, (8, -1))
    for size in (8, (8,), (8, 8, 8), (8.0, 8), ("8", 8), None):
        refuses(f"size to be (height, width) in integers, got {size!r}", coarse, rows, size, error=TypeError)
