from functools import partial

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
    layouts,
    numpy64,
)

from solo_attn.bench import plain

OP = "attention_residual"


def oracle(logits, features, scale=1.0):
    rows = naive.attention(numpy64(features), scale)
    batch, cells, height, width = logits.shape
    large = naive.enlarge(rows.reshape(-1, *rows.shape[2:]), (height, width))
    return numpy64(logits) + large.reshape(batch, cells, height, width)


def inputs(runner, batch=2, channels=5, side=3, size=(7, 10), dtype=None, seed=0):
    return [
        runner.randn(batch, side * side, *size, dtype=dtype, seed=seed),
        runner.randn(batch, channels, side, side, dtype=dtype, seed=seed + 1),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(7, 10), (2, 2)], ids=["enlarged", "reduced"])
def test_rule(runner, dtype, size):
    runner.needs(dtype)
    args = inputs(runner, channels=37, size=size, dtype=dtype)
    same = partial(plain.attention_residual, scale=0.7)
    check_rule(lambda m, g: runner(m, g, 0.7), same, args, oracle(*args, 0.7))


@few(max_examples=15)
@given(
    st.integers(0, 2),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_any_size(runner, batch, channels, side, height, width, seed):
    args = inputs(runner, batch, channels, side, (height, width), seed=seed)
    out, grads = gradients(runner, args)
    close(out, oracle(*args))
    if batch:  # F.interpolate refuses 0
        _, exact_grads = gradients(plain.attention_residual, [x.double() for x in args])
        for grad, exact in zip(grads, exact_grads, strict=True):
            close(grad, numpy64(exact))
    assert [grad.shape for grad in grads] == [x.shape for x in args]


@pytest.mark.parametrize("size", [(2, 150), (150, 2)], ids=["wide", "high"])
def test_more_than_a_block(runner, size):
    """A program of a kernel takes a part of the columns, or of the grid's rows, and meets the next one's."""
    args = inputs(runner, batch=1, side=9, size=size, dtype=torch.float32)
    check_rule(runner, plain.attention_residual, args, oracle(*args))


def test_no_grid(runner):
    out, grads = gradients(runner, inputs(runner, side=0))
    assert out.shape == (2, 0, 7, 10)
    assert grads[1].shape == (2, 5, 0, 0)


def test_one_map_for_a_grid_of_one_cell(runner):
    logits, features = inputs(runner, side=1)
    square = (features.flatten(1) ** 2).sum(1)
    close(runner(logits, features), numpy64(logits + square[:, None, None, None]))


def test_a_dynamic_convolution(runner):
    """Spec 4.4: up(V_k . V) = V_k . up(V), whichever side is enlarged."""
    logits, features = inputs(runner, dtype=runner.finest)
    large = F.interpolate(features, logits.shape[2:], mode="bilinear", align_corners=False)
    vectors = features.flatten(2)
    close(runner(logits, features), numpy64(logits + torch.einsum("bck,bchw->bkhw", vectors, large)))


def test_gradient_of_the_logits_is_the_upstream(runner):
    logits, features = inputs(runner)
    leaf = logits.clone().requires_grad_()
    upstream = runner.randn(*logits.shape, seed=5)
    (grad,) = torch.autograd.grad(runner(leaf, features), leaf, upstream)
    assert torch.equal(grad, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(runner, dtype):
    runner.needs(dtype)
    logits, features = inputs(runner, dtype=dtype)
    expected = runner(logits, features, 0.7)
    kept = features.clone()
    for name, target in layouts(logits):
        target = target.clone(memory_format=torch.preserve_format) if name != "odd offset" else target
        version = target._version
        out = runner(target, features, 0.7, inplace=True)
        assert out is target
        assert torch.equal(out, expected), name
        assert target._version > version, "autograd must see that a saved tensor has changed"
    assert torch.equal(features, kept)


def test_in_place_leaves_what_lies_between(runner):
    logits, features = inputs(runner)
    store = torch.full((*logits.shape[:3], 21), 7.0, dtype=logits.dtype, device=logits.device)
    view = store[..., 1::2].copy_(logits)
    runner(view, features, inplace=True)
    assert torch.equal(view, runner(logits, features))
    assert (store[..., ::2] == 7).all()


def test_in_place_where_rows_share_memory(runner):
    logits, features = inputs(runner)
    with pytest.raises(RuntimeError, match="single memory location"):
        runner.raw(logits[:1].expand(2, -1, -1, -1), features, inplace=True)


@pytest.mark.parametrize("which", [0, 1])
def test_in_place_refuses_a_gradient(runner, which):
    args = inputs(runner)
    kept = args[0].clone()
    args[which] = (args[which] * 1).requires_grad_()
    check_message(
        lambda: runner.raw(*args, inplace=True),
        ValueError,
        "attention_residual: expected inplace False where a gradient is needed (or torch.no_grad()), "
        "got True",
    )
    assert torch.equal(args[0], kept)
    with torch.no_grad():
        assert runner(*args, inplace=True) is args[0]


def test_in_place_is_seen_by_autograd(runner):
    logits, features = inputs(runner)
    saved = logits.requires_grad_() * 1
    product = saved.square()
    with torch.no_grad():
        runner(saved, features, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_autocast_changes_nothing(runner):
    args = inputs(runner, channels=33, dtype=torch.float32)
    expected, expected_grads = gradients(runner, args)
    with torch.autocast(runner.device, torch.bfloat16):
        out, grads = gradients(runner, args)
    assert all(map(torch.equal, [out, *grads], [expected, *expected_grads]))


def test_gradcheck(runner):
    runner.needs(torch.float64)
    small = inputs(runner, channels=2, side=2, size=(3, 5))
    check_gradcheck(lambda m, g: runner(m, g, 0.7), small, fast=runner.backend == "shim")


def test_opcheck(runner):
    logits, features = inputs(runner)
    leaves = [x.clone().requires_grad_() for x in (logits, features)]
    check_opcheck(runner.overload(), *leaves, 0.7)
    check_opcheck(runner.overload("_bwd"), logits, features, 0.7)
    check_opcheck(runner.overload("_"), logits, features, 0.7)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    first = inputs(runner, dtype=torch.float32)
    second = inputs(runner, size=(9, 6), dtype=torch.float32)
    # inductor asserts that strides are those the fake promised.
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in first]
    check_compile(lambda m, g: runner.raw(m, g, 0.7), channels_last, compiler)
    if compiler != "inductor":
        check_compile(lambda m, g: runner.raw(m, g, 0.7), first, compiler, second)


def test_compile_in_place(runner):
    logits, features = inputs(runner, dtype=torch.float32)
    expected = runner(logits, features)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda m, g: runner.raw(m, g, inplace=True) + 1, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(logits, features), expected + 1)
    torch.testing.assert_close(logits, expected)


def test_layouts(runner):
    check_layouts(runner, inputs(runner, dtype=torch.float32))
    check_expanded(runner, inputs(runner, batch=1), 2)


def test_half_precision_is_rounded_once(runner):
    check_rounded_once(runner, lambda m, g: runner(m, g, 0.7), inputs(runner, channels=64))


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    check_repeatable(runner, runner, inputs(runner, channels=33, side=7, size=(28, 31), dtype=torch.float32))


def test_no_second_derivative(runner):
    logits, features = (x.requires_grad_() for x in inputs(runner))
    out = runner(logits, features).square().sum()
    (grad,) = torch.autograd.grad(out, features, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_residual has no second derivative"):
        grad.sum().backward()


def check_refusals(runner):
    """What compiled ops say for themselves."""
    logits, features = inputs(runner, dtype=torch.float32)
    place = f"on {logits.device}"
    for suffix, name in (("", "mask_logits"), ("_", "mask_logits"), ("_bwd", "grad")):
        op = runner.overload(suffix)
        message = f"attention_residual: expected {name} of shape [B, S*S, H, W] with H, W >= 1, dtype and "
        message += f"device for grid_features float32 [2, 5, 3, 3] (4 dims) {place}, got "
        for bad, said in (
            (logits[:, :8], "float32 [2, 8, 7, 10] (4 dims)"),
            (logits[:1], "float32 [1, 9, 7, 10] (4 dims)"),
            (logits[0], "float32 [9, 7, 10] (3 dims)"),
            (logits.double(), "float64 [2, 9, 7, 10] (4 dims)"),
            (logits[..., :0], "float32 [2, 9, 7, 0] (4 dims)"),
        ):
            wanted = f"{message}{said} {place}"
            check_message(lambda op=op, bad=bad: op(bad, features, 1.0), RuntimeError, wanted)
        wanted = "attention_residual: expected grid_features of shape [B, C, S, S], got [2, 5, 3, 2] (4 dims)"
        check_message(lambda op=op: op(logits, features[..., :2], 1.0), RuntimeError, wanted)


def test_messages(runner):
    logits, features = inputs(runner)
    wanted = "of shape [B, S*S, H, W] = [2, 9, H, W] with H, W >= 1 for grid_features [2, 5, 3, 3]"

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"attention_residual: expected {message}")

    refuses("mask_logits of shape [B, S*S, H, W], got [9, 7, 10] (3 dims)", logits[0], features)
    refuses("grid_features of shape [B, C, S, S], got [5, 3, 3] (3 dims)", logits, features[0])
    refuses("grid_features of shape [B, C, S, S], a square grid, got [2, 5, 3, 2]", logits, features[..., :2])
    refuses(f"mask_logits {wanted}, got [2, 8, 7, 10]", logits[:, :8], features)
    refuses(f"mask_logits {wanted}, got [1, 9, 7, 10]", logits[:1], features)
    refuses(f"mask_logits {wanted}, got [2, 9, 0, 10]", logits[:, :, :0], features)
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"mask_logits {floats}, got torch.bool", logits > 0, features)
    refuses(f"grid_features {floats}, got torch.uint8", logits, features.byte())
    refuses(
        "grid_features of mask_logits's dtype torch.float32, got torch.float16",
        logits.float(),
        features.half(),
    )
    refuses(f"grid_features on mask_logits's device {logits.device}, got meta", logits, features.to("meta"))
    refuses(
        "mask_logits to be a tensor of shape [B, S*S, H, W], got NoneType", None, features, error=TypeError
    )
