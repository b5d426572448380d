import math

import op_oracles as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    COMPILERS,
    DTYPES,
    as_good_as_pytorch,
    check_compile,
    check_gradcheck,
    check_message,
    check_opcheck,
    close,
    deterministic,
    few,
    gradients,
    numpy64,
    same_bits,
)

from solo_attn import BitMasks
from solo_attn.bench import plain

OP = "matrix_nms"
KERNELS = ("gaussian", "linear")


def blobs(runner, count=12, size=(20, 23), labels=3, dtype=None, seed=0):
    """Overlapping boxes of a few labels, scores in no order."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(edge // 2, (), generator=generator)) for edge in size)
        height, width = (int(torch.randint(1, edge // 2, (), generator=generator)) for edge in size)
        mask[top : top + height, left : left + width] = True
    label = torch.randint(labels, (count,), generator=generator)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return masks.to(runner.device), label.to(runner.device), scores.to(runner.device, dtype or runner.finest)


def oracle(masks, labels, scores, kernel="gaussian", sigma=2.0):
    overlap = naive.iou(masks.cpu().numpy())
    return naive.nms(overlap, labels.tolist(), scores.double().tolist(), kernel, sigma)


def plain_nms(masks, labels, kernel):
    return lambda scores: plain.matrix_nms(masks, labels, scores, kernel)


def identical(runner, count, scores, dtype=torch.float32, size=(6, 7)):
    masks = torch.zeros(count, *size, dtype=torch.bool, device=runner.device)
    masks[:, 1:4, 2:5] = True
    labels = torch.zeros(count, dtype=torch.int64, device=runner.device)
    return masks, labels, torch.tensor(scores, dtype=dtype, device=runner.device)


def test_golden_values(runner):
    """Spec 3: four identical masks of one label."""
    args = identical(runner, 4, [0.9, 0.8, 0.7, 0.6])
    assert [round(x, 4) for x in runner(*args).tolist()] == [0.9, 0.1083, 0.0947, 0.0812]
    assert [round(x, 4) for x in runner(*args, "linear").tolist()] == [0.9, 0.0, 0.0, 0.0]


def test_by_hand(runner):
    """Three masks in a row, each half over the next: the middle one binds less, being decayed itself."""
    masks = torch.zeros(3, 1, 8, dtype=torch.bool, device=runner.device)
    masks[0, 0, :4] = masks[1, 0, 2:6] = masks[2, 0, 4:] = True
    labels = torch.zeros(3, dtype=torch.int64, device=runner.device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=runner.device)
    # IoU 1/3 with the neighbour. The last: min(f(0) / f(0), f(1/3) / f(1/3)) = 1.
    gaussian = [0.9, 0.8 * math.exp(-2 / 9), 0.7]
    close(runner(masks, labels, scores), naive.np.array(gaussian))
    close(runner(masks, labels, scores, "linear"), naive.np.array([0.9, 0.8 * 2 / 3, 0.7]))
    close(runner(masks, labels, scores, sigma=0.5)[1:2], naive.np.array([0.8 * math.exp(-0.5 / 9)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rule(runner, dtype, kernel):
    runner.needs(dtype)
    masks, labels, scores = blobs(runner, 30, dtype=dtype)
    out, (grad,) = gradients(lambda s: runner(masks, labels, s, kernel), [scores])
    same, (same_grad,) = gradients(plain_nms(masks, labels, kernel), [scores])
    exact = oracle(masks, labels, scores, kernel)
    assert out.dtype == grad.dtype == dtype
    as_good_as_pytorch(out, same, exact)
    close(out, exact)
    _, (exact_grad,) = gradients(plain_nms(masks, labels, kernel), [scores.double()])
    as_good_as_pytorch(grad, same_grad, numpy64(exact_grad), "gradient")


@few(max_examples=40)
@given(
    st.integers(0, 8),
    st.tuples(st.integers(0, 9), st.integers(0, 12)),
    st.sampled_from(KERNELS),
    st.sampled_from([0.5, 2.0, 30.0]),
    st.data(),
)
def test_any_size(runner, count, size, kernel, sigma, data):
    """Few values of everything, so that ties, twins and empty masks are common."""

    def several(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

    shapes = torch.zeros(4, *size, dtype=torch.bool)  # none, all, the upper half, every third pixel
    shapes[1], shapes[2, : size[0] // 2], shapes[3].view(-1)[::3] = True, True, True
    masks = shapes[several(range(4))].to(runner.device)
    labels = torch.tensor(several([0, -1, 1 << 40]), dtype=torch.int64, device=runner.device)
    scores = torch.tensor(several([0.0, 0.25, 0.5, 1.0]), dtype=runner.finest, device=runner.device)
    exact = oracle(masks, labels, scores, kernel, sigma)
    close(runner(masks, labels, scores, kernel, sigma), exact)
    close(runner(BitMasks.from_bool(masks), labels, scores, kernel, sigma), exact)


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_masks_touch_nothing(runner, kernel):
    """In public implementations one pair of empty masks makes every score NaN."""
    masks, labels, scores = blobs(runner)
    empty = torch.zeros_like(masks[:2])
    more = (torch.cat([empty, masks]), torch.cat([labels[:1].repeat(2), labels]))
    out = runner(*more, torch.cat([scores.new_tensor([0.95, 0.94]), scores]), kernel)
    close(out[:2], naive.np.array([0.95, 0.94]))
    close(out[2:], numpy64(runner(masks, labels, scores, kernel)))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_linear_with_identical_masks(runner, count):
    """Fault 2: 0 / 0 from the third on."""
    out = runner(*identical(runner, count, [0.9 - 0.1 * k for k in range(count)]), "linear")
    close(out, naive.np.array([0.9] + [0.0] * (count - 1)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_in_any_order(runner, kernel):
    """Fault 3: the result follows the input, sorted or not."""
    masks, labels, scores = blobs(runner, 20)
    expected = runner(masks, labels, scores, kernel)
    sorts = (scores.argsort(), scores.argsort(descending=True), torch.randperm(20, device=scores.device))
    for order in sorts:
        close(runner(masks[order], labels[order], scores[order], kernel), numpy64(expected[order]))


def test_ties_go_to_the_lower_index(runner):
    args = identical(runner, 40, [0.5] * 40)
    assert runner(*args, "linear").tolist() == [0.5] + [0.0] * 39


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_counts_all_pixels(runner, dtype):
    """Fault 4: a full 200 x 336 mask has 67,200 pixels, beyond float16; bfloat16 knows no 67,199."""
    runner.needs(dtype)
    masks = torch.ones(3, 200, 336, dtype=torch.bool, device=runner.device)
    masks[1, 100:] = False  # IoU 1/2
    masks[2, 0, 0] = False  # IoU 67,199 / 67,200
    labels = torch.zeros(3, dtype=torch.int64, device=runner.device)
    scores = torch.tensor([1.0, 0.5, 0.25], dtype=dtype, device=runner.device)
    out = runner(masks, labels, scores)
    assert out.dtype == dtype
    exact = oracle(masks, labels, scores)
    assert abs(numpy64(out) - exact).max() <= torch.finfo(dtype).eps


def test_nan_score_stays_alone(runner):
    masks, labels, scores = identical(runner, 4, [0.9, math.nan, 0.8, 0.7])
    out = runner(masks, labels, scores)
    keep = [0, 2, 3]
    assert out[1].isnan()
    close(out[keep], numpy64(runner(masks[keep], labels[keep], scores[keep])))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_order_of_the_lowest_scores(runner, dtype):
    """The lowest number is above -inf, and NaN below it: of twins the linear kernel keeps the first alone."""
    runner.needs(dtype)
    lowest = torch.finfo(dtype).min
    for scores, kept in (([-math.inf, lowest, math.nan], 1), ([math.nan, -math.inf, -math.inf], 1)):
        masks, labels, scores = identical(runner, 3, scores, dtype)
        out = runner(masks, labels, scores, "linear")
        expected = torch.where(scores.isnan(), scores, 0)
        expected[kept] = scores[kept]
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_far_overlaps_do_not_overflow(runner):
    """A large sigma: f(c_i) vanishes in float32, and a quotient of two such is NaN."""
    args = identical(runner, 4, [0.9, 0.8, 0.7, 0.6])
    close(runner(*args, sigma=1e4), naive.np.array([0.9, 0, 0, 0]))
    masks, labels, scores = blobs(runner)
    assert runner(masks, labels, scores, sigma=1e4).isfinite().all()


@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 40_000])
def test_bool_bytes_and_bits_agree(runner, pixels):
    masks = runner.rand_bool(9, 1, pixels)
    masks[::2, :, : pixels // 2] = True
    _, labels, scores = blobs(runner, 9, dtype=torch.float32)
    expected = runner(masks, labels, scores)
    close(expected, oracle(masks, labels, scores))
    for same in (masks.byte(), masks.byte() * 255, BitMasks.from_bool(masks)):
        assert torch.equal(runner(same, labels, scores), expected)


def test_layouts(runner):
    masks, labels, scores = blobs(runner)
    expected = runner(masks, labels, scores)
    for same in (masks.mT.contiguous().mT, masks.movedim(0, -1).contiguous().movedim(-1, 0)):
        assert torch.equal(runner(same, labels, scores), expected)
    twice = [torch.stack([x, x], -1)[..., 0] for x in (labels, scores)]
    assert torch.equal(runner(masks, *twice), expected)
    bits = BitMasks.from_bool(masks)
    bits = bits._replace(words=bits.words.T.contiguous().T)
    assert torch.equal(runner(bits, labels, scores), expected)
    one = (masks[:1].expand(12, -1, -1), labels[:1].expand(12))
    assert torch.equal(runner(*one, scores), runner(*(x.contiguous() for x in one), scores))


def test_repeatable_and_exact(runner):
    """Spec 4.8: intersections are integers, so neither runs nor the order of pixels change a bit."""
    masks, labels, scores = blobs(runner, 100, (40, 70), dtype=torch.float32)
    shuffled = masks.flatten(1)[:, torch.randperm(2800, device=masks.device)].view_as(masks)
    with deterministic(False):
        first = runner(masks, labels, scores)
        for again in (masks, masks, shuffled):
            assert same_bits(runner(again, labels, scores), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinite_scores(runner, dtype):
    """Identical masks: what the linear kernel decays to nothing is 0, and not infinity times 0."""
    masks = torch.ones(5, 2, 2, dtype=torch.bool, device=runner.device)
    labels = torch.zeros(5, dtype=torch.int64, device=runner.device)
    scores = torch.tensor([-math.inf, math.nan, 1.0, math.inf, math.inf], device=runner.device, dtype=dtype)
    out = runner(masks, labels, scores, "gaussian")
    assert out[[0, 3, 4]].tolist() == [-math.inf, math.inf, math.inf]
    assert out[1].isnan()
    torch.testing.assert_close(out[2].item(), math.exp(-2.0), rtol=torch.finfo(dtype).eps, atol=0)
    out = runner(masks, labels, scores, "linear")
    assert out[[0, 2, 3, 4]].tolist() == [0, 0, math.inf, 0]
    assert out[1].isnan()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck(runner, kernel):
    runner.needs(torch.float64)
    masks, labels, scores = blobs(runner)
    check_gradcheck(lambda s: runner(masks, labels, s, kernel), [scores])


@pytest.mark.parametrize("kernel", KERNELS)
def test_opcheck(runner, kernel):
    masks, labels, scores = blobs(runner)
    rows = (masks.flatten(1), masks.flatten(1).byte(), BitMasks.from_bool(masks).words)
    for row in rows:
        check_opcheck(runner.overload(), row, labels, scores.clone().requires_grad_(), kernel, 2.0)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    if compiler == "inductor":  # it hands the gradient, a product, to the C++ compiler, which takes long
        masks, labels, scores = blobs(runner, 6, dtype=torch.float32)
        check_compile(lambda s: runner.raw(masks, labels, s), [scores], compiler, grad=False)
        return
    for count in (6, 9):
        masks, labels, scores = blobs(runner, count, dtype=torch.float32)
        for same in (masks, BitMasks.from_bool(masks)):
            check_compile(lambda s, m=same, c=labels: runner.raw(m, c, s), [scores], compiler)


def test_messages(runner):
    masks, labels, scores = blobs(runner)

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"matrix_nms: expected {message}")

    refuses("masks of shape [n, H, W], got [20, 23] (2 dims)", masks[0], labels, scores)
    refuses("masks of dtype bool or uint8, or BitMasks, got torch.float32", masks.float(), labels, scores)
    refuses("masks of length n = 12 as scores has, got 11", masks[1:], labels, scores)
    refuses("masks of length n = 12 as scores has, got 11", BitMasks.from_bool(masks[1:]), labels, scores)
    refuses("labels of shape [n], got [12, 1] (2 dims)", masks, labels[:, None], scores)
    refuses("labels of dtype int64, got torch.int32", masks, labels.int(), scores)
    refuses("labels of length n = 12 as scores has, got 3", masks, labels[:3], scores)
    refuses("scores of shape [n], got [12, 1] (2 dims)", masks, labels, scores[:, None])
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"scores {floats}, got torch.int64", masks, labels, scores.long())
    refuses(f"labels on scores's device {scores.device}, got meta", masks, labels.to("meta"), scores)
    refuses("kernel to be one of gaussian, linear, got 'cubic'", masks, labels, scores, "cubic")
    for sigma in (0.0, -1.0, math.nan, math.inf):
        refuses(f"sigma > 0 and finite, got {sigma}", masks, labels, scores, "gaussian", sigma)
    refuses("masks to be a tensor of shape [n, H, W], got list", [], labels, scores, error=TypeError)
