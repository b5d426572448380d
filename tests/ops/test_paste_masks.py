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
    deterministic,
    few,
    layouts,
    numpy64,
)

OP = "paste_masks"
SIZES = ((8, 10), (7, 9), (25, 31), (40, 23))  # size, out_size, image_size, original_size


def inputs(runner, count=3, coarse=(4, 5), side=3, dtype=None, seed=0):
    x = runner.randn(count, *coarse, dtype=dtype, seed=seed) * 2
    return x, runner.randn(count, side, side, dtype=dtype, seed=seed + 1) if side else None


def check(masks, coarse, rows, sizes, threshold=0.5):
    assert masks.dtype == torch.bool
    assert masks.shape == (len(coarse), *sizes[3])
    maps = naive.pasted(numpy64(coarse), numpy64(rows), *sizes)
    band = 1e-12 if coarse.dtype == torch.float64 else 1e-5
    naive.same_mask(masks.cpu().numpy(), maps, threshold, band)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_against_loops(runner, dtype, side, threshold):
    runner.needs(dtype)
    coarse, rows = inputs(runner, side=side, dtype=dtype)
    check(runner(coarse, rows, *SIZES, threshold), coarse, rows, SIZES, threshold)


@few(max_examples=15)
@given(st.data())
def test_any_size(runner, data):
    side = st.integers(1, 6)
    draw = data.draw
    count, coarse = draw(st.integers(0, 3)), draw(st.tuples(side, side))
    size, out_size = draw(st.tuples(side, side)), draw(st.tuples(side, side))
    image_size = tuple(draw(st.integers(1, 4 * edge)) for edge in out_size)
    original_size = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    coarse, rows = inputs(runner, count, coarse, draw(st.integers(0, 4)))
    sizes = (size, out_size, image_size, original_size)
    check(runner(coarse, rows, *sizes), coarse, rows, sizes)


@pytest.mark.parametrize("original", [(34, 260), (17, 150)], ids=["enlarged", "reduced"])
def test_wider_than_a_block(runner, original):
    coarse, rows = inputs(runner, 1, (3, 22), dtype=torch.float32)
    sizes = ((6, 44), (12, 88), (45, 340), original)
    check(runner(coarse, rows, *sizes), coarse, rows, sizes)


def test_strictly_above_the_threshold(runner):
    """sigmoid(0) = 0.5 exactly, and stays so however often it is enlarged by two."""
    coarse = torch.zeros(1, 2, 2, device=runner.device)
    sizes = ((4, 4), (8, 8), (32, 32), (64, 64))
    assert not runner(coarse, None, *sizes).any()
    assert runner(coarse + 1e-2, None, *sizes).all()
    assert not runner(coarse - 2000, None, *sizes, 0.0).any()


def test_crop_before_the_last_resize(runner):
    """What lies in the padding has no part in the image, not even in its last column."""
    coarse = torch.full((1, 1, 8), -8.0, device=runner.device)
    coarse[..., 4:] = 8.0
    sizes = ((1, 8), (1, 8), (4, 16), (7, 50))
    assert not runner(coarse, None, *sizes).any()
    assert runner(coarse, None, *sizes[:2], (4, 18), (7, 50))[0, :, -3:].all()


def test_sigmoid_before_enlarging(runner):
    """Spec 2, inference 9: the mean of probabilities, not of logits. See test_mask_bits."""
    coarse = torch.tensor([[[-2.0, 10.0]]], device=runner.device)
    masks = runner(coarse, None, (1, 2), (1, 2), (4, 8), (1, 8), 0.7)
    check(masks, coarse, None, ((1, 2), (1, 2), (4, 8), (1, 8)), 0.7)
    # Pixel 4 is 5/8 of the way: 0.12 + 5/8 * 0.88 = 0.67; the logit would be 5.5, far above.
    assert masks[0, 0].tolist() == [False] * 5 + [True] * 3


def test_by_way_of_the_padded_input(runner):
    """Stride 4 -> input -> original: two resizes are not one."""
    coarse = torch.tensor([[[-3.0, 2.0, -3.0, 4.0, -1.0]]], device=runner.device)
    for original in ((1, 7), (2, 13), (3, 33)):
        sizes = ((1, 5), (1, 5), (4, 19), original)
        check(runner(coarse, None, *sizes), coarse, None, sizes)


@pytest.mark.not_interpreted("so many pixels take minutes")
def test_more_masks_than_are_held_at_a_time(runner):
    sizes = ((4, 4), (8, 8), (32, 32), (1100, 1300))
    coarse, rows = inputs(runner, 26, (2, 2), 2, dtype=torch.float32)
    together = runner(coarse, rows, *sizes)
    for k in (0, 22, 23, 24, 25):
        assert torch.equal(together[k], runner(coarse[k : k + 1], rows[k : k + 1], *sizes)[0])


