"""What the C++ kernel promises beyond the tests of all backends: threads, blocks of rows, no crash."""

import pytest
import torch
from op_cases import check_rule, gradients, same_bits
from test_dice_loss import inputs, with_targets

from solo_attn.bench import plain

OP = "dice_loss"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("side", [12, 0], ids=["attention", "plain"])
def test_thread_count_changes_nothing(runner, threads, side):
    args, targets = inputs(runner, 5, (28, 31), side, torch.float32), runner.rand_bool(5, 150, 162)
    threads(1)
    expected, grads = gradients(with_targets(runner, targets), args)
    for count in (2, 3, 8):
        threads(count)
        out, again = gradients(with_targets(runner, targets), args)
        assert same_bits(out, expected)
        assert all(map(same_bits, again, grads))
        # Of one mask the threads share the rows of the gradients.
        out, again = gradients(with_targets(runner, targets[:1]), [x[:1] for x in args])
        assert same_bits(out, expected[:1])
        assert all(same_bits(a, b[:1]) for a, b in zip(again, grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(63, 40), (65, 33), (129, 70), (5, 9), (200, 3)])
def test_rule_where_vectors_and_blocks_end(runner, dtype, size):
    """More and fewer rows than are summed at a time, widths beside whole vectors, enlarged and reduced."""
    args, targets = inputs(runner, 2, (18, 35), 7, dtype), runner.rand_bool(2, *size)
    check_rule(with_targets(runner, targets), with_targets(plain.dice_loss, targets), args)


def test_nan_stays_in_its_row(runner):
    args, targets = inputs(runner, dtype=torch.float32), runner.rand_bool(3, 8, 10)
    expected, grads = gradients(with_targets(runner, targets), args)
    args[0][1] = torch.nan
    out, again = gradients(with_targets(runner, targets), args)
    assert out.isnan().tolist() == [False, True, False]
    for k in (0, 2):
        assert out[k] == expected[k]
        assert all(torch.equal(a[k], b[k]) for a, b in zip(again, grads, strict=True))


def test_bad_input_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    (coarse, rows), targets = inputs(runner, dtype=torch.float32), runner.rand_bool(3, 8, 10)
    _, sums = runner.overload()(coarse, rows, targets, 1e-3)
    good = (torch.ones(3), coarse, rows, targets, sums)
    runner.overload("_bwd")(*good)
    bad = [
        (1, coarse[0], "expected coarse_logits of shape"),
        (2, rows[:2], "expected attention of shape"),
        (2, rows.double(), "expected attention of coarse_logits's dtype"),
        (3, targets[:2], r"expected targets of shape .*, got \[2, 8, 10\] \(3 dims\)$"),
        (3, targets[:, :0], "expected targets of shape"),
        (3, targets.float(), "expected targets of dtype bool or uint8, got float32"),
    ]
    own = [
        (0, torch.ones(2), "expected grad of shape"),
        (
            0,
            torch.ones(3).double(),
            r"expected grad .*, float32 on cpu, got float64 \[3\] \(1 dims\) on cpu$",
        ),
    ]
    own += [
        (4, sums[:2], r"expected sums .*, float32 on cpu, got float32 \[2, 2\] \(2 dims\) on cpu$"),
        (4, sums[:, :1], "expected sums of shape"),
    ]
    for place, value, message in bad + own:
        wrong = (*good[:place], value, *good[place + 1 :])
        with pytest.raises(RuntimeError, match=f"^dice_loss(_bwd)?: {message}"):
            runner.overload("_bwd")(*wrong)
        if 0 < place < 4:
            with pytest.raises(RuntimeError, match=f"^dice_loss: {message}"):
                runner.overload()(*wrong[1:4], 1e-3)
