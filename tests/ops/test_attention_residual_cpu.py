"""What the C++ kernels promise beyond the tests that all backends share: threads, blocks, strides, tails."""

import pytest
import torch
from op_cases import as_good_as_pytorch, gradients, numpy64, same_bits
from test_attention_residual import check_refusals, inputs

from solo_attn.bench import plain

OP = "attention_residual"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thread_count_changes_nothing(runner, threads, dtype):
    args = inputs(runner, channels=40, side=13, size=(37, 41), dtype=dtype)
    threads(1)
    expected, expected_grads = gradients(runner, args)
    for count in (2, 3, 8):
        threads(count)
        out, grads = gradients(runner, args)
        assert same_bits(out, expected)
        assert all(map(same_bits, grads, expected_grads))


@pytest.mark.parametrize("side", [7, 8, 9, 13])
@pytest.mark.parametrize("channels", [1, 256, 257, 513])
def test_sizes_around_tiles(runner, side, channels):
    """Groups of 12 cells, panels of 32, four groups at a time, sums in parts of 256."""
    args = inputs(runner, 1, channels, side, (11, 23), dtype=torch.float32)
    out, grads = gradients(lambda m, g: runner(m, g, channels**-0.5), args)
    same, same_grads = gradients(lambda m, g: plain.attention_residual(m, g, channels**-0.5), args)
    wide = [x.double() for x in args]
    exact, exact_grads = gradients(lambda m, g: plain.attention_residual(m, g, channels**-0.5), wide)
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grads[1], same_grads[1], numpy64(exact_grads[1]), "gradient")


@pytest.mark.parametrize("width", [1, 2, 12, 13, 14, 15, 16, 17, 31, 33, 64, 100])
def test_widths_around_vectors(runner, width):
    """Rows are made 16 or 8 columns at a time; a grid of 13 is also reduced."""
    args = inputs(runner, 1, 3, 13, (5, width), dtype=torch.float32)
    out, grads = gradients(runner, args)
    same, same_grads = gradients(plain.attention_residual, args)
    exact, exact_grads = gradients(plain.attention_residual, [x.double() for x in args])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grads[1], same_grads[1], numpy64(exact_grads[1]), "gradient")


def test_in_place_is_out_of_place_to_the_bit(runner):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        logits, features = inputs(runner, channels=33, side=7, size=(29, 50), dtype=dtype)
        expected = runner(logits, features)
        assert same_bits(runner(logits.clone(), features, inplace=True), expected)


def test_infinite_logits_and_gradients_stay_where_they_are(runner):
    logits, features = inputs(runner, 1, 3, 4, (16, 16), dtype=torch.float32)
    logits[0, 5, 3, 3] = torch.inf
    out = runner(logits, features)
    assert out.isinf().sum() == 1
    grad = torch.zeros_like(logits)
    grad[0, 5, 3, 3] = torch.nan  # between the inputs 0 and 1 of each axis
    rows = torch.ops.solo_attn.grid_attention_bwd
    back = runner.overload("_bwd")(grad, features, 1.0)
    touched = torch.zeros(1, 16, 4, 4)
    touched[0, 5, :2, :2] = torch.nan
    assert torch.equal(back.isnan(), rows(touched, features, 1.0, None).isnan())


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does."""
    check_refusals(runner)
