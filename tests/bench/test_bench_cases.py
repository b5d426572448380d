"""The cases of the benchmarks at small sizes: right before they are fast, and inputs as they occur."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_cases import SMALL

from solo_attn import BitMasks, mask_iou
from solo_attn.backends import OPS
from solo_attn.bench import CASES, COMPILED, FLOOR, PLAIN, agree, backends, backward, forward, inputs

MAKERS = [pytest.param(make, SMALL[op], id=make.__name__) for op in OPS for make in CASES[op]]


def wrong(case, shift):
    """The case with a kernel that is a little off."""

    def kernel(*args):
        out = case.kernel(*args)
        if isinstance(out, list):
            return [out[0], out[0], *out[2:]]
        if isinstance(out, BitMasks):
            return out._replace(words=out.words.flip(1))
        return ~out if out.dtype == torch.bool else out + shift

    return dataclasses.replace(case, kernel=kernel)


def test_every_op_has_a_case():
    assert set(CASES) == set(OPS)
    for op in OPS:
        assert all(make("cpu", **SMALL[op]).op == op for make in CASES[op])


@pytest.mark.parametrize(("make", "sizes"), MAKERS)
def test_contenders_are_right_and_run(make, sizes):
    case = make("cpu", **sizes)
    before = [x.clone() for x in case.inputs]
    found = forward(case, "cpu")
    assert list(found) == [*backends(case.op, "cpu"), PLAIN, FLOOR]
    assert next(iter(found)) == "cpu", "the default comes first"
    for x, copy in zip(case.inputs, before, strict=True):
        assert torch.equal(x, copy), "proving it right must not change what is timed"
    for run in found.values():
        run()
    with pytest.raises(AssertionError):
        forward(wrong(case, 0.1), "cpu")


@pytest.mark.parametrize(
    ("make", "sizes"), [p for p in MAKERS if p.values[0]("cpu", **p.values[1]).differentiable]
)
def test_backward_contenders(make, sizes):
    case = make("cpu", **sizes)
    found = backward(case, "cpu")
    assert list(found) == [*backends(case.op, "cpu"), PLAIN, FLOOR]
    for run in found.values():
        run()
        run()  # the graph is kept
    scaled = dataclasses.replace(case, kernel=lambda *args: case.kernel(*args) * 1.1)
    with pytest.raises(AssertionError):
        backward(scaled, "cpu")


def test_torch_compile_is_a_contender(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
    case = CASES["upsample_add"][0]("cpu", **SMALL["upsample_add"])
    assert COMPILED in forward(case, "cpu", compiled=True)
    assert COMPILED in backward(case, "cpu", compiled=True)
    assert compiled == [case.plain] * 2


def test_masks_are_as_they_occur():
    """Issue of the benchmarks: mean area of 2,300 to 2,600 pixels, near-duplicates, 80 labels."""
    masks, labels, scores = inputs.masks(200, (200, 336))
    assert 2300 <= masks.flatten(1).sum(1).float().mean() <= 2600
    assert masks.flatten(1).any(1).all()
    overlap = mask_iou(masks).fill_diagonal_(0)
    same = labels[:, None] == labels[None, :]
    assert ((overlap * same).amax(1) > 0.6).float().mean() > 0.6
    assert int(labels.min()) >= 0
    assert 40 < len(labels.unique()) <= inputs.NUM_CLASSES
    assert (scores.diff() > 0).any(), "in no order"
    again = inputs.masks(200, (200, 336))
    assert all(torch.equal(a, b) for a, b in zip(again, (masks, labels, scores), strict=True))


def test_the_same_objects_at_any_size():
    small, large = (inputs.mask_logits(9, size) > 0 for size in ((50, 84), (200, 336)))
    enlarged = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert mask_iou(enlarged, large).diagonal().min() > 0.8


def test_agreement():
    agree(torch.ones(4), torch.ones(4) * 1.0001)
    agree((torch.ones(2), torch.zeros(3)), [torch.ones(2), torch.zeros(3)])
    many = torch.zeros(100, 500, dtype=torch.bool)
    few = many.clone()
    few[0, :5] = True
    agree(many, few)
    few[0, :50] = True
    for out, expected in (
        (few, many),
        (torch.ones(4), torch.ones(4) * 1.01),
        (torch.ones(4), torch.ones(5)),
        (torch.full((4,), torch.nan), torch.ones(4)),
        ([torch.ones(1)], [torch.ones(1)] * 2),
    ):
        with pytest.raises(AssertionError):
            agree(out, expected)
