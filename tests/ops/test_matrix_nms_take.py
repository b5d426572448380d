"""Masks that are kept are those of an index, wherever their memory is from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from solo_attn.backends import compiled
from solo_attn.ops.matrix_nms import take_masks

NOT_BUILT = compiled.refuses("cpu", "matrix_nms")


def sparse(count: int, height: int, width: int) -> Tensor:
    """Masks with few pixels, the first and the last one among them."""
    masks = torch.rand(count, height, width, generator=torch.Generator().manual_seed(count)) > 0.999
    masks[0, 0, 0] = masks[0, -1, -1] = masks[-1, -1, -1] = True
    masks[count // 2] = False
    return masks


CASES = {
    "small": sparse(9, 5, 7),
    "one pixel": torch.tensor([[[True]], [[False]]]),
    "more than a part": sparse(4, 129, 129),
    "large": sparse(40, 1000, 901),  # 34 MiB: its pages are new
    "not contiguous": sparse(7, 64, 40).transpose(1, 2),
    "off a word": (torch.rand(5 * 63 * 65 + 1) > 0.5)[1:].view(5, 63, 65),
    "full": torch.ones(40, 1024, 1024, dtype=torch.bool),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_they_are_those_of_an_index(name: str, threads: int) -> None:
    masks = CASES[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        index = torch.randint(0, len(masks), (45,), generator=torch.Generator().manual_seed(0))
        for chosen in (index, torch.arange(len(masks)).flip(0), index[:2], index[:0]):
            found = take_masks(masks, chosen)
            assert found.dtype == torch.bool
            assert torch.equal(found, masks[chosen])
    finally:
        torch.set_num_threads(before)


def test_compiled_by_torch_and_by_the_reference() -> None:
    masks, index = sparse(9, 5, 7), torch.tensor([8, 0, 8])
    compiled_take = torch.compile(take_masks, backend="eager", fullgraph=True)
    assert torch.equal(compiled_take(masks, index), masks[index])
    assert torch.equal(torch.ops.solo_attn_reference.matrix_nms_take(masks, index), masks[index])
    with FakeTensorMode() as mode:
        found = take_masks(mode.from_tensor(masks), mode.from_tensor(index))
    assert (found.shape, found.dtype) == ((3, 5, 7), torch.bool)


def test_other_dtypes_and_no_masks_at_all() -> None:
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float16):
        masks = torch.arange(24).view(2, 3, 4).to(dtype)
        assert torch.equal(take_masks(masks, torch.tensor([1, 0, 1])), masks[[1, 0, 1]])
    none = torch.zeros(0, 3, 4, dtype=torch.bool)
    assert take_masks(none, torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 4)
    masks = torch.zeros(2, 0, 4, dtype=torch.bool)
    assert take_masks(masks, torch.tensor([1])).shape == (1, 0, 4)


@pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))
def test_the_kernel_refuses_what_it_cannot_read() -> None:
    op = torch.ops.solo_attn.matrix_nms_take
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    for index in ([2], [0, -1]):
        with pytest.raises(RuntimeError, match=r"matrix_nms_take: expected index in 0\.\.1, got"):
            op(masks, torch.tensor(index))
    with pytest.raises(RuntimeError, match="matrix_nms_take: expected index of shape"):
        op(masks, torch.tensor([0], dtype=torch.int32))
    with pytest.raises(RuntimeError, match="matrix_nms_take: expected bool masks of shape"):
        op(masks.float(), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="matrix_nms_take: expected bool masks of shape"):
        op(masks[0], torch.tensor([0]))
