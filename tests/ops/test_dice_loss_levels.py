"""Dice loss of several levels in one call: losses and gradients are those of one call for each level."""

import pytest
import torch
from op_cases import (
    DTYPES,
    Called,
    check_any_order,
    check_compile,
    check_gradcheck,
    check_message,
    check_opcheck,
    gradients,
    leaves,
    same_bits,
)

from solo_attn import dice_loss_levels

OP = "dice_loss"
# Cells, (h, w), S, the size of targets: rows of words and others, blocks of one to three warps; one level has
# no cells, one is reduced.
LEVELS = (
    (3, (7, 12), 5, (14, 24)),
    (1, (3, 70), 4, (9, 260)),
    (0, (3, 5), 3, (6, 10)),
    (2, (9, 8), 20, (11, 15)),
    (2, (12, 9), 2, (6, 4)),
)


def inputs(runner, levels=LEVELS, dtype=torch.float32, plain=()):
    """Coarse logits and attention rows by turns, all without those of the levels ``plain``; targets."""
    tensors, targets = [], []
    for k, (count, coarse, side, size) in enumerate(levels):
        tensors.append(runner.randn(count, *coarse, dtype=dtype, seed=2 * k))
        if k not in plain:
            tensors.append(runner.randn(count, side, side, dtype=dtype, seed=2 * k + 1))
        targets.append(runner.rand_bool(count, *size, seed=k))
    return tensors, targets


def levels_of(tensors, targets, plain=()):
    given = iter(tensors)
    return [(next(given), None if k in plain else next(given), truth) for k, truth in enumerate(targets)]


def together(runner, targets, plain=(), eps=1e-3):
    return lambda *x: dice_loss_levels(levels_of(x, targets, plain), eps, backend=runner.backend)


def one_by_one(runner, targets, plain=(), eps=1e-3):
    return lambda *x: torch.cat([runner.raw(*level, eps) for level in levels_of(x, targets, plain)])


def check_same(runner, tensors, targets, plain=()):
    out, grads = gradients(together(runner, targets, plain), tensors)
    expected, expected_grads = gradients(one_by_one(runner, targets, plain), tensors)
    assert same_bits(out, expected)
    for k, (grad, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
        assert same_bits(grad, wanted), k


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_call_for_each_level(runner, dtype):
    runner.needs(dtype)
    check_same(runner, *inputs(runner, dtype=dtype))


def test_all_levels_are_one_call(runner):
    tensors, targets = inputs(runner, LEVELS[2:])
    with Called() as called:
        gradients(together(runner, targets), tensors)
    one_each = [["dice_loss"] * 3, ["dice_loss_bwd"] * 3]
    forward, backward = [["dice_loss_levels"], ["dice_loss_levels_bwd"]] if runner.takes_levels else one_each
    assert called.names == [*forward, *backward]


def test_strided_inputs(runner):
    tensors, targets = inputs(runner, LEVELS[2:])
    turned, others = ([x.mT.contiguous().mT for x in given] for given in (tensors, targets))
    out, grads = gradients(together(runner, others), turned)
    expected, expected_grads = gradients(together(runner, targets), tensors)
    assert same_bits(out, expected)
    assert all(map(same_bits, grads, expected_grads))


@pytest.mark.parametrize("plain", [(0, 1, 2, 3, 4), (1, 2, 4)], ids=str)
def test_levels_without_attention(runner, plain):
    check_same(runner, *inputs(runner, plain=plain), plain)


@pytest.mark.parametrize("order", [(2, 1), (1, 2), (2,), (2, 0, 2)], ids=str)
def test_where_empty_levels_stand(runner, order):
    check_same(runner, *inputs(runner, [LEVELS[k] for k in order]))


@pytest.mark.parametrize("count", [8, 9])
def test_as_many_levels_as_one_launch_has_and_more(runner, count):
    check_same(
        runner, *inputs(runner, [(k % 3 + 1, (2, 3 + k), 2, (4, 4 + 4 * (k % 2))) for k in range(count)])
    )


# Wider than 256 threads of four columns, which takes turns: in half precision, all levels as float32.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_beside_a_level_wider_than_a_block(runner, dtype):
    check_same(runner, *inputs(runner, [LEVELS[0], (1, (2, 9), 2, (3, 1030))], dtype))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 7)], ids=str)
def test_gradients_of_some(runner, wanted):
    tensors, targets = inputs(runner)
    flags = [k in wanted for k in range(len(tensors))]
    found = []
    for function in (together, one_by_one):
        given = leaves(tensors, flags)
        function(runner, targets)(*given).sum().backward()
        found.append([x.grad for x in given])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or same_bits(ours, theirs)


def test_the_order_of_lanes_and_blocks_changes_nothing(runner):
    if runner.backend not in ("cuda", "shim"):
        pytest.skip("blocks are the CUDA kernel's own")
    tensors, targets = inputs(runner)
    check_any_order(runner, lambda: gradients(together(runner, targets), tensors))


def test_gradcheck(runner):
    runner.needs(torch.float64)
    tensors, targets = inputs(runner, [(1, (2, 3), 2, (4, 5)), (2, (1, 2), 1, (2, 4))], torch.float64)
    check_gradcheck(together(runner, targets), tensors, fast=True)


def test_opcheck_and_compile(runner):
    if runner.backend not in ("cuda", "shim", "reference"):
        pytest.skip(f"{runner.backend} has no kernel of levels: there is one call for each")
    tensors, targets = inputs(runner, LEVELS[:3])
    given = leaves(tensors)
    check_opcheck(runner.overload("_levels"), given[::2], given[1::2], targets, 1e-3)
    check_opcheck(runner.overload("_levels"), given[::2], [], targets, 1e-3)
    _, sums = runner.overload("_levels")(tensors[::2], tensors[1::2], targets, 1e-3)
    check_opcheck(
        runner.overload("_levels_bwd"), sums[:, 0].clone(), tensors[::2], tensors[1::2], targets, sums
    )
    check_compile(together(runner, targets[:2]), tensors[:4], "aot_eager")


def test_messages(runner):
    tensors, targets = inputs(runner)
    levels = levels_of(tensors, targets)

    def refuses(message, changed, eps=1e-3):
        run = lambda: dice_loss_levels(changed, eps, backend=runner.backend)  # noqa: E731
        check_message(run, ValueError, f"dice_loss: expected {message}")

    refuses("levels to be at least one, got 0", [])
    wrong = (*levels[1][:2], targets[0])
    wanted = "targets of shape [K, H, W] with K = 1 as coarse_logits has, and H, W >= 1, got [3, 14, 24]"
    refuses(wanted, [levels[0], wrong])
    refuses("eps > 0 and finite, got 0", levels, 0)
    if runner.backend in ("cuda", "shim"):  # called past the public function, as a graph does
        _, sums = runner.overload("_levels")(tensors[::2], tensors[1::2], targets, 1e-3)
        good = (sums[:, 0], tensors[::2], tensors[1::2], targets, sums)
        for place, value, message in (
            (0, sums[1:, 0], r"_bwd: expected grad of shape \[K\], K = 8"),
            (3, targets[:2], ": expected targets of 5 levels, got 2"),
            (3, targets[::-1], ": expected targets of shape"),
            (2, tensors[1:2], ": expected attention of none or of 5 levels as coarse_logits has, got 1"),
        ):
            with pytest.raises(RuntimeError, match=f"^dice_loss{message}"):
                runner.overload("_levels_bwd")(*good[:place], value, *good[place + 1 :])
