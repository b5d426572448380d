import op_oracles as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    COMPILERS,
    DTYPES,
    check_compile,
    check_message,
    check_opcheck,
    close,
    deterministic,
    few,
    layouts,
    numpy64,
    same_bits,
)

from solo_attn import BitMasks

OP = "mask_bits"


def inputs(runner, count=3, coarse=(4, 5), side=3, dtype=None, seed=0):
    x = runner.randn(count, *coarse, dtype=dtype, seed=seed) * 2
    return x, runner.randn(count, side, side, dtype=dtype, seed=seed + 1) if side else None


def constant(runner, value, dtype=torch.float32):
    return torch.full((1, 2, 2), value, dtype=dtype, device=runner.device)


def check(out, coarse, rows, size, out_size, threshold=0.5):
    """Words, areas and maskness against the loops; areas and spare bits to the last bit."""
    count = len(coarse)
    assert out.size == out_size
    assert (out.words.dtype, out.areas.dtype) == (torch.int64, torch.int64)
    assert out.words.shape == (count, -(-out_size[0] * out_size[1] // 64))
    assert out.areas.shape == out.maskness.shape == (count,)
    maps = naive.probabilities(numpy64(coarse), numpy64(rows), size, out_size)
    band = 1e-12 if coarse.dtype == torch.float64 else 1e-5
    for k in range(count):
        mask = naive.unpacked(out.words[k].tolist(), out_size)
        naive.same_mask(mask, maps[k], threshold, band)
        assert out.areas[k].item() == mask.sum()
        maskness = maps[k][mask].sum() / mask.sum() if mask.any() else 0.0
        assert out.maskness[k].item() == pytest.approx(maskness, abs=band)
        assert torch.equal(out.to_bool()[k].cpu(), torch.from_numpy(mask))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_against_loops(runner, dtype, side, threshold):
    runner.needs(dtype)
    coarse, rows = inputs(runner, side=side, dtype=dtype)
    out = runner(coarse, rows, (8, 10), (16, 21), threshold)
    assert out.maskness.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check(out, coarse, rows, (8, 10), (16, 21), threshold)


@few(max_examples=20)
@given(
    st.integers(0, 3),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 4),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 17), st.integers(1, 17)),
)
def test_any_size(runner, count, coarse, side, size, out_size):
    coarse, rows = inputs(runner, count, coarse, side)
    check(runner(coarse, rows, size, out_size), coarse, rows, size, out_size)


@pytest.mark.parametrize("size", [(16, 124), (33, 247)], ids=["enlarged", "same size"])
def test_wider_than_a_block(runner, size):
    coarse, rows = inputs(runner, 1, (9, 62), dtype=torch.float32)
    check(runner(coarse, rows, size, (33, 247)), coarse, rows, size, (33, 247))


@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 127, 128, 129])
def test_words_and_spare_bits(runner, pixels):
    full = runner(constant(runner, 9.0), None, (2, 2), (1, pixels))
    words = full.words[0].tolist()
    assert words == naive.words(naive.np.ones((1, pixels)))
    assert full.areas.tolist() == [pixels]
    # Bit 63 is a sign bit: only there may a word be negative.
    assert [word < 0 for word in words] == [64 * k + 63 < pixels for k in range(len(words))]


