"""What the CUDA kernels promise beyond the tests of all backends: bands, turns, what is wanted, orders."""

import pytest
import torch
from op_cases import BANDS, check_any_order, check_rule, gradients
from test_dice_loss import inputs, with_targets

from solo_attn.bench import plain

OP = "dice_loss"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


# Words of four targets, and single ones.
@pytest.mark.parametrize(
    ("coarse", "side", "size", "dtype"),
    [*BANDS, ((9, 9), 3, (30, 35), torch.float16)],
    ids=str,
)
def test_bands_of_rows(runner, coarse, side, size, dtype):
    args, targets = inputs(runner, 2, coarse, side, dtype), runner.rand_bool(2, *size)
    check_rule(with_targets(runner, targets), with_targets(plain.dice_loss, targets), args)


# 256 threads of four columns: more tiles, and going back more turns, whose sums are not rounded between.
# Sums of float64 have room for fewer columns at a time.
@pytest.mark.parametrize(
    ("width", "dtype"), [(1030, torch.float32), (1032, torch.bfloat16), (1000, torch.float64)], ids=str
)
def test_wider_than_a_block(runner, width, dtype):
    args, targets = inputs(runner, 1, (2, 9), 2, dtype), runner.rand_bool(1, 3, width)
    check_rule(with_targets(runner, targets), with_targets(plain.dice_loss, targets), args)


@pytest.mark.parametrize("width", [1, 3, 4, 5, 127, 128, 129])
def test_widths_around_words(runner, width):
    args, targets = inputs(runner, 2, (3, 17), 5, torch.float32), runner.rand_bool(2, 4, width)
    check_rule(with_targets(runner, targets), with_targets(plain.dice_loss, targets), args)


def test_targets_that_no_word_begins_at(runner):
    args, targets = inputs(runner, 2, (4, 6), 3, torch.float32), runner.rand_bool(2, 8, 12)
    store = targets.new_zeros(targets.numel() + 1)
    store[1:] = targets.flatten()
    out, grads = gradients(with_targets(runner, store[1:].view(targets.shape)), args)
    expected, expected_grads = gradients(with_targets(runner, targets), args)
    torch.testing.assert_close([out, *grads], [expected, *expected_grads])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, dtype):
    args, targets = inputs(runner, 2, (20, 17), 7, dtype), runner.rand_bool(2, 40, 36)
    check_any_order(runner, lambda: gradients(with_targets(runner, targets), args))


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does."""
    (coarse, rows), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(3, 8, 10)
    _, sums = runner.overload()(coarse, rows, targets, 1e-3)
    good = (torch.ones_like(sums[:, 0]), coarse, rows, targets, sums)
    runner.overload("_bwd")(*good)
    for place, value, message in (
        (0, good[0].double(), "_bwd: expected grad of shape"),
        (1, coarse[0], ": expected coarse_logits of shape"),
        (2, rows.double(), ": expected attention of coarse_logits's dtype"),
        (3, targets[:2], ": expected targets of shape"),
        (3, targets.float(), ": expected targets of dtype bool or uint8"),
        (4, sums[:, :1], "_bwd: expected sums of shape"),
    ):
        wrong = (*good[:place], value, *good[place + 1 :])
        with pytest.raises(RuntimeError, match=f"^dice_loss{message}"):
            runner.overload("_bwd")(*wrong)
