"""What the C++ kernel promises beyond the tests of all backends: boxes, threads, no crash."""

import pytest
import torch
from op_cases import same_bits
from test_mask_bits import check, inputs

OP = "mask_bits"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threshold", [1e-3, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("side", [7, 0], ids=["attention", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_small_objects_lose_nothing(runner, threshold, side, dtype):
    """Most of the map is far below the threshold and never made; what is left is all there."""
    coarse = torch.full((9, 24, 31), -30.0, dtype=dtype)
    for k, (y, x) in enumerate([(0, 0), (0, 30), (23, 0), (23, 30), (11, 17), (12, 0), (0, 15), (23, 5)]):
        coarse[k, y, x] = 9.0
    coarse[7, 3, 28] = 7.0
    rows = runner.randn(9, side, side, dtype=dtype) if side else None
    sizes = [((48, 62), (96, 125)), ((48, 62), (48, 62)), ((48, 62), (17, 130))]
    # At the size of the logits the map has edges, which then are enlarged; at four times that, the taps of a
    # pixel above the threshold may lie far below it.
    for size, out_size in [*sizes, ((24, 31), (96, 125)), ((96, 124), (96, 124))]:
        check(runner(coarse, rows, size, out_size, threshold), coarse, rows, size, out_size, threshold)


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.999])
def test_what_the_attention_alone_shows_is_not_lost(runner, threshold):
    coarse = torch.full((3, 10, 12), -30.0, dtype=torch.float64)
    rows = torch.zeros(3, 4, 4, dtype=torch.float64)
    rows[0, 0, 3] = rows[1, 3, 0] = rows[2, 1, 2] = 70.0
    for size, out_size in (((40, 48), (40, 48)), ((20, 24), (40, 48))):
        check(runner(coarse, rows, size, out_size, threshold), coarse, rows, size, out_size, threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [87.0, 89.0, 129.0, 710.0, 1100.0, 1e30])
def test_logits_beyond_what_the_exponential_holds(runner, value, dtype):
    coarse = torch.full((1, 3, 3), value, dtype=dtype)
    for out, area in ((runner(coarse, None, (6, 6), (6, 6)), 36), (runner(-coarse, None, (6, 6), (6, 6)), 0)):
        assert out.areas.tolist() == [area]
        assert out.maskness.tolist() == [area / 36]


@pytest.mark.parametrize("width", [61, 64, 65, 200])
def test_rows_that_end_inside_a_word(runner, width):
    coarse, rows = inputs(runner, 3, (9, 33), 5, torch.float32)
    for out_size in ((18, width), (1, width), (37, width)):
        check(runner(coarse, rows, (18, 66), out_size), coarse, rows, (18, 66), out_size)


@pytest.mark.parametrize("widths", [(100, 101, 105), (64, 65, 66), (40, 39, 38), (50, 50, 50)], ids=str)
def test_hardly_enlarged(runner, widths):
    """The taps of 16 columns are in one vector of 16 or in two."""
    coarse, rows = inputs(runner, 3, (4, widths[0]), widths[1] - 1, torch.float32)
    size, out_size = (4, widths[1]), (5, widths[2])
    check(runner(coarse, rows, size, out_size), coarse, rows, size, out_size)


def test_thread_count_changes_nothing(runner, threads):
    coarse, rows = inputs(runner, 40, (25, 31), 12, torch.float32)
    threads(1)
    expected = runner(coarse, rows, (50, 62), (100, 124))
    for count in (2, 3, 8):
        threads(count)
        out = runner(coarse, rows, (50, 62), (100, 124))
        assert all(map(same_bits, out[:3], expected[:3]))
        # Of one mask the threads share the rows.
        alone = runner(coarse[:1], rows[:1], (50, 62), (100, 124))
        assert all(same_bits(a, b[:1]) for a, b in zip(alone[:3], expected[:3], strict=True))


def test_bad_input_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    coarse, rows = inputs(runner, dtype=torch.float32)
    good = (coarse, rows, (8, 10), (16, 20), 0.5)
    runner.overload()(*good)
    bad = [
        (0, coarse[0], r"expected coarse_logits of shape .*, got \[\d+, \d+\] \(2 dims\)$"),
        (0, coarse[:, :0], "expected coarse_logits of shape"),
        (1, rows[:2], r"expected attention of shape .*, got \[2, \d+, \d+\] \(3 dims\)$"),
        (
            1,
            rows.double(),
            "expected attention of coarse_logits's dtype and device, float32 .*, got float64 .* on cpu$",
        ),
        (2, (0, 3), r"expected size \(height, width\) of at least 1, got \(0, 3\)$"),
        (3, (3, -1), r"expected out_size \(height, width\) of at least 1, got \(3, -1\)$"),
    ]
    for place, value, message in bad:
        with pytest.raises(RuntimeError, match=f"^mask_bits: {message}"):
            runner.overload()(*good[:place], value, *good[place + 1 :])
