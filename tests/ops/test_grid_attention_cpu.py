"""What the C++ kernels promise beyond the tests that all backends share: threads, blocks, no crash."""

import pytest
import torch
from op_cases import as_good_as_pytorch, check_message, gradients, numpy64, same_bits
from test_grid_attention import check_refusals

from solo_attn.bench import plain

OP = "grid_attention"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def some_cells(count, batch, cells):
    generator = torch.Generator().manual_seed(count)
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in (batch, cells)], 1)


@pytest.mark.parametrize("chosen", [None, 1, 12, 13, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thread_count_changes_nothing(runner, threads, chosen, dtype):
    x = runner.randn(2, 50, 11, 11, dtype=dtype)
    cells = None if chosen is None else some_cells(chosen, 2, 121)
    threads(1)
    expected, (expected_grad,) = gradients(lambda x: runner(x, 0.3, cells), [x])
    for count in (2, 3, 8):
        threads(count)
        out, (grad,) = gradients(lambda x: runner(x, 0.3, cells), [x])
        assert same_bits(out, expected)
        assert same_bits(grad, expected_grad)


@pytest.mark.parametrize("side", [3, 4, 10, 12, 14])
@pytest.mark.parametrize("channels", [1, 11, 12, 13, 256, 257])
@pytest.mark.parametrize("chosen", [None, 11, 12, 25, 33])
def test_sizes_around_tiles(runner, side, channels, chosen):
    """Tiles of 12 x 32 in blocks of 96 x 96; sums in parts of 256."""
    x = runner.randn(1, channels, side, side, dtype=torch.float32)
    cells = None if chosen is None else some_cells(chosen, 1, side * side)
    out, (grad,) = gradients(lambda x: runner(x, 0.3, cells), [x])
    same, (same_grad,) = gradients(lambda x: plain.grid_attention(x, 0.3, cells), [x])
    exact, (exact_grad,) = gradients(lambda x: plain.grid_attention(x, 0.3, cells), [x.double()])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grad, same_grad, numpy64(exact_grad), "gradient")
    if cells is None:
        rows = out.flatten(2)
        assert torch.equal(rows, rows.mT)


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does: nothing is read out of bounds."""
    x, op, back = runner.randn(2, 4, 3, 3), runner.overload(), runner.overload("_bwd")
    check_refusals(x, op, back)
    outside = torch.tensor([[0, 9]])
    message = "grid_attention: expected cells of (image < 2, cell < 9), got images 0..0 and cells 9..9"
    check_message(lambda: op(x, 1.0, outside), ValueError, message)
    check_message(lambda: back(x.new_zeros(1, 3, 3), x, 1.0, outside), ValueError, message)
