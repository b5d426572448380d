"""Dice loss of kernels and features: SOLOv2's, whose product no backend needs to keep."""

import math

import numpy as np
import op_oracles as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    DTYPES,
    check_compile,
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

from solo_attn import MaskFactors
from solo_attn.backends import BACKENDS
from solo_attn.bench import plain

OP = "dice_loss"
FUSED = [backend.name for backend in BACKENDS if "factors" in backend.forms]


def inputs(runner, count=4, depth=5, batch=2, size=(6, 7), side=3, dtype=None):
    """Kernels, features and attention, and the image of each cell: the last one has none of them."""
    shapes = [(count, depth), (batch, depth, *size)] + ([(count, side, side)] if side else [])
    made = [runner.randn(*shape, dtype=dtype, seed=k) for k, shape in enumerate(shapes)]
    images = torch.arange(count, device=runner.device).flip(0) % max(batch - 1, 1)
    return made, images


def given_factors(function, images, targets, eps=1e-3):
    return lambda kernels, features, rows=None: function(
        MaskFactors(kernels, features, images), rows, targets, eps
    )


def in_pytorch(images, targets, eps=1e-3):
    return lambda kernels, features, rows=None: plain.dice_loss(
        plain.product(kernels, features, images), rows, targets, eps
    )


def oracle(args, images, targets, eps=1e-3):
    kernels, features = numpy64(args[0]), numpy64(args[1])[images.tolist()]
    logits = np.stack([np.einsum("e,ehw->hw", k, f) for k, f in zip(kernels, features, strict=True)])
    return naive.dice(logits, numpy64(args[2]) if len(args) > 2 else None, targets.cpu().numpy(), eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_rule(runner, dtype, side):
    runner.needs(dtype)
    (args, images), targets = inputs(runner, side=side, batch=3, dtype=dtype), runner.rand_bool(4, 6, 7)
    run, same = given_factors(runner, images, targets), in_pytorch(images, targets)
    out, grads = gradients(run, args)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grad.dtype == dtype for grad in grads)
    assert (grads[1][2] == 0).all(), "an image without cells has a gradient, of zeros"
    check_rule(run, same, args, oracle(args, images, targets))


@few(max_examples=8)
@given(
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 3),
)
def test_any_size(runner, count, depth, batch, size, side):
    args, images = inputs(runner, count, depth, batch, size, side)
    targets = runner.rand_bool(count, *size)
    out, grads = gradients(given_factors(runner, images, targets), args)
    assert [grad.shape for grad in grads] == [x.shape for x in args]
    if count:
        close(out, oracle(args, images, targets))
        exact = gradients(in_pytorch(images, targets), [x.double() for x in args])[1]
        for grad, wanted in zip(grads, exact, strict=True):
            close(grad, numpy64(wanted))


@pytest.mark.not_interpreted("it is of the product and the op, which have such tests")
@pytest.mark.parametrize("size", [(23, 31), (23, 50), (40, 64), (300, 5)], ids=str)
def test_rule_where_tiles_and_bands_end(runner, size):
    """More pixels than a band, masks than a tile, channels than are summed at once; bands end within rows."""
    if runner.backend not in FUSED:
        pytest.skip(f"{runner.backend} has no kernel of factors: PyTorch makes the product")
    args, images = inputs(runner, 15, 71, 2, size, 7, torch.float32)
    args[0] /= 8  # logits of about 1
    targets = runner.rand_bool(15, *size)
    check_rule(given_factors(runner, images, targets), in_pytorch(images, targets), args)


def test_other_sizes_make_the_product_first(runner):
    """Targets that are not of the features' size: the op itself on the product."""
    (args, images), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(4, 9, 14)
    check_rule(given_factors(runner, images, targets), in_pytorch(images, targets), args)


def test_the_product_is_not_kept(runner):
    """What backward is given are the inputs and two sums a mask."""
    if runner.backend not in FUSED:
        pytest.skip(f"{runner.backend} has no kernel of factors: PyTorch makes the product")
    kernels, features = runner.randn(40, 3).requires_grad_(), runner.randn(1, 3, 20, 20).requires_grad_()
    images = torch.zeros(40, dtype=torch.int64)
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    targets = runner.rand_bool(40, 20, 20)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        runner(MaskFactors(kernels, features, images), None, targets)
    assert sorted(kept) == sorted([kernels.numel(), features.numel(), 40, targets.numel(), 80])


def test_only_what_is_wanted_is_made(runner):
    (args, images), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(4, 6, 7)
    kernels, features, rows = args
    _, sums = runner.overload("_factors")(kernels, features, images, rows, targets, 1e-3)
    given = (runner.randn(4, dtype=torch.float32), kernels, features, images, rows, targets, sums)
    back = runner.overload("_factors_bwd")
    whole = back(*given)
    nothing = [(0, 5), (0, 5, 6, 7), (4, 0, 0)]
    for flags in range(8):
        wanted = [bool(flags >> k & 1) for k in range(3)]
        for grad, full, none, made in zip(back(*given, *wanted), whole, nothing, wanted, strict=True):
            assert grad.shape == (full.shape if made else none)
            assert not made or same_bits(grad, full)


