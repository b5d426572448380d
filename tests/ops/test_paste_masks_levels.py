"""Chosen masks of several levels in one call: each is that of its level, in the order asked for."""

import pytest
import shim
import torch
from op_cases import Called, check_any_order, check_compile, check_message, check_opcheck
from test_mask_bits_levels import inputs

from solo_attn import MaskFactors, paste_masks_levels

OP = "paste_masks"
SIZES = ((14, 24), (50, 90), (37, 61))  # of the maps, of the image in them, of the result
INDEX = [9, 0, 3, 10, 5, 3]  # of 11 masks: of every level that has some, one of them twice


def given(runner, index=INDEX, **more):
    return inputs(runner, **more), torch.tensor(index, dtype=torch.int64, device=runner.device)


def one_by_one(runner, levels, index, sizes, rle=False):
    every = [mask for level in levels for mask in runner.raw(*level, *sizes, rle=rle)]
    return [every[n] for n in index.tolist()]


@pytest.mark.parametrize("sizes", [SIZES, ((9, 13), (36, 50), (20, 16))], ids=str)
@pytest.mark.parametrize("plain", [(), (0, 1, 2, 3, 4), (1, 4)], ids=str)
def test_one_call_for_each_level(runner, plain, sizes):
    levels, index = given(runner, attention=lambda k: k not in plain)
    out = paste_masks_levels(levels, index, *sizes, backend=runner.backend)
    assert torch.equal(out, torch.stack(one_by_one(runner, levels, index, sizes)))
    assert out.any()
    runs = paste_masks_levels(levels, index, *sizes, rle=True, backend=runner.backend)
    assert runs == one_by_one(runner, levels, index, sizes, rle=True)


@pytest.mark.parametrize("rle", [False, True], ids=["bool", "rle"])
def test_all_levels_are_one_call(runner, rle):
    levels, index = given(runner)
    with Called() as called:
        paste_masks_levels(levels, index, *SIZES, rle=rle, backend=runner.backend)
    names = ["paste_masks_levels"] if runner.takes_levels else ["paste_masks"] * 4  # one level has no cells
    assert called.names == [f"{name}_rle" if rle else name for name in names]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes(runner, dtype):
    runner.needs(dtype)
    levels, index = given(runner, dtype=dtype)
    out = paste_masks_levels(levels, index, *SIZES, 0.4, backend=runner.backend)
    every = torch.cat([runner.raw(*level, *SIZES, 0.4) for level in levels])
    assert torch.equal(out, every[index])


# More masks than have maps at a time, and levels of one kind only.
@pytest.mark.parametrize("index", [[*range(8), *range(8)], [7], []], ids=len)
@pytest.mark.parametrize("size", [(14, 24), (7, 12)], ids=str)
def test_more_and_fewer_masks(runner, index, size):
    levels, index = given(
        runner, index, levels=((3, (3, 5), 2, size), (0, (3, 5), 2, size), (5, (7, 12), 3, size))
    )
    out = paste_masks_levels(levels, index, *SIZES, backend=runner.backend)
    assert out.shape == (len(index), 37, 61)
    assert all(map(torch.equal, out, one_by_one(runner, levels, index, SIZES)))
    assert len(paste_masks_levels(levels, index, *SIZES, rle=True, backend=runner.backend)) == len(index)


def test_no_masks_at_all(runner):
    levels, index = given(runner, [], levels=((0, (3, 5), 2, (6, 10)),))
    assert paste_masks_levels(levels, index, *SIZES, backend=runner.backend).shape == (0, 37, 61)


def test_the_order_of_lanes_and_blocks_changes_nothing(runner):
    if runner.backend not in ("cuda", "shim"):
        pytest.skip("blocks are the CUDA kernel's own")
    levels, index = given(runner)
    check_any_order(runner, lambda: [paste_masks_levels(levels, index, *SIZES, backend=runner.backend)])


def test_factors_among_them(runner):
    levels, index = given(runner)
    features, images = runner.randn(1, 3, 7, 12, seed=1).float(), torch.zeros(4, dtype=torch.int64)
    kernels = runner.randn(4, 3).float()
    levels.append((MaskFactors(kernels, features, images.to(runner.device)), None, (7, 12)))
    index[0] = 12
    out = paste_masks_levels(levels, index, *SIZES, backend=runner.backend)
    assert torch.equal(out, torch.stack(one_by_one(runner, levels, index, SIZES)))


def test_opcheck_and_compile(runner):
    if runner.backend not in ("cuda", "shim", "reference"):
        pytest.skip(f"{runner.backend} has no kernel of levels: there is one call for each")
    levels, index = given(runner)
    coarse, rows = [level[0] for level in levels], [level[1] for level in levels]
    sizes = [edge for level in levels for edge in level[2]]
    check_opcheck(runner.overload("_levels"), coarse, rows, sizes, index, *SIZES, 0.5)

    def masks(index, *coarse):
        plain = [(x, None, level[2]) for x, level in zip(coarse, levels, strict=True)]
        return paste_masks_levels(plain, index, *SIZES, backend=runner.backend)

    check_compile(masks, [index, *coarse], "aot_eager", grad=False)


def test_messages(runner):
    levels, index = given(runner)

    def refuses(message, *changed, sizes=SIZES):
        run = lambda: paste_masks_levels(*changed, *sizes, backend=runner.backend)  # noqa: E731
        check_message(run, ValueError, f"paste_masks: expected {message}")

    refuses("levels to be at least one, got 0", [], index)
    refuses("index int64 of shape [N], got torch.int32 [6]", levels, index.int())
    refuses(
        "image_size within 4 x out_size = (36, 96), got (50, 90)", levels, index, sizes=((9, 24), *SIZES[1:])
    )
    for wrong in (11, -1):
        index[2] = wrong
        if runner.backend not in ("cuda", "shim"):
            with pytest.raises(ValueError, match=r"^paste_masks: expected index in 0\.\.10, got"):
                paste_masks_levels(levels, index, *SIZES, backend=runner.backend)
        elif runner.backend == "shim":  # a GPU is of no use after a failed assertion
            paste_masks_levels(levels, index, *SIZES, backend=runner.backend)
            assert shim.asserted() == "paste_masks: expected index within the levels' masks"
