import subprocess
import sys

import numpy as np
import op_oracles as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    COMPILERS,
    check_compile,
    check_message,
    check_opcheck,
    deterministic,
    few,
    same_bits,
)
from test_matrix_nms import blobs

from solo_attn import BitMasks, mask_iou
from solo_attn.backends import triton_runtime

OP = "mask_iou"


def boxes(runner, count=12, size=(20, 23), seed=0):
    return blobs(runner, count, size, seed=seed)[0]


def exact(masks, others=None):
    """Loops over pairs in float64, rounded once: nothing but this is right."""
    every = masks if others is None else torch.cat([masks, others])
    found = naive.iou(every.cpu().numpy())
    found = found if others is None else found[: len(masks), len(masks) :]
    return torch.from_numpy(found.astype(np.float32))


def check(runner, masks, others=None):
    out = runner(masks, others)
    assert out.dtype == torch.float32
    assert out.device == masks.device
    assert torch.equal(out.cpu(), exact(masks, others))
    return out


def test_by_hand(runner):
    masks = torch.zeros(4, 2, 8, dtype=torch.bool, device=runner.device)
    masks[0, 0, :4] = masks[1, 0, 2:6] = masks[2, 1, :] = True  # and an empty one
    third = torch.tensor(1 / 3)
    expected = [[1, third, 0, 0], [third, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(runner(masks).cpu(), torch.tensor(expected))
    assert torch.equal(runner(masks[:1], masks[1:]).cpu(), torch.tensor(expected)[:1, 1:])


# In Triton's interpreter an example, eight runs of the op, takes seconds.
@few(max_examples=4 if triton_runtime.INTERPRETED else 60)
@given(st.integers(0, 20), st.integers(0, 20), st.tuples(st.integers(0, 9), st.integers(0, 90)), st.data())
def test_any_size(runner, count, more, size, data):
    """Few shapes, so that twins and empty masks are common; in all forms that masks have."""
    shapes = torch.zeros(5, *size, dtype=torch.bool)  # none, all, the upper half, every third pixel, the last
    shapes[1], shapes[2, : size[0] // 2], shapes[3].view(-1)[::3] = True, True, True
    shapes[4].view(-1)[-1:] = True
    kinds = st.integers(0, 4)
    masks, others = (
        shapes[data.draw(st.lists(kinds, min_size=n, max_size=n))].to(runner.device) for n in (count, more)
    )
    alone, pairs = check(runner, masks), check(runner, masks, others)
    forms = (lambda x: x.byte() * 3, BitMasks.from_bool)
    for form in forms:
        assert torch.equal(runner(form(masks)), alone)
        assert torch.equal(runner(masks, form(others)), pairs)
        assert torch.equal(runner(form(masks), others), pairs)
        assert torch.equal(runner(form(masks), form(others)), pairs)


def test_larger(runner):
    """Words beyond the first, tiles beyond the first, both triangles."""
    masks = boxes(runner, 41, (60, 70))
    assert ((check(runner, masks) > 0).sum(1) > 1).all()
    check(runner, masks, boxes(runner, 23, (60, 70), seed=1))
    check(runner, masks[:3], masks)
    noise = runner.rand_bool(17, 40, 41)
    check(runner, noise)
    check(runner, noise, noise.flip(0))


@pytest.mark.not_interpreted("half a million words a mask take two minutes")
def test_counts_beyond_float32(runner):
    """2^24 pixels and one less: their quotient is exact, and not 1."""
    masks = torch.ones(2, 4097, 4096, dtype=torch.bool, device=runner.device)
    masks[1, 0, 0] = False
    pixels = 4097 * 4096
    other = np.float32((pixels - 1) / pixels)
    assert runner(masks).tolist() == [[1.0, other], [other, 1.0]]


def test_layouts(runner):
    masks, others = boxes(runner), boxes(runner, 5, seed=1)
    alone, pairs = runner(masks), runner(masks, others)
    for form in (lambda x: x.mT.contiguous().mT, lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0)):
        assert torch.equal(runner(form(masks)), alone)
        assert torch.equal(runner(form(masks), form(others)), pairs)
    bits = BitMasks.from_bool(masks)
    assert torch.equal(runner(bits._replace(words=bits.words.T.contiguous().T)), alone)
    assert torch.equal(runner(masks[:1].expand(9, -1, -1), others), pairs[:1].expand(9, -1))


@pytest.mark.not_interpreted("it runs one program after another, always in one order")
def test_repeatable(runner):
    masks = runner.rand_bool(50, 40, 70)
    with deterministic(False):
        first = runner(masks)
        for _ in range(3):
            assert same_bits(runner(masks), first)


@pytest.mark.not_interpreted("its kernels have no threads")
def test_threads_change_nothing(runner):
    masks = boxes(runner, 200, (60, 70))
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append((runner(masks), runner(masks, masks[:77])))
    finally:
        torch.set_num_threads(before)
    for alone, pairs in found:
        assert same_bits(alone, found[0][0])
        assert same_bits(pairs, found[0][1])
        assert same_bits(pairs, alone[:, :77].contiguous())


MEMORY = """
import resource, sys, torch
from solo_attn import BitMasks, mask_iou
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(n):
    words = torch.randint(1 << 62, (n, 16800))
    before = peak()
    masks = BitMasks(words, words.new_zeros(n), words.new_zeros(n).float(), (800, 1344))
    mask_iou(masks, backend=sys.argv[1])
    return peak() - before
run(2)
print(run(200))
"""


@pytest.mark.not_interpreted("33,600 words a mask take minutes, and the memory is the interpreter's")
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with resource.getrusage")
def test_bounded_memory(runner):
    """As floats the masks alone would be 860 MB."""
    if runner.device != "cpu":
        pytest.skip("the memory of a process is read on the CPU alone")
    command = [sys.executable, "-c", MEMORY, runner.backend]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 << 20


def test_against_pycocotools(runner):
    coco_mask = pytest.importorskip("pycocotools.mask", reason='the extra "train" is not installed')
    masks, others = boxes(runner, 30), boxes(runner, 20, seed=1)
    runs = [
        coco_mask.encode(np.asfortranarray(x.permute(1, 2, 0).cpu().numpy().astype(np.uint8)))
        for x in (masks, others)
    ]
    theirs = coco_mask.iou(*runs, np.zeros(len(others), dtype=np.uint8))
    assert torch.equal(runner(masks, others).cpu(), torch.from_numpy(theirs).float())


def test_opcheck(runner):
    masks, others = boxes(runner).flatten(1), boxes(runner, 7, seed=1).flatten(1)
    words = BitMasks.from_bool(boxes(runner)).words
    for args in ((masks, None), (masks.byte(), others), (words, others), (words, None)):
        check_opcheck(runner.overload(), *args)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    def run(masks):
        return runner.raw(masks, masks[:2]) + runner.raw(BitMasks.from_bool(masks))[:, :2]

    check_compile(
        run if compiler != "inductor" else runner.raw,
        [boxes(runner)],
        compiler,
        [boxes(runner, 7, (9, 30))],
        grad=False,
    )


def test_no_gradient(runner):
    assert not runner(boxes(runner)).requires_grad


def test_messages(runner):
    masks = boxes(runner)

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"mask_iou: expected {message}")

    refuses("masks of shape [n, H, W], got [20, 23] (2 dims)", masks[0])
    refuses("others of shape [n, H, W], got [20, 23] (2 dims)", masks, masks[0])
    refuses("masks of dtype bool or uint8, or BitMasks, got torch.float32", masks.float())
    refuses("others of masks' size (20, 23), got (20, 22)", masks, masks[:, :, 1:])
    refuses("others of masks' size (20, 23), got (23, 20)", masks, BitMasks.from_bool(masks.mT))
    refuses(f"others on masks's device {masks.device}, got meta", masks, masks.to("meta"))
    refuses("masks to be a tensor of shape [n, H, W], got list", [], error=TypeError)


def test_a_backend_that_is_named_runs_or_raises():
    masks = torch.ones(1, 2, 2, dtype=torch.bool, device="meta")
    with pytest.raises(RuntimeError, match=r"^mask_iou: backend 'cpu' cannot run: it needs CPU tensors"):
        mask_iou(masks, backend="cpu")
