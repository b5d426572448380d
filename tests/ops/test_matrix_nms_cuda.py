"""What the CUDA kernels promise beyond the tests that all backends share: tiles, panels, orders, no crash."""

import pytest
import torch
from op_cases import check_any_order
from test_matrix_nms import blobs

from solo_attn import matrix_nms

OP = "matrix_nms"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"


def check_against_reference(runner, args, kernel="gaussian"):
    expected = matrix_nms(*args, kernel, backend="reference")
    torch.testing.assert_close(runner(*args, kernel), expected, rtol=1e-12, atol=1e-14)


# Tiles are 32 x 32; the shim holds 16 KiB of IoUs at a time, panels of 32 rows from 64 masks of float64 on.
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 97])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_counts_around_tiles(runner, count, kernel):
    check_against_reference(runner, blobs(runner, count, (9, 11), labels=1, dtype=torch.float64), kernel)


@pytest.mark.parametrize("labels", [2, 5, 40])
def test_labels_that_begin_and_end_within_tiles(runner, labels):
    check_against_reference(runner, blobs(runner, 70, (9, 11), labels, dtype=torch.float64))


@pytest.mark.parametrize("first", [1, 31, 32, 33, 63])
def test_a_label_that_begins_at_the_edge_of_a_tile(runner, first):
    masks, _, scores = blobs(runner, 66, (9, 11), dtype=torch.float64)
    labels = (torch.arange(66, device=masks.device) >= first).long()
    check_against_reference(runner, (masks, labels, scores))


# A lane packs 16 pixels, four times 4,096 at once by all of a block; a row is padded to 512.
@pytest.mark.parametrize("width", [1, 15, 16, 17, 511, 512, 513, 4100, 16416])
def test_widths_around_words(runner, width):
    masks, labels, scores = blobs(runner, 5, (4, 4), labels=1, dtype=torch.float64)
    masks = runner.rand_bool(5, 1, width) | (torch.arange(width, device=masks.device) % 5 == 0)
    check_against_reference(runner, (masks, labels, scores))


def test_rows_that_begin_anywhere(runner):
    """Rows of 16 pixels more than a multiple of 16 bytes apart, and a first one that is not aligned."""
    masks, labels, scores = blobs(runner, 6, (8, 40), labels=1, dtype=torch.float64)
    expected = runner(masks, labels, scores)
    for before, after in ((1, 0), (3, 5), (0, 8), (16, 16)):
        flat = masks.flatten(1)
        wide = torch.cat([flat.new_ones(6, before), flat, flat.new_ones(6, after)], 1)
        rows = wide[:, before : before + flat.shape[1]]
        out, _ = runner.overload()(rows, labels, scores, "gaussian", 2.0)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, kernel):
    args = blobs(runner, 70, (9, 70), labels=2, dtype=torch.float32)
    check_any_order(runner, lambda: runner(*args, kernel))


def test_images_of_a_batch_keep_apart(runner):
    """One call for two images whose labels are made to differ is two calls."""
    first, second = (blobs(runner, 20, (9, 11), labels=3, dtype=torch.float64, seed=seed) for seed in (1, 2))
    both = [
        torch.cat([a, b + 3 if k == 1 else b]) for k, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    assert torch.equal(runner(*both), torch.cat([runner(*first), runner(*second)]))


def test_bad_input_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    masks, labels, scores = blobs(runner, 3, (4, 4), dtype=torch.float32)
    good = (masks.flatten(1), labels, scores, "gaussian", 2.0)
    runner.overload()(*good)
    bad = [
        (0, good[0][:2], "expected masks of shape .* as scores has, got "),
        (0, good[0].float(), "expected masks of dtype bool, uint8 or int64, got float32"),
        (1, labels[:2], "expected labels of shape .* as scores has, got "),
        (2, scores.long(), "expected a float dtype"),
        (3, "cubic", "expected kernel to be one of gaussian, linear, got 'cubic'"),
    ]
    for place, value, message in bad:
        with pytest.raises(RuntimeError, match=f"^matrix_nms: {message}"):
            runner.overload()(*good[:place], value, *good[place + 1 :])
