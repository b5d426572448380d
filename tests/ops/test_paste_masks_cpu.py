"""What the C++ kernel promises beyond the tests of all backends: both forms, boxes, threads, no crash."""

import math
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import few
from test_large_results import most_warm
from test_paste_masks import SIZES, check, inputs

from solo_attn import ops

OP = "paste_masks"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def decoded(rle):
    """COCO's text back to pixels, in loops."""
    counts, number, shift = [], 0, 0
    for byte in rle["counts"]:
        number |= (byte - 48 & 31) << shift
        shift += 5
        if byte - 48 & 32:
            continue
        if byte - 48 & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(rle["size"], order="F")


@few(max_examples=25)
@given(st.data())
def test_both_forms_are_one_mask(runner, data):
    """Columns of more than a word, images smaller and larger than the map, masks that touch every edge."""
    coco_mask = pytest.importorskip("pycocotools.mask", reason='the extra "train" is not installed')
    draw, edge = data.draw, st.integers(1, 12)
    sizes = [draw(st.tuples(edge, edge)), draw(st.tuples(edge, edge))]
    sizes.append(tuple(draw(st.integers(1, 4 * x)) for x in sizes[1]))
    sizes.append(draw(st.tuples(st.integers(1, 200), st.integers(1, 150))))
    threshold = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    coarse, rows = inputs(runner, 4, draw(st.tuples(edge, edge)), draw(st.integers(0, 5)), dtype)
    masks = runner(coarse, rows, *sizes, threshold)
    rles = runner(coarse, rows, *sizes, threshold, rle=True)
    for mask, rle in zip(masks.numpy(), rles, strict=True):
        np.testing.assert_array_equal(decoded(rle), mask)
        assert rle == coco_mask.encode(np.asfortranarray(mask))


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
    sizes = ((48, 62), (50, 70), (190, 277), (150, 131))
    check(runner(coarse, rows, *sizes, threshold), coarse, rows, sizes, threshold)


def test_set_up_to_the_edge_of_the_box(runner):
    """Beside a sure pixel, what is just below the threshold is set as far as that one reaches."""
    coarse = torch.full((4, 4, 5), -0.02)
    coarse[0, 0], coarse[1, 3], coarse[2, :, 0], coarse[3, :, 4] = 8.0, 8.0, 8.0, 8.0
    sizes = ((4, 5), (4, 5), (16, 20), (16, 20))
    masks = runner(coarse, None, *sizes)
    check(masks, coarse, None, sizes)
    assert masks.flatten(1).sum(1).tolist() == [6 * 20, 6 * 20, 6 * 16, 6 * 16]
    for mask, rle in zip(masks.numpy(), runner(coarse, None, *sizes, rle=True), strict=True):
        np.testing.assert_array_equal(decoded(rle), mask)


def test_nothing_to_see(runner):
    for value in (-1000.0, float("nan"), -float("inf")):
        coarse = torch.full((2, 3, 4), value)
        assert not runner(coarse, None, *SIZES).any()
        assert [decoded(rle).any() for rle in runner(coarse, None, *SIZES, rle=True)] == [False, False]


def test_thread_count_changes_nothing(runner, threads):
    """13 cells: with 2 and 3 threads each is one thread's, with 8 they share all of them."""
    coarse, rows = inputs(runner, 13, (25, 31), 12, torch.float32)
    coarse[0], coarse[1, :, 8:] = 9.0, 9.0  # runs that go on where the columns of another thread begin
    sizes = ((50, 62), (100, 124), (390, 480), (333, 444))
    threads(1)
    masks, rles = runner(coarse, rows, *sizes), runner(coarse, rows, *sizes, rle=True)
    for count in (2, 3, 8):
        threads(count)
        assert torch.equal(runner(coarse, rows, *sizes), masks)
        assert runner(coarse, rows, *sizes, rle=True) == rles
        # Of few cells the threads share the strips.
        assert torch.equal(runner(coarse[3:7], rows[3:7], *sizes), masks[3:7])
        assert runner(coarse[3:7], rows[3:7], *sizes, rle=True) == rles[3:7]
        assert torch.equal(runner(coarse[:1], rows[:1], *sizes), masks[:1])
        assert runner(coarse[:1], rows[:1], *sizes, rle=True) == rles[:1]


@pytest.mark.parametrize("widths", [(100, 101, 105, 423), (64, 65, 66, 265), (40, 39, 38, 150)], ids=str)
def test_hardly_enlarged(runner, widths):
    """The taps of 16 pixels are in one vector of 16 or in two."""
    coarse, rows = inputs(runner, 3, (4, widths[0]), widths[1] - 1, torch.float32)
    sizes = ((4, widths[1]), (5, widths[2]), (19, 4 * widths[2] - 1), (21, widths[3]))
    check(runner(coarse, rows, *sizes), coarse, rows, sizes)
    turned = coarse.mT, rows, *(size[::-1] for size in sizes)
    check(runner(*turned), *turned[:2], turned[2:])


