"""What the Triton kernels promise beyond the tests that all backends share."""

import numpy as np
import pytest
import torch

OP = "matrix_nms"
BACKEND = "triton"


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_nothing_is_divided_by_nothing(runner, kernel):
    """Unions of empty masks, and what twins leave over: minima may forget the NaN of it, or may not.

    The interpreter divides by NumPy, which is told to raise.
    """
    masks = torch.zeros(7, 4, 8, dtype=torch.bool, device=runner.device)
    masks[3:6, :2] = True  # twins, after empty masks
    masks[6, 1:3] = True
    labels = torch.zeros(7, dtype=torch.int64, device=runner.device)
    scores = torch.linspace(0.9, 0.3, 7, device=runner.device)
    with np.errstate(divide="raise", invalid="raise"):
        out = runner(masks, labels, scores, kernel)
    assert torch.equal(out[:4], scores[:4])
    assert (out[4:] < scores[4:]).all()


def test_twins_of_a_mask_that_is_hit_itself_bind_nobody(runner):
    """A, B half of A, B's twin, and C that meets B: of C's bounds (1 - d) / (1 - c), the twin's is none."""
    masks = torch.zeros(4, 1, 60, dtype=torch.bool, device=runner.device)
    masks[0, 0, :20] = True
    masks[1:3, 0, 10:30] = True  # IoU 1/3 with A
    masks[3, 0, 25:45] = True  # IoU 1/7 with B, 0 with A
    labels = torch.zeros(4, dtype=torch.int64, device=runner.device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=runner.device)
    out = runner(masks, labels, scores, "linear")
    # (1 - 1/7) / (1 - 1/3) is above 1: C is left alone.
    torch.testing.assert_close(out, torch.tensor([0.9, 0.8 * 2 / 3, 0, 0.6], device=runner.device))
