"""What the CUDA kernels promise beyond the tests that all backends share: bands, tiles, bytes, orders."""

import pytest
import torch
from op_cases import check_any_order
from test_mask_bits import check, inputs

OP = "mask_bits"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


# Bands of rows and their taps, 8 at a time in the shim; the last row twice, the first one; reduced.
@pytest.mark.parametrize(
    ("size", "out_size"),
    [
        ((18, 20), (37, 40)),
        ((18, 20), (72, 81)),
        ((5, 20), (61, 23)),
        ((1, 9), (20, 11)),
        ((40, 20), (9, 12)),
        ((33, 20), (33, 20)),
        ((20, 33), (20, 66)),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [5, 0], ids=["attention", "plain"])
def test_bands_of_rows(runner, size, out_size, side):
    coarse, rows = inputs(runner, 2, (9, 12), side, torch.float32)
    check(runner(coarse, rows, size, out_size), coarse, rows, size, out_size)


# Rows that are whole bytes are written where they belong, others are put together; 1,024 columns a block.
@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 9, 61, 64, 72, 200, 1023, 1028, 1032])
def test_rows_that_end_inside_a_byte_or_a_word(runner, width):
    coarse, rows = inputs(runner, 2, (3, 33), 4, torch.float32)
    for height in (1, 5):
        check(runner(coarse, rows, (4, 66), (height, width)), coarse, rows, (4, 66), (height, width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [87.0, 89.0, 129.0, 710.0, 1100.0, 1e30])
def test_logits_beyond_what_the_exponential_holds(runner, value, dtype):
    coarse = torch.full((1, 3, 3), value, dtype=dtype, device=runner.device)
    for out_size in ((6, 6), (12, 12)):
        full, none = runner(coarse, None, (6, 6), out_size), runner(-coarse, None, (6, 6), out_size)
        assert full.areas.tolist() == [out_size[0] * out_size[1]]
        assert full.maskness.tolist() == [1]
        assert (none.areas.tolist(), none.maskness.tolist()) == ([0], [0])


def test_an_infinite_logit_stays_where_it_is(runner):
    coarse = torch.full((1, 8, 8), -3.0, device=runner.device)
    coarse[0, 4, 4] = torch.inf
    out = runner(coarse, None, (8, 8), (8, 8))
    assert (out.areas.item(), out.maskness.item()) == (1, 1)


@pytest.mark.parametrize("out_size", [(24, 35), (48, 70)], ids=["same size", "enlarged"])
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, out_size):
    coarse, rows = inputs(runner, 2, (12, 17), 5, torch.float32)
    check_any_order(runner, lambda: runner(coarse, rows, (24, 35), out_size)[:3])