@pytest.mark.not_interpreted("150 masks take half a minute, and its kernels hold none")
def test_more_masks_than_are_held_at_a_time(runner):
    coarse, rows = inputs(runner, 150, (2, 3), 2)
    out = runner(coarse, rows, (4, 6), (8, 9))
    for part in (slice(0, 64), slice(60, 70), slice(128, 150)):
        alone = runner(coarse[part], rows[part], (4, 6), (8, 9))
        assert torch.equal(out.words[part], alone.words)
        assert torch.equal(out.areas[part], alone.areas)
        torch.testing.assert_close(out.maskness[part], alone.maskness)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strictly_above_the_threshold(runner, dtype):
    """sigmoid(0) = 0.5 and sigmoid(-2000) = 0 are exact: neither is above itself."""
    runner.needs(dtype)
    at = runner(constant(runner, 0.0, dtype), None, (4, 4), (8, 8))
    assert (at.areas.item(), at.words.item(), at.maskness.item()) == (0, 0, 0.0)
    above = runner(constant(runner, 1e-2, dtype), None, (4, 4), (8, 8))
    assert (above.areas.item(), above.words.item()) == (64, -1)
    none = runner(constant(runner, -2000.0, dtype), None, (4, 4), (8, 8), 0.0)
    assert (none.areas.item(), none.maskness.item()) == (0, 0.0)
    assert runner(constant(runner, 0.0, dtype), None, (4, 4), (8, 8), 0.0).areas.item() == 64


def test_sigmoid_before_enlarging(runner):
    """Spec 2, inference 3: between logits -2 and 10 the probability is 0.56; that of their mean is 0.98."""
    coarse = torch.tensor([[[-2.0, 10.0]]], device=runner.device)
    out = runner(coarse, None, (1, 2), (1, 3), 0.7)
    assert out.words.tolist() == [[0b100]]
    inside = runner(coarse, None, (1, 2), (1, 3), 0.5)
    assert inside.words.tolist() == [[0b110]]
    low, high = 1 / (1 + naive.np.exp(2)), 1 / (1 + naive.np.exp(-10))
    assert inside.maskness.item() == pytest.approx(((low + high) / 2 + high) / 2)
    # But both logits are added before it: coarse -2 and attention 2 meet at 0, and stay out.
    rows = torch.tensor([[[2.0]]], device=runner.device)
    assert runner(coarse, rows, (1, 2), (1, 2)).words.tolist() == [[0b10]]


def test_enlarged_twice(runner):
    """First to ``size``, then to ``out_size``: not straight from the coarse logits."""
    coarse = torch.tensor([[[-1.0, 3.0, -1.0]]], device=runner.device)
    for size in ((1, 3), (1, 4), (1, 6)):
        check(runner(coarse, None, size, (1, 12)), coarse, None, size, (1, 12))


def test_nan_stays_where_it_is(runner):
    coarse, rows = inputs(runner, dtype=torch.float32)
    expected = runner(coarse, rows, (8, 10), (16, 20))
    coarse[1] = torch.nan
    out = runner(coarse, rows, (8, 10), (16, 20))
    assert (out.areas[1], out.maskness[1]) == (0, 0)
    for got, wanted in zip(out.select(torch.tensor([0, 2]))[:3], expected[:3], strict=True):
        assert torch.equal(got, wanted[[0, 2]])


def test_no_pixel_of_a_nan_counts(runner):
    """A NaN in one corner takes its pixels out of the mask, and out of the mean over the mask."""
    coarse = torch.tensor([[[torch.nan, 3.0, 3.0, 3.0]]], device=runner.device)
    out = runner(coarse, None, (1, 4), (1, 4))
    assert out.maskness.item() == pytest.approx(1 / (1 + naive.np.exp(-3)))


def test_layouts(runner):
    coarse, rows = inputs(runner, dtype=torch.float32)
    expected = runner(coarse, rows, (8, 10), (16, 20))
    for (name, a), (_, b) in zip(layouts(coarse), layouts(rows), strict=True):
        out = runner(a, b, (8, 10), (16, 20))
        assert all(x.is_contiguous() for x in out[:3])
        assert torch.equal(out.words, expected.words), name
        torch.testing.assert_close(out.maskness, expected.maskness)
    wide = runner(coarse[:1].expand(4, -1, -1), rows[:1].expand(4, -1, -1), (8, 10), (16, 20))
    assert torch.equal(wide.words, expected.words[:1].expand(4, -1))


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    coarse, rows = inputs(runner, 5, (25, 31), 12, dtype=torch.float32)
    with deterministic(False):
        first = runner(coarse, rows, (50, 62), (100, 124))
        for _ in range(3):
            again = runner(coarse, rows, (50, 62), (100, 124))
            assert all(map(same_bits, again[:3], first[:3]))


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    check_opcheck(runner.overload(), *inputs(runner, side=side), (8, 10), (9, 13), 0.5)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    batches = [inputs(runner, count, dtype=torch.float32) for count in (3, 5)]
    for output in ("words", "areas", "maskness"):
        check_compile(
            lambda c, a, output=output: getattr(runner.raw(c, a, (8, 10), (9, 13)), output),
            batches[0],
            compiler,
            *(batches[1:] if compiler != "inductor" else []),
            grad=False,
        )


