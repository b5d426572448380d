"""Bits of several levels in one call: they are those of one call for each level."""

import pytest
import torch
from op_cases import DTYPES, Called, check_any_order, check_compile, check_message, check_opcheck, same_bits

from solo_attn import MaskFactors, mask_bits_levels

OP = "mask_bits"
OUT = (14, 24)
# Cells, (h, w), S, the level's size: two are compared at their own size, one is reduced, one has no cells.
LEVELS = (
    (3, (7, 12), 5, (14, 24)),
    (2, (3, 5), 4, (7, 11)),
    (0, (3, 5), 3, (7, 12)),
    (1, (14, 24), 2, (28, 48)),
    (5, (2, 3), 5, (14, 24)),
)


def inputs(runner, levels=LEVELS, dtype=torch.float32, attention=lambda level: True):
    return [
        (
            runner.randn(count, *coarse, dtype=dtype, seed=2 * k),
            runner.randn(count, side, side, dtype=dtype, seed=2 * k + 1) if attention(k) else None,
            size,
        )
        for k, (count, coarse, side, size) in enumerate(levels)
    ]


def one_by_one(runner, levels, out_size, threshold=0.5):
    found = [runner(*level, out_size, threshold) for level in levels]
    return [torch.cat(parts) for parts in zip(*(bits[:3] for bits in found), strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_call_for_each_level(runner, dtype):
    runner.needs(dtype)
    levels = inputs(runner, dtype=dtype)
    out = mask_bits_levels(levels, OUT, 0.4, backend=runner.backend)
    assert out.size == OUT
    assert len(out.areas) == 11
    assert all(map(same_bits, out[:3], one_by_one(runner, levels, OUT, 0.4)))


def test_all_levels_are_one_call(runner):
    with Called() as called:
        mask_bits_levels(inputs(runner), OUT, backend=runner.backend)
    assert called.names == (["mask_bits_levels"] if runner.takes_levels else ["mask_bits"] * len(LEVELS))


def test_strided_inputs(runner):
    levels = inputs(runner)
    turned = [(*(x.mT.contiguous().mT for x in level[:2]), level[2]) for level in levels]
    out, expected = (mask_bits_levels(x, OUT, backend=runner.backend) for x in (turned, levels))
    assert all(map(same_bits, out[:3], expected[:3]))


@pytest.mark.parametrize(
    "attention", [lambda level: False, lambda level: level % 2 == 1], ids=["plain", "some of them"]
)
@pytest.mark.parametrize("out_size", [(9, 13), (30, 40), (1, 1)], ids=str)
def test_levels_without_attention(runner, out_size, attention):
    levels = inputs(runner, attention=attention)
    out = mask_bits_levels(levels, out_size, backend=runner.backend)
    assert all(map(same_bits, out[:3], one_by_one(runner, levels, out_size)))


@pytest.mark.parametrize("order", [(2, 1), (1, 2), (2,), (2, 0, 2)], ids=str)
def test_where_empty_levels_stand(runner, order):
    levels = [inputs(runner)[k] for k in order]
    out = mask_bits_levels(levels, OUT, backend=runner.backend)
    assert all(map(same_bits, out[:3], one_by_one(runner, levels, OUT)))


@pytest.mark.parametrize("count", [8, 9])
@pytest.mark.parametrize("out_size", [(4, 6), (5, 7)], ids=["of two kinds", "of one kind"])
def test_as_many_levels_as_one_launch_has_and_more(runner, out_size, count):
    levels = [(k % 3 + 1, (2, 3 + k), 2, (4, 6 + k % 2)) for k in range(count)]
    levels = inputs(runner, levels)
    out = mask_bits_levels(levels, out_size, backend=runner.backend)
    assert all(map(same_bits, out[:3], one_by_one(runner, levels, out_size)))


def test_the_order_of_lanes_and_blocks_changes_nothing(runner):
    if runner.backend not in ("cuda", "shim"):
        pytest.skip("blocks are the CUDA kernel's own")
    levels = inputs(runner)
    check_any_order(runner, lambda: mask_bits_levels(levels, (14, 21), backend=runner.backend)[:3])


def test_factors_among_them(runner):
    levels = inputs(runner)[:2]
    kernels, features = runner.randn(4, 3).float(), runner.randn(1, 3, 7, 12, seed=1).float()
    images = torch.zeros(4, dtype=torch.int64, device=runner.device)
    levels.append((MaskFactors(kernels, features, images), None, (7, 12)))
    out = mask_bits_levels(levels, OUT, backend=runner.backend)
    assert all(map(same_bits, out[:3], one_by_one(runner, levels, OUT)))


def test_opcheck_and_compile(runner):
    if runner.backend not in ("cuda", "shim", "reference"):
        pytest.skip(f"{runner.backend} has no kernel of levels: there is one call for each")
    levels = inputs(runner)
    coarse, rows = [level[0] for level in levels], [level[1] for level in levels]
    sizes = [edge for level in levels for edge in level[2]]
    check_opcheck(runner.overload("_levels"), coarse, rows, sizes, OUT, 0.5)
    check_opcheck(runner.overload("_levels"), coarse, [], sizes, OUT, 0.5)

    def words(*tensors):
        parts = zip(tensors[::2], tensors[1::2], levels, strict=True)
        given = [(coarse, rows, level[2]) for coarse, rows, level in parts]
        return mask_bits_levels(given, OUT, backend=runner.backend)[0]

    check_compile(words, [x for level in levels for x in level[:2]], "aot_eager", grad=False)


def test_not_differentiable(runner):
    levels = inputs(runner)
    levels[1][0].requires_grad_()
    out = mask_bits_levels(levels, OUT, backend=runner.backend)
    with pytest.raises(RuntimeError, match=r"mask_bits.* is not differentiable: detach its inputs"):
        out.maskness.sum().backward()


def test_messages(runner):
    levels = inputs(runner)

    def refuses(message, changed, error=ValueError):
        run = lambda: mask_bits_levels(changed, OUT, backend=runner.backend)  # noqa: E731
        check_message(run, error, f"mask_bits: expected {message}")

    refuses("levels to be at least one, got 0", [])
    refuses("levels to be a list of tuples of three, got 3", 3, TypeError)
    refuses("levels to be a list of tuples of three, got [(1, 2)]", [(1, 2)], TypeError)
    double = (levels[1][0].double(), None, levels[1][2])
    wanted = "each level's coarse_logits of the first level's coarse_logits's dtype torch.float32"
    refuses(f"{wanted}, got torch.float64", [levels[0], double])
    refuses("size (height, width) of at least 1, got (0, 8)", [levels[0], (*levels[1][:2], (0, 8))])
    if runner.backend in ("cuda", "shim"):  # called past the public function, as a graph does
        run, coarse = runner.overload("_levels"), levels[0][0]
        for arguments, message in (
            (([coarse] * 9, [], [4] * 18), "coarse_logits of 1 to 8 levels, got 9"),
            (([coarse], [], [4]), r"sizes of 1 levels, got \(4\)"),
            (
                ([coarse], [coarse, coarse], [4, 4]),
                "attention of none or of 1 levels as coarse_logits has, got 2",
            ),
            (([coarse, coarse.double()], [], [4] * 4), "coarse_logits of one dtype and device"),
        ):
            with pytest.raises(RuntimeError, match=f"^mask_bits: expected {message}"):
                run(*arguments, OUT, 0.5)
