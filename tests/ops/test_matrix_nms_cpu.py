"""What the C++ kernel promises beyond the tests that all backends share: size, threads, no crash."""

import pytest
import torch
from op_cases import same_bits
from test_matrix_nms import blobs

from solo_attn import BitMasks, matrix_nms

OP = "matrix_nms"
BACKEND = "cpu"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("labels", [1, 7, 400])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_thread_count_changes_nothing(runner, threads, labels, kernel):
    args = blobs(runner, 400, (60, 70), labels, dtype=torch.float32)
    threads(1)
    expected = runner(*args, kernel)
    for count in (2, 3, 8):
        threads(count)
        assert same_bits(runner(*args, kernel), expected)


@pytest.mark.parametrize("labels", [1, 3])
def test_more_overlaps_than_are_held_at_a_time(runner, labels):
    """The kernel holds about a million; 1,700 masks of one label have 1.4 million pairs."""
    args = blobs(runner, 1700, (12, 16), labels, dtype=torch.float64)
    for kernel in ("gaussian", "linear"):
        expected = matrix_nms(*args, kernel, backend="reference")
        torch.testing.assert_close(runner(*args, kernel), expected, rtol=1e-13, atol=1e-15)


def test_twenty_thousand(runner):
    """200 million pairs; a matrix of them would be 800 MB. Only the first of 25 identical masks stays."""
    count, kinds = 20_000, 800
    generator = torch.Generator().manual_seed(0)
    words = torch.zeros(count, 40, dtype=torch.int64)
    kind = torch.arange(count) % kinds
    words[torch.arange(count), kind // 20] = 7 << (
        3 * (kind % 20)
    )  # three pixels each, apart from each other
    masks = BitMasks(words, torch.full((count,), 3), torch.ones(count), (40, 64))
    scores = torch.rand(count, generator=generator) + 0.1
    out = runner(masks, torch.zeros(count, dtype=torch.int64), scores, "linear")
    best = torch.full((kinds,), -1.0).scatter_reduce(0, kind, scores, "amax")
    assert torch.equal(out, torch.where(scores == best[kind], scores, 0.0))


def test_masks_that_repeat_without_being_stored(runner):
    one = runner.rand_bool(1, 50, 70)
    many = one.expand(30, -1, -1)
    labels, scores = torch.zeros(30, dtype=torch.int64), torch.arange(30.0)
    assert torch.equal(runner(many, labels, scores), runner(many.contiguous(), labels, scores))


@pytest.mark.parametrize("value", [1, 2, 128, 255])
def test_any_byte_but_0_is_a_pixel(runner, value):
    masks, labels, scores = blobs(runner, 30)
    assert torch.equal(runner(masks.byte() * value, labels, scores), runner(masks, labels, scores))


def test_a_sigma_beyond_float32(runner):
    """Infinite in the kernel's float32: where nothing overlaps, infinity times 0 must not show."""
    masks, labels, scores = blobs(runner, 30, dtype=torch.float32)
    out = runner(masks, labels, scores, sigma=1e300)
    # No overlap however small is forgiven, but for those that a better mask is worse hit by.
    torch.testing.assert_close(out, runner(masks, labels, scores.double(), sigma=1e300).float())
    assert out.max() == scores.max()


def test_bad_input_is_an_error(runner):
    """Straight to the op, past the checks of the public function."""
    masks, labels, scores = torch.ones(3, 9, dtype=torch.bool), torch.zeros(3).long(), torch.ones(3)
    good = (masks, labels, scores, "gaussian", 2.0)
    runner.overload()(*good)
    bad = [
        (0, masks[:2], "expected masks of shape .* as scores has, got "),
        (0, masks[0], "expected masks of shape .* as scores has, got "),
        (0, masks.float(), "expected masks of dtype bool, uint8 or int64, got float32"),
        (1, labels[:2], "expected labels of shape .* as scores has, got "),
        (1, labels.int(), "expected labels of shape .* as scores has, got "),
        (2, scores[None], "expected scores of shape .n., got .1, 3. .2 dims."),
        (2, scores.long(), "expected a float dtype"),
        (3, "cubic", "expected kernel to be one of gaussian, linear, got 'cubic'"),
    ]
    for place, value, message in bad:
        with pytest.raises(RuntimeError, match=f"^matrix_nms: {message}"):
            runner.overload()(*good[:place], value, *good[place + 1 :])
