"""Bits of kernels and features: SOLOv2's masks, whose logits no backend needs to keep."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import DTYPES, check_compile, check_message, check_opcheck, few, layouts, numpy64, same_bits
from test_mask_bits import check

from solo_attn import MaskFactors, mask_bits, paste_masks
from solo_attn.backends import BACKENDS

OP = "mask_bits"
FUSED = [backend.name for backend in BACKENDS if "factors" in backend.forms]


def inputs(runner, count=4, depth=5, batch=2, size=(9, 14), side=3, dtype=None):
    kernels = runner.randn(count, depth, dtype=dtype)
    features = runner.randn(batch, depth, *size, dtype=dtype, seed=1)
    images = torch.arange(count, device=runner.device).flip(0) % batch
    rows = runner.randn(count, side, side, dtype=dtype, seed=2) if side else None
    return MaskFactors(kernels, features, images), rows


def product(factors):
    """By loops, in float64."""
    kernels, features = numpy64(factors.kernels), numpy64(factors.features)[factors.images.tolist()]
    logits = [np.einsum("e,ehw->hw", k, f) for k, f in zip(kernels, features, strict=True)]
    return torch.from_numpy(np.stack(logits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.0])
def test_against_loops(runner, dtype, side, threshold):
    runner.needs(dtype)
    factors, rows = inputs(runner, side=side, dtype=dtype)
    out = runner(factors, rows, factors.size, factors.size, threshold)
    assert out.maskness.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = product(factors)
    if dtype != torch.float64:  # `check` allows for the rounding of float32
        exact = exact.float() if runner.backend in FUSED or dtype == torch.float32 else factors.logits()
    check(out, exact, rows, factors.size, factors.size, threshold)


@few(max_examples=10)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 3),
)
def test_any_size(runner, count, depth, batch, size, side):
    factors, rows = inputs(runner, count, depth, batch, size, side)
    check(runner(factors, rows, size, size), product(factors).to(runner.finest), rows, size, size)


def test_none(runner):
    factors, _ = inputs(runner, count=0)
    out = runner(factors, None, factors.size, factors.size)
    assert out.words.shape == (0, 2)
    assert out.areas.shape == out.maskness.shape == (0,)


@pytest.mark.not_interpreted("it is of the product and the op, which have such tests")
@pytest.mark.parametrize("size", [(23, 31), (23, 50), (40, 64), (300, 5)], ids=str)
def test_where_tiles_and_bands_end(runner, size):
    """More pixels than a band, masks than a tile, channels than are summed at once; bands end within rows."""
    if runner.backend not in FUSED:
        pytest.skip(f"{runner.backend} has no kernel of factors: PyTorch makes the product")
    factors, rows = inputs(runner, 15, 71, 2, size, 7, torch.float64)
    check(runner(factors, rows, size, size), product(factors), rows, size, size)
    factors = MaskFactors(factors.kernels.float(), factors.features.float(), factors.images)
    out, whole = (runner(x, rows.float(), size, size) for x in (factors, factors.logits()))
    assert (out.to_bool() != whole.to_bool()).sum() <= 1
    torch.testing.assert_close(out.maskness, whole.maskness)


@pytest.mark.parametrize("threshold", [1e-3, 0.5, 0.999])
def test_small_objects_lose_nothing(runner, threshold):
    """Words far below the threshold are not computed; a pixel alone in one is."""
    features = torch.full((1, 1, 20, 37), -30.0, device=runner.device)
    for place in (0, 63, 64, 500, 511, 512, 739):
        features.view(-1)[place] = 9.0
    factors = MaskFactors(
        features.new_ones(1, 1), features, torch.zeros(1, dtype=torch.int64).to(runner.device)
    )
    out = runner(factors, None, (20, 37), (20, 37), threshold)
    assert out.to_bool().flatten().nonzero().flatten().tolist() == [0, 63, 64, 500, 511, 512, 739]
    assert out.areas.item() == 7


def test_nan_stays_where_it_is(runner):
    factors, _ = inputs(runner, batch=1, dtype=torch.float32)
    expected = runner(factors, None, factors.size, factors.size)
    factors.kernels[1, 0] = torch.nan
    out = runner(factors, None, factors.size, factors.size)
    assert (out.areas[1], out.maskness[1]) == (0, 0)
    for got, wanted in zip(out[:3], expected[:3], strict=True):
        assert torch.equal(got[[0, 2, 3]], wanted[[0, 2, 3]])


@pytest.mark.parametrize("sizes", [((18, 28), (18, 28)), ((9, 14), (18, 29))], ids=["size", "out_size"])
def test_other_sizes_make_the_product_first(runner, sizes):
    factors, rows = inputs(runner)
    check(runner(factors, rows, *sizes), product(factors).to(runner.finest), rows, *sizes)


def test_layouts(runner):
    factors, rows = inputs(runner, dtype=torch.float32)
    expected = runner(factors, rows, factors.size, factors.size)
    parts = (factors.kernels, factors.features, rows)
    for (name, kernels), (_, features), (_, added) in zip(*map(layouts, parts), strict=False):
        changed = MaskFactors(kernels, features, factors.images)
        out = runner(changed, added, factors.size, factors.size)
        assert torch.equal(out.words, expected.words), name
        torch.testing.assert_close(out.maskness, expected.maskness)


def test_threads_change_nothing(runner):
    if runner.backend != "cpu":
        pytest.skip("threads are the CPU kernel's own")
    factors, rows = inputs(runner, 14, 9, 2, (40, 41), 12, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        found.append(runner(factors, rows, factors.size, factors.size))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(same_bits, other[:3], found[0][:3]))


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    factors, rows = inputs(runner, side=side)
    parts = (factors.kernels, factors.features, factors.images)
    check_opcheck(runner.overload("_factors"), *parts, rows, 0.5)


def test_compile(runner):
    factors, rows = inputs(runner, batch=1, dtype=torch.float32)

    def words(kernels, features, rows):
        return runner.raw(MaskFactors(kernels, features, factors.images), rows, factors.size, factors.size)[0]

    check_compile(words, [factors.kernels, factors.features, rows], "aot_eager", grad=False)


def test_not_differentiable(runner):
    factors, _ = inputs(runner)
    out = runner(
        MaskFactors(factors.kernels.requires_grad_(), factors.features, factors.images),
        None,
        (9, 14),
        (9, 14),
    )
    with pytest.raises(RuntimeError, match=r"mask_bits.* is not differentiable: detach its inputs"):
        out.maskness.sum().backward()


def test_messages(runner):
    factors, rows = inputs(runner)

    def refuses(message, kernels, features, images):
        run = lambda: runner.raw(MaskFactors(kernels, features, images), rows, (9, 14), (9, 14))  # noqa: E731
        check_message(run, ValueError, f"mask_bits: expected {message}")

    kernels, features, images = factors.kernels, factors.features, factors.images
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"kernels {floats}, got torch.int64", kernels.long(), features, images)
    refuses("features of shape [B, E, h, w], got [5, 9, 14] (3 dims)", kernels, features[0], images)
    with pytest.raises((ValueError, RuntimeError), match=r"expected images in 0\.\.1"):
        runner.raw(MaskFactors(kernels, features, images + 9), rows, (9, 14), (9, 14))


class TestMaskFactors:
    def factors(self):
        generator = torch.Generator().manual_seed(0)
        kernels, features = (torch.randn(*s, generator=generator) for s in ((5, 3), (2, 3, 4, 6)))
        return MaskFactors(kernels, features, torch.tensor([1, 0, 1, 1, 0]))

    def test_logits(self):
        factors = self.factors()
        torch.testing.assert_close(factors.logits(), product(factors).float())
        assert (len(factors), factors.size) == (5, (4, 6))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert factors.logits().dtype == torch.float32

    @pytest.mark.parametrize(
        "index", [torch.tensor([3, 0]), torch.tensor([True, False, True, True, False]), slice(1, 3)], ids=str
    )
    def test_some_of_them(self, index):
        factors = self.factors()
        chosen = factors[index]
        torch.testing.assert_close(chosen.logits(), factors.logits()[index])
        assert chosen.features is factors.features

    def test_pasted_as_their_product(self):
        factors = self.factors()
        sizes = ((4, 6), (4, 6), (16, 24), (19, 31))
        for rle in (False, True):
            ours, theirs = (paste_masks(x, None, *sizes, rle=rle) for x in (factors, factors.logits()))
            assert torch.equal(ours, theirs) if not rle else ours == theirs

    def test_it_is_no_tensor_for_others(self):
        with pytest.raises(TypeError, match="expected coarse_logits to be a tensor of shape"):
            mask_bits("logits", None, (4, 6), (4, 6))
