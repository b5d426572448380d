"""Arguments of the ops that once reached PyTorch or C++, or were taken in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from solo_attn import (
    BitMasks,
    attention_residual,
    dice_loss,
    grid_attention,
    mask_bits,
    mask_iou,
    matrix_nms,
    paste_masks,
    upsample_add,
)

FEATURES = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
COARSE, MASKS = torch.zeros(2, 4, 4), torch.ones(2, 8, 8, dtype=torch.bool)
LABELS, SCORES = torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.8])
BITS = BitMasks.from_bool(MASKS)
HUGE = 2**62

BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "text as scale": (lambda: grid_attention(FEATURES, "2"), TypeError, "scale to be a number, got str"),
    "tensor as scale": (
        lambda: grid_attention(FEATURES, SCORES[0]),
        TypeError,
        "scale to be a number, got Tensor",
    ),
    "true as scale": (
        lambda: attention_residual(torch.zeros(1, 9, 6, 6), FEATURES, True),
        TypeError,
        "scale to be a number, got bool",
    ),
    "scale NaN": (lambda: grid_attention(FEATURES, float("nan")), ValueError, "scale to be finite, got nan"),
    "eps None": (lambda: dice_loss(COARSE, None, MASKS, None), TypeError, "eps to be a number, got NoneType"),
    "eps inf": (lambda: dice_loss(COARSE, None, MASKS, float("inf")), ValueError, "eps > 0 and finite"),
    "sigma a list": (
        lambda: matrix_nms(MASKS, LABELS, SCORES, sigma=[2.0]),
        TypeError,
        "sigma to be a number, got list",
    ),
    "threshold text": (
        lambda: mask_bits(COARSE, None, (8, 8), (8, 8), "0.5"),
        TypeError,
        "threshold to be a number, got str",
    ),
    "endless size": (lambda: upsample_add(COARSE, None, (HUGE, 2)), ValueError, "size .* at most .* pixels"),
    "sizes whose product ends": (
        lambda: paste_masks(COARSE, None, (8, 8), (8, 8), (8, 8), (2**31, 2**33)),
        ValueError,
        "original_size .* at most .* pixels",
    ),
    "true as a size": (lambda: upsample_add(COARSE, None, (True, 2)), TypeError, "size to be .* integers"),
    "sparse": (
        lambda: grid_attention(FEATURES.to_sparse(), backend="cpu"),
        ValueError,
        "grid_features to be a dense tensor, got a sparse_coo one",
    ),
    "sparse labels": (
        lambda: matrix_nms(MASKS, LABELS.to_sparse(), SCORES),
        ValueError,
        "labels to be a dense",
    ),
    "nested": (
        lambda: upsample_add(torch.nested.nested_tensor([COARSE[0]], layout=torch.jagged), None, (8, 8)),
        ValueError,
        "coarse_logits to be a dense tensor, got a nested one",
    ),
    "fewer words": (lambda: mask_iou(BITS._replace(size=(80, 80))), ValueError, r"int64 of shape \[K, 100\]"),
    "words of floats": (
        lambda: mask_iou(BITS._replace(words=BITS.words.float())),
        ValueError,
        "int64 of shape",
    ),
    "no words": (
        lambda: matrix_nms(BITS._replace(words=None), LABELS, SCORES),
        TypeError,
        "words to be a tensor",
    ),
    "size in words": (lambda: mask_iou(BITS._replace(size="8x8")), ValueError, r"masks.size to be \(H, W\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_in_the_one_form(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=rf"^\w+: expected .*{message}"):
        call()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_sigma_beyond_float32_is_finite(backend: str) -> None:
    """Masks apart decayed by 0 times infinity."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2] = masks[1, 2:] = masks[2, 1:3] = True
    labels, scores = torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7])
    assert matrix_nms(masks, labels, scores, sigma=1e39, backend=backend).tolist() == pytest.approx(
        [0.9, 0.8, 0]
    )


VALUES = [torch.inf, -torch.inf, torch.nan]