def test_not_differentiable(runner):
    coarse = runner.randn(3, 4, 5).requires_grad_()
    out = runner(coarse, None, (8, 10), (16, 20))
    with pytest.raises(RuntimeError, match="mask_bits is not differentiable: detach its inputs"):
        out.maskness.sum().backward()


def test_messages(runner):
    coarse, rows = inputs(runner)

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"mask_bits: expected {message}")

    refuses("coarse_logits of shape [K, h, w], got [4, 5] (2 dims)", coarse[0], rows, (8, 8), (9, 9))
    refuses(
        "attention of shape [K, S, S] with K = 3 as coarse_logits has, and S >= 1, got [2, 3, 3]",
        coarse,
        rows[:2],
        (8, 8),
        (9, 9),
    )
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"coarse_logits {floats}, got torch.int64", coarse.long(), rows, (8, 8), (9, 9))
    for threshold in (1.0, -0.1, float("nan")):
        message = f"threshold in [0, 1), got {threshold}"
        refuses(message, coarse, rows, (8, 8), (9, 9), threshold)
    refuses("size (height, width) of at least 1, got (0, 8)", coarse, rows, (0, 8), (9, 9))
    refuses("out_size (height, width) of at least 1, got (9, 0)", coarse, rows, (8, 8), (9, 0))
    integers = "out_size to be (height, width) in integers, got 9"
    refuses(integers, coarse, rows, (8, 8), 9, error=TypeError)


class TestBitMasks:
    @pytest.mark.parametrize("shape", [(3, 7, 10), (2, 8, 8), (1, 1, 1), (0, 4, 5), (3, 0, 5), (0, 0, 0)])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
    def test_there_and_back(self, shape, dtype):
        masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
        bits = BitMasks.from_bool(masks if dtype == torch.bool else masks.byte() * 255)
        assert torch.equal(bits.to_bool(), masks)
        assert bits.areas.tolist() == masks.flatten(1).sum(1).tolist()
        assert bits.words.tolist() == [naive.words(mask.numpy()) for mask in masks]
        assert bits.words.shape == (shape[0], -(-shape[1] * shape[2] // 64))

    def test_maskness_is_one_where_a_pixel_is(self):
        bits = BitMasks.from_bool(torch.tensor([[[True, False]], [[False, False]]]))
        close(bits.maskness, naive.np.array([1.0, 0.0]))

    def test_masks_with_strides(self):
        masks = torch.rand(5, 9, 3, generator=torch.Generator().manual_seed(0)) > 0.5
        assert torch.equal(BitMasks.from_bool(masks.mT).to_bool(), masks.mT)

    def test_select(self):
        masks = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(0)) > 0.5
        bits = BitMasks.from_bool(masks)
        for index in (
            torch.tensor([2, 0]),
            torch.tensor([False, True, True, False]),
            torch.tensor([]).long(),
        ):
            assert torch.equal(bits.select(index).to_bool(), masks[index])

    def test_messages(self):
        for masks, message in (
            (torch.ones(3, 4), "masks of shape [K, H, W], got [3, 4] (2 dims)"),
            (torch.ones(1, 3, 4), "masks of dtype bool or uint8, got torch.float32"),
        ):
            check_message(
                lambda m=masks: BitMasks.from_bool(m), ValueError, f"BitMasks.from_bool: expected {message}"
            )
