"""Bad input, straight to the C++ op, past the checks of the public function."""

import pytest
import torch

OP = "mask_iou"
BACKEND = "cpu"


def test_bad_input_is_an_error(runner):
    masks = torch.ones(3, 65, dtype=torch.bool)
    words = torch.ones(4, 2, dtype=torch.int64)
    assert runner.overload()(masks, words).shape == (3, 4)
    for args, message in [
        ((masks[0], None), r"expected masks of shape .*, got \[65\] \(1 dims\)$"),
        ((masks, masks[0]), "expected others of shape"),
        ((masks.float(), None), "expected masks of dtype bool, uint8 or int64, got float32"),
        ((masks, words.int()), "expected others of dtype bool, uint8 or int64, got int32"),
        ((masks, words[:, :1]), "expected others as large as masks, 2 words of 64 pixels, got 1"),
        ((masks[:, :64], words), "expected others as large as masks, 1 words of 64 pixels, got 2"),
        ((masks, masks[:, :64].byte()), "expected others as large as masks, 2 words of 64 pixels, got 1"),
    ]:
        with pytest.raises(RuntimeError, match=f"^mask_iou: {message}"):
            runner.overload()(*args)


def test_masks_without_a_pixel(runner):
    """No words at all, and none between the first that is set and the last."""
    assert runner(torch.ones(3, 0, 5, dtype=torch.bool)).tolist() == [[0.0] * 3] * 3
    assert runner(torch.ones(0, 4, 5, dtype=torch.bool)).shape == (0, 0)
    masks = torch.zeros(2, 1, 64 * 40, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, -1] = True
    assert runner(masks).tolist() == [[1.0, 0.0], [0.0, 1.0]]