@pytest.mark.parametrize("size", [(5, 5), (15, 21), (10, 13), (3, 4)], ids=str)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_is_not_finite_is_where_it_has_a_part(backend: str, value: float, size: tuple[int, int]) -> None:
    """And not where a sample falls on its neighbour: its part is 0 there, and 0 times infinity is NaN."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        maps = torch.zeros(2, 5, 5, dtype=dtype)
        maps[1, 2, 3] = maps[1, 4, 4] = value
        part = torch.nn.functional.interpolate(maps.ne(0)[None].double(), size, mode="bilinear")[0]
        expected = torch.where(part > 0, value, 0).to(dtype)
        for given in ((maps, None), (torch.zeros_like(maps), maps)):
            out = upsample_add(*given, size, backend=backend)
            torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


OF_CELLS: dict[str, Callable[..., Any]] = {
    "dice_loss": lambda c, a, b: dice_loss(c, a, torch.ones(2, 15, 21, dtype=torch.bool), backend=b),
    "mask_bits": lambda c, a, b: mask_bits(c, a, (10, 14), (30, 21), backend=b).areas,
    "maskness": lambda c, a, b: mask_bits(c, a, (10, 14), (10, 14), backend=b).maskness,
    "paste_masks": lambda c, a, b: paste_masks(c, a, (10, 14), (10, 14), (40, 56), (31, 47), backend=b),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OF_CELLS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_infinite_logit_is_a_very_large_one(backend: str, name: str, sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse, rows = torch.randn(2, 5, 7, generator=generator), torch.randn(2, 3, 3, generator=generator)
    for attention in (None, rows):
        found = []
        for value in (torch.inf, 1e3):
            given = coarse.clone()
            given[0, 2, 3] = given[0, 0, 0] = given[1, 4, 6] = sign * value
            more = (
                None
                if attention is None
                else attention.clone().index_fill_(2, torch.tensor([2]), sign * value)
            )
            found.append(OF_CELLS[name](given, more, backend))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_nan_beside_a_pixel_stays_out_of_the_mask(backend: str) -> None:
    coarse = torch.full((1, 4, 6), 3.0)
    coarse[0, 1, 2] = torch.nan
    assert mask_bits(coarse, None, (4, 6), (4, 6), backend=backend).areas.item() == 23
    # A row three times as long: each third sample falls on an input, and two on each side blend the NaN.
    assert mask_bits(coarse[:, 1:2], None, (1, 18), (1, 18), backend=backend).areas.item() == 18 - 5


def test_infinite_features_are_as_in_the_reference() -> None:
    features = FEATURES.clone()
    features[0, 0, 1, 1], features[0, 1, 0, 2] = torch.inf, -torch.inf
    logits = torch.zeros(1, 9, 9, 8)
    found, expected = (attention_residual(logits, features, backend=b) for b in ("cpu", "reference"))
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert expected.isfinite().any()


TANGENTS: dict[str, Callable[[], Any]] = {
    "jvp": lambda: torch.func.jvp(grid_attention, (FEATURES,), (FEATURES,)),
    "jacfwd": lambda: torch.func.jacfwd(lambda x: upsample_add(x, None, (8, 8)))(COARSE),
    "of the second input": lambda: torch.func.jvp(
        lambda x: attention_residual(torch.zeros(1, 9, 6, 6), x), (FEATURES,), (FEATURES,)
    ),
    "scores": lambda: torch.func.jvp(lambda x: matrix_nms(MASKS, LABELS, x), (SCORES,), (SCORES,)),
}


@pytest.mark.parametrize("name", TANGENTS)
def test_there_is_no_forward_mode_and_it_says_so(name: str) -> None:
    with pytest.raises(RuntimeError, match="expected inputs without a tangent"):
        TANGENTS[name]()


def test_dual_tensors_alone_matter() -> None:
    with forward_ad.dual_level():
        assert grid_attention(FEATURES).shape == (1, 9, 3, 3)
        with pytest.raises(RuntimeError, match="forward-mode"):
            dice_loss(forward_ad.make_dual(COARSE, COARSE), None, MASKS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_torch_func_has_no_gradients_of_ops_and_it_says_so(backend: str) -> None:
    def larger(x: torch.Tensor) -> torch.Tensor:
        return upsample_add(x, None, (8, 8), backend=backend)

    message = "^upsample_add: expected no gradient by torch.func .*; take backward"
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: larger(x).sum())(COARSE)
    with pytest.raises(RuntimeError, match=message):
        torch.func.vjp(larger, COARSE)
    weight = torch.rand(())  # of what depends on no op there are
    found = torch.func.grad(lambda w: (w * larger(COARSE)).sum())(weight)
    torch.testing.assert_close(found, larger(COARSE).sum())


def test_torch_func_and_an_op_without_a_gradient() -> None:
    with pytest.raises(RuntimeError, match=r"^mask_bits is not differentiable: detach its inputs"):
        torch.func.grad(lambda x: mask_bits(x, None, (8, 8), (8, 8)).maskness.sum())(COARSE)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop() -> None:
    one = torch.vmap(lambda x: upsample_add(x[None], None, (8, 8))[0])(COARSE)
    torch.testing.assert_close(one, upsample_add(COARSE, None, (8, 8)), rtol=0, atol=0)


def by_way_of_autograd(run: Callable[[], Any]) -> bool:
    """Whether the gradients of torch.library, which are in Python, are asked."""
    names: set[str] = set()
    sys.setprofile(lambda frame, event, argument: names.add(frame.f_code.co_name))
    try:
        run()
    finally:
        sys.setprofile(None)
    assert "pick" in names
    return "autograd_impl" in names


def test_a_gradient_is_had_where_it_is_asked_for() -> None:
    leaf, rows = COARSE.clone().requires_grad_(), torch.ones(len(COARSE), 3, 3, requires_grad=True)
    for coarse, attention in ((leaf, None), (COARSE, rows), (leaf, rows)):

        def run(coarse: Tensor = coarse, attention: Tensor | None = attention) -> Tensor:
            return upsample_add(coarse, attention, (8, 8))

        assert by_way_of_autograd(run)
        assert run().requires_grad
        with torch.no_grad():
            assert not by_way_of_autograd(run)
            assert not run().requires_grad
    assert not by_way_of_autograd(lambda: upsample_add(COARSE, None, (8, 8)))
    assert upsample_add(COARSE, None, (8, 8)).requires_grad_().is_leaf, "its history is empty, not cut off"
    with torch.inference_mode():
        assert upsample_add(COARSE, None, (8, 8)).is_inference()


def test_a_subclass_may_need_gradients_that_its_wrapper_does_not() -> None:
    leaf = COARSE.clone().requires_grad_()

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # of an op
            if "upsample_add" in str(func):
                return func(leaf, *args[1:], **(kwargs or {}))
            return super().__torch_function__(func, types, args, kwargs or {})

    wrapped = COARSE.clone().as_subclass(Wrapper)
    assert not wrapped.requires_grad
    assert upsample_add(wrapped, None, (8, 8)).requires_grad


def test_bits_are_made_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_attn.reference import mask_bits as reference

    masks = torch.rand(7, 99, generator=torch.Generator().manual_seed(0)) < 0.4
    whole = reference.mask_bits_pack(masks, None)
    monkeypatch.setattr(reference, "_PART", 150)  # one mask at a time
    for part, other in zip(reference.mask_bits_pack(masks, None), whole, strict=True):
        assert torch.equal(part, other)
    assert torch.equal(whole[1], masks.sum(1))