@pytest.mark.parametrize("count", [1, 2, 8], ids=lambda n: f"{n}_threads")
@pytest.mark.parametrize("original", [(410, 823), (410, 800), (97, 61)], ids=str)
def test_strips_of_a_wide_map(runner, threads, count, original):
    """Nothing between two objects, or below and above others; columns that are set to their last pixel."""
    threads(count)
    coarse = torch.full((9, 50, 100), -9.0, dtype=torch.float64)
    coarse[0, 10:20, :8], coarse[0, 30:45, 90:] = 9.0, 9.0
    coarse[1, 25:] = 9.0  # each column to the bottom: its run ends at the top of the next one
    coarse[2, :, 40:60] = 9.0
    coarse[3, :5, :30], coarse[3, 45:, 70:] = 9.0, 9.0
    coarse[4] = 9.0
    for k, edge in enumerate((24, 25, 26)):  # about where a strip ends after which there is nothing
        coarse[5 + k, :, :edge], coarse[5 + k, :, 99:] = 9.0, 9.0
    coarse += 0.01 * torch.rand(
        coarse.shape, generator=torch.Generator().manual_seed(0)
    )  # no pixel is at 0.5
    coarse[8, 10:20, 10:30], coarse[8, 30:40, 20:90], coarse[8, 45, 99] = math.nan, math.inf, math.nan
    sizes = ((100, 200), (200, 400), (790, 1590), original)
    wanted = ops.paste_masks(coarse, None, *sizes, backend="reference")
    for logits in (coarse, coarse.float()):
        masks, rles = runner(logits, None, *sizes), runner(logits, None, *sizes, rle=True)
        assert (masks != wanted).sum() <= (0 if logits is coarse else 3)  # float32 rounds
        for mask, rle in zip(masks.numpy(), rles, strict=True):
            np.testing.assert_array_equal(decoded(rle), mask)
        for some in (slice(0, 1), slice(5, 9)):  # that more threads share
            assert torch.equal(runner(logits[some], None, *sizes), masks[some])
            assert runner(logits[some], None, *sizes, rle=True) == rles[some]


@pytest.mark.parametrize("count", [1, 2, 8], ids=lambda n: f"{n}_threads")
def test_every_pixel_of_a_large_result_is_written(runner, threads, count):
    """From 32 MiB on, into memory of an earlier result, here of ones, past the cache where nothing is set."""
    threads(count)  # with 8 they share all cells, else each is one thread's
    coarse, rows = inputs(runner, 9, (25, 31), 12, torch.float32)
    coarse[0], coarse[1], coarse[2:7] = 9.0, -9.0, -9.0
    coarse[2, 10:15, 12:20], coarse[3, :3, :4], coarse[4, 20:, 25:] = 9.0, 9.0, 9.0
    coarse[5, :, 11:13], coarse[6, 11:13], coarse[6, 20, 30] = 9.0, 9.0, 9.0
    sizes = ((50, 62), (100, 124), (390, 480), (1900, 2101))
    small = torch.cat([runner(coarse[k : k + 1], rows[k : k + 1], *sizes) for k in range(9)])
    large = runner(coarse, rows, *sizes)
    assert large[0].numel() < 32 << 20 < large.numel()
    if sys.platform == "linux":
        assert large.data_ptr() % (2 << 20) == 0
    assert torch.equal(large, small)
    assert torch.equal(large.logical_not_(), ~small)
    place = large.fill_(True).data_ptr()
    del large
    again = runner(coarse, rows, *sizes)
    if sys.platform == "linux":  # of a small memory nothing may be kept
        assert again.data_ptr() == place or most_warm() < 128
    assert torch.equal(again, small)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says what a process has mapped")
def test_pages_of_a_large_result_are_used_again(runner):
    coarse = torch.full((40, 3, 4), -9.0)

    def mapped():
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    before = mapped()
    for _ in range(20):
        assert not runner(coarse, None, (6, 8), (12, 16), (48, 64), (1000, 1000))[-1].any()
    assert mapped() - before < 100 << 20


def test_bad_input_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    coarse, rows = inputs(runner, dtype=torch.float32)
    good = (coarse, rows, *SIZES, 0.5)
    bad = [
        (0, coarse[0], "expected coarse_logits of shape"),
        (0, coarse[:, :0], "expected coarse_logits of shape"),
        (1, rows[:2], "expected attention of shape"),
        (1, rows.double(), "expected attention of coarse_logits's dtype"),
        (2, (0, 3), r"expected size \(height, width\) of at least 1"),
        (3, (3, -1), r"expected out_size \(height, width\) of at least 1"),
        (4, (29, 31), r"expected image_size within 4 x out_size \(.*\), got \(29, 31\)$"),
        (5, (3, 0), r"expected original_size \(height, width\) of at least 1"),
    ]
    for suffix in ("", "_rle"):
        runner.overload(suffix)(*good)
        for place, value, message in bad:
            with pytest.raises(RuntimeError, match=f"^paste_masks: {message}"):
                runner.overload(suffix)(*good[:place], value, *good[place + 1 :])
