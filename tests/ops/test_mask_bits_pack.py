"""Masks to bits and back by the C++ kernels, of all masks and of those of an index."""

from __future__ import annotations

import sys

import pytest
import torch
from op_cases import Runner
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from solo_attn._utils.bits import pack, unpack
from solo_attn.backends import release_memory
from solo_attn.ops.bit_masks import pack_masks, unpack_masks

OP, BACKEND = "mask_bits", "cpu"
REFERENCE = torch.ops.solo_attn_reference


def sparse(count: int, pixels: int) -> Tensor:
    """Masks with few pixels, the first and the last one among them."""
    masks = torch.rand(count, pixels, generator=torch.Generator().manual_seed(count)) > 0.999
    masks[0, 0] = masks[0, -1] = masks[-1, -1] = True
    masks[count // 2] = False
    return masks


def dense(count: int, pixels: int) -> Tensor:
    return torch.rand(count, pixels, generator=torch.Generator().manual_seed(pixels)) > 0.5


CASES = {
    "one pixel": torch.tensor([[True], [False]]),
    "less than a word": dense(9, 63),
    "words": dense(9, 128),
    "more than words": dense(9, 129),
    "more than a part": dense(4, 3 * 256 * 64 + 7),
    "large": sparse(40, 1000 * 901),  # 34 MiB: memory of its own
    "rows apart": dense(7, 300)[:, 17:217],
    "columns apart": dense(64, 40).T,
    "off a word": dense(1, 5 * 127 + 1)[0, 1:].view(5, 127),
    "full": torch.ones(40, 1024 * 1024, dtype=torch.bool),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_there_and_back(runner: Runner, name: str, threads: int) -> None:
    masks = CASES[name]
    pixels, words = masks.shape[1], pack(masks)
    to_bits, to_bool = runner.overload("_pack"), runner.overload("_unpack")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        some = torch.randint(0, len(masks), (45,), generator=torch.Generator().manual_seed(0))
        for index in (None, some, torch.arange(len(masks)).flip(0), some[:2], some[:0], some[::3]):
            taken = slice(None) if index is None else index
            found, areas = to_bits(masks, index)
            assert torch.equal(found, words[taken])
            assert torch.equal(areas, masks.sum(1)[taken])
            back = to_bool(words, index, pixels)
            assert back.dtype == torch.bool
            assert torch.equal(back, masks[taken])
    finally:
        torch.set_num_threads(before)


def test_large_masks_in_new_memory_and_in_that_of_earlier_ones(runner: Runner) -> None:
    masks, to_bool = CASES["large"], runner.overload("_unpack")
    words, pixels = pack(masks), masks.shape[1]
    release_memory()
    first = to_bool(words, None, pixels)
    assert torch.equal(first, masks)
    place = first.fill_(True).data_ptr()
    del first
    again = to_bool(words, None, pixels)
    if sys.platform == "linux":  # else nothing is kept
        assert again.data_ptr() == place
    assert torch.equal(again, masks)


def test_every_value_but_zero_is_set(runner: Runner) -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    words, areas = runner.overload("_pack")(values, None)
    assert torch.equal(words, pack(values != 0))
    assert areas.tolist() == [255, 255]


def test_words_apart(runner: Runner) -> None:
    masks = dense(6, 192)
    to_bool = runner.overload("_unpack")
    for words in (pack(masks).T.contiguous().T, torch.stack([pack(masks)] * 2, 1)[:, 1]):
        assert not words.is_contiguous()
        assert torch.equal(to_bool(words, None, 190), masks[:, :190])


def test_nothing_at_all(runner: Runner) -> None:
    to_bits, to_bool = runner.overload("_pack"), runner.overload("_unpack")
    for count, pixels in ((0, 70), (3, 0), (0, 0)):
        words, areas = to_bits(torch.zeros(count, pixels, dtype=torch.bool), None)
        assert words.shape == (count, -(-pixels // 64))
        assert areas.tolist() == [0] * count
        assert to_bool(words, None, pixels).shape == (count, pixels)


def test_what_it_cannot_read(runner: Runner) -> None:
    to_bits, to_bool = runner.overload("_pack"), runner.overload("_unpack")
    masks, words = torch.zeros(2, 70, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.int64)
    for name, run in (("pack", lambda i: to_bits(masks, i)), ("unpack", lambda i: to_bool(words, i, 70))):
        for index in ([2], [0, -1]):
            with pytest.raises(RuntimeError, match=rf"mask_bits_{name}: expected index in 0\.\.1, got"):
                run(torch.tensor(index))
        with pytest.raises(RuntimeError, match=f"mask_bits_{name}: expected index of shape"):
            run(torch.tensor([0], dtype=torch.int32))
    for wrong in (masks.float(), masks[0], masks[None]):
        with pytest.raises(RuntimeError, match=r"mask_bits_pack: expected masks of shape \[n, pixels\]"):
            to_bits(wrong, None)
    for wrong, pixels in ((words, 64), (words, 129), (words, -1), (words.int(), 70), (words[0], 70)):
        with pytest.raises(RuntimeError, match=r"mask_bits_unpack: expected words of shape \[n, "):
            to_bool(wrong, None, pixels)


def test_the_reference_and_torch_compile() -> None:
    masks, index = dense(9, 70), torch.tensor([8, 0, 8])
    words, areas = pack_masks(masks, index)
    found = REFERENCE.mask_bits_pack(masks.byte() * 3, index)
    assert torch.equal(found[0], words)
    assert torch.equal(found[1], areas)
    assert torch.equal(REFERENCE.mask_bits_unpack(pack(masks), index, 70), masks[index])

    def there_and_back(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        words, areas = pack_masks(x)
        return unpack_masks(words, x.shape[1], index), areas

    with FakeTensorMode() as mode:
        back, areas = there_and_back(mode.from_tensor(masks), mode.from_tensor(index))
    assert (back.shape, back.dtype, areas.shape, areas.dtype) == ((3, 70), torch.bool, (9,), torch.int64)
    back, areas = torch.compile(there_and_back, backend="eager", fullgraph=True)(masks, index)
    assert torch.equal(back, unpack(words, 70))
    assert torch.equal(areas, masks.sum(1))
