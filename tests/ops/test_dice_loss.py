import math

import op_oracles as naive
import pytest
import torch
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
    check_rule,
    close,
    few,
    gradients,
    numpy64,
    same_bits,
)

from solo_attn.bench import plain

OP = "dice_loss"


def inputs(runner, count=3, coarse=(4, 5), side=3, dtype=None):
    shapes = [(count, *coarse)] + ([(count, side, side)] if side else [])
    return [runner.randn(*shape, dtype=dtype, seed=k) for k, shape in enumerate(shapes)]


def with_targets(runner, targets, eps=1e-3):
    return lambda coarse, rows=None: runner(coarse, rows, targets, eps)


def oracle(args, targets, eps=1e-3):
    rows = numpy64(args[1]) if len(args) > 1 else None
    return naive.dice(numpy64(args[0]), rows, targets.cpu().numpy(), eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_rule(runner, dtype, side):
    runner.needs(dtype)
    args, targets = inputs(runner, side=side, dtype=dtype), runner.rand_bool(3, 8, 11)
    run, same = with_targets(runner, targets), with_targets(plain.dice_loss, targets.ne(0))
    out, grads = gradients(run, args)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grad.dtype == dtype for grad in grads)
    check_rule(run, same, args, oracle(args, targets))


@few(max_examples=20)
@given(
    st.integers(0, 3),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 4),
    st.tuples(st.integers(1, 11), st.integers(1, 11)),
    st.sampled_from([1e-3, 1.0, 1e-6]),
)
def test_any_size(runner, count, coarse, side, size, eps):
    args, targets = inputs(runner, count, coarse, side), runner.rand_bool(count, *size)
    out, grads = gradients(with_targets(runner, targets, eps), args)
    close(out, oracle(args, targets, eps))
    assert [grad.shape for grad in grads] == [x.shape for x in args]
    if count:  # F.interpolate refuses 0
        exact = gradients(with_targets(plain.dice_loss, targets.ne(0), eps), [x.double() for x in args])[1]
        for grad, wanted in zip(grads, exact, strict=True):
            close(grad, numpy64(wanted))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_sums_do_not_fit_in_half_precision(runner, dtype):
    """200 x 336 pixels of probability 1: 67,200 is infinity in float16, and 1s vanish in bfloat16."""
    runner.needs(dtype)
    coarse = torch.full((1, 100, 168), 20.0, dtype=dtype, device=runner.device)
    targets = torch.ones(1, 200, 336, dtype=torch.bool, device=runner.device)
    assert runner(coarse, None, targets).item() == pytest.approx(0, abs=1e-6)
    targets[:, 100:] = False
    assert runner(coarse, None, targets).item() == pytest.approx(1 / 3, abs=1e-5)


def test_vanished_target(runner):
    """Spec 2, "Loss": a loss of 1 and no gradient."""
    args = inputs(runner, dtype=torch.float32)
    targets = torch.zeros(3, 8, 10, dtype=torch.bool, device=runner.device)
    out, grads = gradients(with_targets(runner, targets), args)
    assert (out == 1).all()
    for grad in grads:
        assert (grad == 0).all()


def test_both_masks_empty(runner):
    """eps keeps 0 / 0 away; far from both ends nothing overflows."""
    targets = torch.zeros(1, 4, 4, dtype=torch.bool, device=runner.device)
    for value in (-1e4, 1e4):
        args = [torch.full((1, 2, 2), value, dtype=torch.float32, device=runner.device)]
        out, (grad,) = gradients(with_targets(runner, targets), args)
        assert out.item() == 1
        assert (grad == 0).all()


def test_targets_as_bytes(runner):
    """What is not zero is the object, be it 1 or 255."""
    args, targets = inputs(runner), runner.rand_bool(3, 8, 10)
    expected = runner(*args, targets)
    for value in (1, 2, 255):
        assert torch.equal(runner(*args, targets.byte() * value), expected)