class TestRle:
    @pytest.fixture
    def encode(self):
        coco_mask = pytest.importorskip("pycocotools.mask", reason='the extra "train" is not installed')
        return lambda mask: coco_mask.encode(naive.np.asfortranarray(mask.cpu().numpy()))

    @pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
    def test_as_pycocotools(self, runner, encode, side):
        coarse, rows = inputs(runner, 6, (7, 8), side, dtype=torch.float32)
        sizes = ((14, 16), (28, 32), (100, 120), (211, 317))
        masks = runner(coarse, rows, *sizes)
        assert masks.any(dim=(1, 2)).all(), "the masks of this test are not empty"
        assert runner(coarse, rows, *sizes, rle=True) == [encode(mask) for mask in masks]

    @pytest.mark.parametrize("value", [-9.0, 9.0])
    def test_empty_and_full(self, runner, encode, value):
        coarse = torch.full((2, 2, 2), value, device=runner.device)
        masks = runner(coarse, None, *SIZES)
        assert masks.all() if value > 0 else not masks.any()
        assert runner(coarse, None, *SIZES, rle=True) == [encode(mask) for mask in masks]

    def test_one_pixel_and_one_row(self, runner, encode):
        coarse, _ = inputs(runner, 4, (1, 6), 0)
        for original in ((1, 1), (1, 40), (40, 1)):
            sizes = ((1, 6), (1, 6), (4, 24), original)
            masks = runner(coarse, None, *sizes)
            assert runner(coarse, None, *sizes, rle=True) == [encode(mask) for mask in masks]

    def test_no_mask(self, runner):
        coarse, rows = inputs(runner, 0)
        assert runner(coarse, rows, *SIZES, rle=True) == []
        assert runner(coarse, rows, *SIZES).shape == (0, 40, 23)

    def test_opcheck(self, runner, encode):
        check_opcheck(runner.overload("_rle"), *inputs(runner), *SIZES, 0.5)


def test_layouts(runner):
    coarse, rows = inputs(runner)
    expected = runner(coarse, rows, *SIZES)
    for (name, a), (_, b) in zip(layouts(coarse), layouts(rows), strict=True):
        out = runner(a, b, *SIZES)
        assert out.is_contiguous()
        assert torch.equal(out, expected), name
    wide = runner(coarse[:1].expand(4, -1, -1), rows[:1].expand(4, -1, -1), *SIZES)
    assert torch.equal(wide, expected[:1].expand(4, -1, -1))


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    coarse, rows = inputs(runner, 5, (25, 31), 12, dtype=torch.float32)
    sizes = ((50, 62), (100, 124), (390, 480), (333, 444))
    with deterministic(False):
        first = runner(coarse, rows, *sizes)
        assert all(torch.equal(runner(coarse, rows, *sizes), first) for _ in range(2))


@pytest.mark.parametrize("side", [3, 0], ids=["attention", "plain"])
def test_opcheck(runner, side):
    check_opcheck(runner.overload(), *inputs(runner, side=side), *SIZES, 0.5)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    batches = [inputs(runner, count, dtype=torch.float32) for count in (3, 5)]
    more = batches[1:] if compiler != "inductor" else []
    check_compile(lambda c, a: runner.raw(c, a, *SIZES), batches[0], compiler, *more, grad=False)


def test_not_differentiable(runner):
    coarse = runner.randn(3, 4, 5).requires_grad_()
    out = runner(coarse, None, *SIZES)
    assert not out.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        out.sum().backward()


def test_messages(runner):
    coarse, rows = inputs(runner)

    def refuses(message, *args, error=ValueError):
        for rle in (False, True):
            check_message(
                lambda rle=rle: runner.raw(*args, rle=rle), error, f"paste_masks: expected {message}"
            )

    size, out_size, _, original_size = SIZES
    refuses("coarse_logits of shape [K, h, w], got [4, 5] (2 dims)", coarse[0], rows, *SIZES)
    dtypes = "attention of coarse_logits's dtype torch.float32, got torch.float16"
    refuses(dtypes, coarse.float(), rows.half(), *SIZES)
    within = "image_size within 4 x out_size = (28, 36), got"
    refuses(f"{within} (29, 31)", coarse, rows, size, out_size, (29, 31), original_size)
    refuses(f"{within} (25, 37)", coarse, rows, size, out_size, (25, 37), original_size)
    for place, name in enumerate(("size", "out_size", "image_size", "original_size")):
        wrong = [*SIZES[:place], (0, 3), *SIZES[place + 1 :]]
        refuses(f"{name} (height, width) of at least 1, got (0, 3)", coarse, rows, *wrong)
        wrong[place] = (1.5, 3)
        message = f"{name} to be (height, width) in integers, got (1.5, 3)"
        refuses(message, coarse, rows, *wrong, error=TypeError)
    for threshold in (1.0, -0.1, float("nan")):
        refuses(f"threshold in [0, 1), got {threshold}", coarse, rows, *SIZES, threshold)
