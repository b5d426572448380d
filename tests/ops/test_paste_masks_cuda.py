"""What the CUDA kernels promise beyond the tests that all backends share: bands, stores, words of columns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import check_any_order, few
from test_paste_masks import check, inputs
from test_paste_masks_cpu import decoded

OP = "paste_masks"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


# Stores of 16 pixels, of 4, and of one; bands of 64 rows; 2,048 columns a block; the image reduced.
@pytest.mark.parametrize(
    "original",
    [(70, 48), (130, 36), (65, 33), (9, 5), (3, 2064), (2, 2049), (1, 1)],
    ids=str,
)
def test_sizes_around_blocks(runner, original):
    coarse, rows = inputs(runner, 1, (5, 7), 3, torch.float32)
    for sizes in (((10, 14), (10, 14), (37, 51), original), ((10, 14), (23, 29), (92, 116), original)):
        check(runner(coarse, rows, *sizes), coarse, rows, sizes)


@few(max_examples=15)
@given(st.data())
def test_both_forms_are_one_mask(runner, data):
    """Columns of more than a word, images smaller and larger than the map, masks that touch every edge."""
    draw, edge = data.draw, st.integers(1, 9)
    sizes = [draw(st.tuples(edge, edge)), draw(st.tuples(edge, edge))]
    sizes.append(tuple(draw(st.integers(1, 4 * x)) for x in sizes[1]))
    sizes.append(draw(st.tuples(st.integers(1, 100), st.integers(1, 70))))
    threshold = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    coarse, rows = inputs(runner, 3, draw(st.tuples(edge, edge)), draw(st.integers(0, 4)), dtype)
    masks = runner(coarse, rows, *sizes, threshold)
    for rle, mask in zip(runner(coarse, rows, *sizes, threshold, rle=True), masks, strict=True):
        assert torch.equal(torch.from_numpy(decoded(rle)), mask.cpu())


@pytest.mark.parametrize("value", [-1000.0, torch.nan, -torch.inf])
def test_logits_that_set_nothing(runner, value):
    sizes = ((8, 8), (8, 8), (32, 32), (40, 40))
    for threshold in (0.0, 0.5):
        coarse = torch.full((1, 4, 4), value, device=runner.device)
        assert not runner(coarse, None, *sizes, threshold).any()
        assert len(runner(coarse, None, *sizes, rle=True)) == 1


def test_the_order_of_lanes_and_blocks_changes_nothing(runner):
    coarse, rows = inputs(runner, 3, (6, 7), 3, torch.float32)
    sizes = ((12, 14), (24, 28), (90, 100), (70, 48))
    check_any_order(runner, lambda: (runner(coarse, rows, *sizes), runner(coarse, rows, *sizes, rle=True)))