def test_rows_do_not_touch_each_other(runner):
    args, targets = inputs(runner), runner.rand_bool(3, 8, 10)
    together = runner(*args, targets)
    for k in range(3):
        alone = runner(*(x[k : k + 1] for x in args), targets[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone)


def test_nan_stays_in_its_row(runner):
    """In a gradient, and in a logit, which makes the loss of its row NaN."""
    args, targets = inputs(runner), runner.rand_bool(3, 8, 10)
    upstream = args[0].new_ones(3).to(runner(*args, targets).dtype)
    upstream[1] = math.nan
    broken = args[0].clone()
    broken[1, 2, 2] = math.nan
    for coarse, grads in ((args[0], upstream), (broken, torch.ones_like(upstream))):
        leaves = [x.clone().requires_grad_() for x in (coarse, args[1])]
        for grad in torch.autograd.grad(runner(*leaves, targets), leaves, grads):
            assert grad[1].isnan().all()
            assert grad[[0, 2]].isfinite().all()


def test_only_what_is_wanted_is_made(runner):
    """A gradient that nobody asks for is empty, the other one as it is beside it."""
    (coarse, rows), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(3, 8, 10)
    _, sums = runner.overload()(coarse, rows, targets, 1e-3)
    given = (runner.randn(3, dtype=torch.float32), coarse, rows, targets, sums)
    back = runner.overload("_bwd")
    both = back(*given)
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        for grad, whole, made in zip(back(*given, *wanted), both, wanted, strict=True):
            assert grad.shape == (whole.shape if made else (3, 0, 0))
            assert not made or same_bits(grad, whole)
    for alone in (0, 1):
        leaves = [x.detach().requires_grad_(k == alone) for k, x in enumerate((coarse, rows))]
        runner(*leaves, targets).sum().backward()
        assert leaves[alone].grad is not None
        assert leaves[1 - alone].grad is None


@pytest.mark.parametrize("side", [2, 0], ids=["attention", "plain"])
def test_gradcheck(runner, side):
    runner.needs(torch.float64)
    targets = runner.rand_bool(2, 4, 5)
    check_gradcheck(with_targets(runner, targets), inputs(runner, 2, (2, 3), side))


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    args, targets = inputs(runner, side=side), runner.rand_bool(3, 7, 9)
    if not side:
        args = [*args, None]
    sums = runner.overload()(*args, targets, 1e-3)[1]
    leaves = [None if x is None else x.clone().requires_grad_() for x in args]
    check_opcheck(runner.overload(), *leaves, targets, 1e-3)
    check_opcheck(runner.overload("_bwd"), runner.randn(3, dtype=sums.dtype), *args, targets, sums)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_compile(runner, compiler, side):
    batches = []
    for count in (3, 5):  # positives change from batch to batch
        args = inputs(runner, count, side=side, dtype=torch.float32)
        batches.append((args, runner.rand_bool(count, 8, 10)))
    for args, targets in batches[: 1 if compiler == "inductor" else 2]:
        check_compile(lambda c, a=None, t=targets: runner.raw(c, a, t), args, compiler)


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_layouts(runner, side):
    targets = runner.rand_bool(3, 7, 9)
    strided = targets.transpose(1, 2).contiguous().transpose(1, 2)
    args = inputs(runner, side=side, dtype=torch.float32)
    check_layouts(with_targets(runner, targets), args)
    check_layouts(with_targets(runner, strided), args)
    torch.testing.assert_close(runner(args[0], None, strided), runner(args[0], None, targets))
    one = targets[:1].expand(4, -1, -1)
    check_expanded(with_targets(runner, one), inputs(runner, 1, side=side), 4)


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    args = inputs(runner, 5, (28, 31), 12, dtype=torch.float32)
    check_repeatable(runner, with_targets(runner, runner.rand_bool(5, 56, 62)), args)


def test_no_second_derivative(runner):
    x = inputs(runner, side=0)[0].requires_grad_()
    (grad,) = torch.autograd.grad(runner(x, None, runner.rand_bool(3, 8, 8)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dice_loss has no second derivative"):
        grad.sum().backward()


def test_messages(runner):
    (coarse, rows), targets = inputs(runner), runner.rand_bool(3, 8, 10)
    wanted = "of shape [K, H, W] with K = 3 as coarse_logits has, and H, W >= 1"

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"dice_loss: expected {message}")

    refuses("coarse_logits of shape [K, h, w], got [4, 5] (2 dims)", coarse[0], rows, targets)
    refuses(
        "attention of shape [K, S, S] with K = 3 as coarse_logits has, and S >= 1, got [1, 3, 3]",
        coarse,
        rows[:1],
        targets,
    )
    refuses("targets of shape [K, H, W], got [8, 10] (2 dims)", coarse, rows, targets[0])
    refuses("targets of dtype bool or uint8, got torch.float32", coarse, rows, targets.float())
    refuses(f"targets {wanted}, got [2, 8, 10]", coarse, rows, targets[:2])
    refuses(f"targets {wanted}, got [3, 0, 10]", coarse, rows, targets[:, :0])
    devices = f"targets on coarse_logits's device {coarse.device}, got meta"
    refuses(devices, coarse, rows, targets.to("meta"))
    for eps in (0.0, -1.0, float("nan"), float("inf")):
        refuses(f"eps > 0 and finite, got {eps}", coarse, rows, targets, eps)
    refuses("targets to be a tensor of shape [K, H, W], got NoneType", coarse, rows, None, error=TypeError)