def test_nan_stays_in_its_mask(runner):
    (args, images), targets = inputs(runner, batch=1, dtype=torch.float32), runner.rand_bool(4, 6, 7)
    args[0][1, 2] = math.nan
    leaves = [x.requires_grad_() for x in args]
    loss = given_factors(runner, images, targets)(*leaves)
    assert loss.isnan().tolist() == [False, True, False, False]
    kernels, _, rows = torch.autograd.grad(loss.sum(), leaves)
    for grad in (kernels, rows):
        assert grad[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("side", [2, 0], ids=["attention", "plain"])
def test_gradcheck(runner, side):
    runner.needs(torch.float64)
    (args, images), targets = inputs(runner, 3, 2, 2, (2, 3), side), runner.rand_bool(3, 2, 3)
    check_gradcheck(given_factors(runner, images, targets), args)


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    (args, images), targets = inputs(runner, side=side), runner.rand_bool(4, 6, 7)
    kernels, features, rows = [*args, None][:3]
    sums = runner.overload("_factors")(kernels, features, images, rows, targets, 1e-3)[1]
    leaves = [None if x is None else x.clone().requires_grad_() for x in (kernels, features, rows)]
    check_opcheck(runner.overload("_factors"), *leaves[:2], images, leaves[2], targets, 1e-3)
    upstream = runner.randn(4, dtype=sums.dtype)
    check_opcheck(runner.overload("_factors_bwd"), upstream, kernels, features, images, rows, targets, sums)


@pytest.mark.parametrize("batch", [1, 2])
def test_compile(runner, batch):
    (args, images), targets = inputs(runner, batch=batch, dtype=torch.float32), runner.rand_bool(4, 6, 7)
    check_compile(given_factors(runner.raw, images, targets), args, "aot_eager")


def test_layouts(runner):
    ((kernels, features, rows), images), targets = (
        inputs(runner, dtype=torch.float32),
        runner.rand_bool(4, 6, 7),
    )
    apart = torch.stack([images, images + 1], dim=1)[:, 0]
    for places, masks in ((images, targets), (apart, targets.mT.contiguous().mT)):
        run = given_factors(runner, places, masks)
        check_layouts(lambda f, k, r, run=run: run(k, f, r), [features, kernels, rows])


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    args, images = inputs(runner, 14, 9, 2, (28, 31), 12, torch.float32)
    run = given_factors(runner, images, runner.rand_bool(14, 28, 31))
    check_repeatable(runner, run, args)
    if runner.backend == "cpu":
        before, (expected, grads) = torch.get_num_threads(), gradients(run, args)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, again = gradients(run, args)
            torch.set_num_threads(before)
            assert same_bits(out, expected)
            assert all(map(same_bits, again, grads))


def test_no_second_derivative(runner):
    (args, images), targets = inputs(runner, side=0), runner.rand_bool(4, 6, 7)
    leaves = [x.requires_grad_() for x in args]
    loss = given_factors(runner, images, targets)(*leaves).sum()
    (grad,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"dice_loss.* has no second derivative"):
        grad.sum().backward()


def test_messages(runner):
    (args, images), targets = inputs(runner), runner.rand_bool(4, 6, 7)
    kernels, features, rows = args

    def refuses(message, factors, attention=rows, masks=targets, error=ValueError):
        run = lambda: runner.raw(MaskFactors(*factors), attention, masks)  # noqa: E731
        check_message(run, error, f"dice_loss: expected {message}")

    refuses("kernels of shape [K, E], got [5] (1 dims)", (kernels[0], features, images))
    refuses("kernels of shape [K, E] with E >= 1, got [4, 0]", (kernels[:, :0], features, images))
    refuses(
        "features of shape [B, E, h, w] with E = 5 as kernels has, and B, h, w >= 1, got [2, 4, 6, 7]",
        (kernels, features[:, :4], images),
    )
    other = torch.float16
    refuses(
        f"features of kernels's dtype {kernels.dtype}, got {other}", (kernels, features.to(other), images)
    )
    refuses(
        "images int64 of shape [K] with K = 4 as kernels has, got torch.int32 [4]",
        (kernels, features, images.int()),
    )
    wanted = "of shape [K, S, S] with K = 4 as kernels has, and S >= 1, got [2, 3, 3]"
    refuses(f"attention {wanted}", (kernels, features, images), rows[:2])
    wanted = "of shape [K, H, W] with K = 4 as kernels has, and H, W >= 1, got [3, 6, 7]"
    refuses(f"targets {wanted}", (kernels, features, images), masks=targets[:3])
    refuses(
        "images to be a tensor of shape [K], got list", (kernels, features, [0, 0, 1, 1]), error=TypeError
    )


@pytest.mark.parametrize("wrong", [-1, 2])
def test_an_image_outside_of_the_batch_is_an_error(runner, wrong):
    if runner.device == "cuda":
        pytest.skip("a failed assertion on a GPU ends the process")
    (args, images), targets = inputs(runner), runner.rand_bool(4, 6, 7)
    images[2] = wrong
    with pytest.raises((ValueError, RuntimeError), match=r"expected images in 0\.\.1"):
        given_factors(runner, images, targets)(*args)


def test_bad_input_of_the_compiled_op_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    if runner.backend != "cpu":
        pytest.skip("the checks of C++")
    (args, images), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(4, 6, 7)
    kernels, features, rows = args
    _, sums = runner.overload("_factors")(kernels, features, images, rows, targets, 1e-3)
    good = (torch.ones(4), kernels, features, images, rows, targets, sums)
    for place, value, message in (
        (0, torch.ones(3), "expected grad of shape"),
        (1, kernels[0], "expected kernels of shape"),
        (2, features[:, :3], "expected features of shape"),
        (2, features.double(), "expected features of kernels's dtype"),
        (3, images[:2], "expected images int64 of shape"),
        (4, rows[:2], "expected attention of shape"),
        (5, targets[:, :3], "expected targets of features's size"),
        (5, targets.float(), "expected targets of dtype bool or uint8"),
        (6, sums[:2], "expected sums of shape"),
    ):
        wrong = (*good[:place], value, *good[place + 1 :])
        with pytest.raises(RuntimeError, match=f"^dice_loss(_bwd)?: {message}"):
            runner.overload("_factors_bwd")(*wrong)
