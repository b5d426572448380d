"""The drop-in Matrix NMS against mmdetection's own function."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.peers.loading import need
from solo_attn.interop.mmdet import mask_matrix_nms


@pytest.fixture(scope="module")
def theirs() -> Any:
    return need("mmdet.models.layers").mask_matrix_nms


def scene(seed: int, count: int, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Masks that overlap, none empty (two of them would make mmdetection's scores NaN); labels; scores."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, 1, 1, generator=generator)
    masks = torch.rand(count, height, width, generator=generator) < level
    masks[:, seed % height, : 1 + seed % width] = True
    labels = torch.randint(0, 3, (count,), generator=generator)
    return masks, labels, torch.rand(count, generator=generator)


def agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
    scores, labels, masks, index = ours
    torch.testing.assert_close(scores, theirs[0], rtol=0, atol=1e-6)
    # Scores that differ by rounding only may stand in either order.
    if not torch.equal(index, theirs[3]):
        place = torch.argsort(theirs[3])[torch.searchsorted(theirs[3].sort().values, index)]
        assert torch.equal(theirs[3][place], index)
        torch.testing.assert_close(scores, theirs[0][place], rtol=0, atol=1e-6)
        theirs = tuple(x[place] for x in theirs)
    assert torch.equal(labels, theirs[1])
    assert torch.equal(masks, theirs[2])


def off_the_threshold(scores: Tensor, threshold: float) -> float:
    """The threshold, moved where rounding decides nothing."""
    edges = torch.cat([torch.zeros(1), scores.sort().values, torch.ones(1)])
    k = int(torch.searchsorted(edges, threshold).clamp(1, len(edges) - 1))
    return float(edges[k - 1] + edges[k]) / 2


@pytest.mark.parametrize("form", ["uint8", "integers", "floats", "soft", "transposed", "bool"])
def test_few_of_many_are_what_they_are_alone(form: str) -> None:
    """``nms_pre`` takes the best, whatever the masks are made of, and what is returned is like the input."""
    masks, labels, scores = scene(3, 40)
    given = {
        "uint8": masks.byte() * 255,
        "integers": masks.long() * 3,
        "floats": masks.float(),
        "soft": masks * 0.75,
        "transposed": masks.mT.contiguous().mT,
        "bool": masks,
    }[form]
    best = scores.argsort(descending=True)[:7]
    found = mask_matrix_nms(given, labels, scores, nms_pre=7, filter_thr=0.1)
    alone = mask_matrix_nms(given[best], labels[best], scores[best], filter_thr=0.1)
    for one, other in zip(found[:3], alone[:3], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert torch.equal(found[3], best[alone[3]])
    assert found[2].dtype == given.dtype


def test_a_score_without_a_number_comes_last() -> None:
    masks, labels, scores = scene(5, 6)
    scores[2] = float("nan")
    found = mask_matrix_nms(masks, labels, scores)
    assert found[3][-1] == 2
    assert found[0][-1].isnan()
    others = torch.tensor([0, 1, 3, 4, 5])
    expected = mask_matrix_nms(masks[others], labels[others], scores[others])
    assert torch.equal(found[0][:-1], expected[0])
    assert len(mask_matrix_nms(masks, labels, scores, filter_thr=1e-9)[0]) == 5


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(0, 12),
    threshold=st.sampled_from([-1, 0, 0.05, 0.3, 0.9]),
    nms_pre=st.sampled_from([-1, 0, 1, 3, 100]),
    max_num=st.sampled_from([-1, 0, 1, 2, 100]),
    kernel=st.sampled_from(["gaussian", "linear"]),
    sigma=st.sampled_from([0.5, 2.0]),
    dtype=st.sampled_from([torch.bool, torch.uint8, torch.float32, torch.float64, torch.int64]),
    area=st.sampled_from(["none", "sums", "twice"]),
    ties=st.booleans(),
)
def test_the_same_as_theirs(
    theirs, seed, count, threshold, nms_pre, max_num, kernel, sigma, dtype, area, ties
) -> None:
    masks, labels, scores = scene(seed, count)
    if ties:
        scores = (scores * 4).ceil() / 4
    masks = masks.to(dtype)
    options = {"nms_pre": nms_pre, "max_num": max_num, "kernel": kernel, "sigma": sigma}
    if area != "none":
        options["mask_area"] = masks.sum((1, 2)).float() * (2 if area == "twice" else 1)
    if threshold > 0 and count:
        every = theirs(masks, labels, scores, **{**options, "max_num": -1})[0]
        if not every.isfinite().all():  # linear, three identical masks
            return
        threshold = off_the_threshold(every, threshold)
    options["filter_thr"] = threshold
    expected = theirs(masks, labels, scores, **options)
    if expected[0].isfinite().all():
        agree(mask_matrix_nms(masks, labels, scores, **options), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), kernel=st.sampled_from(["gaussian", "linear"]), given_area=st.booleans())
def test_soft_masks_overlap_as_theirs(theirs, seed, kernel, given_area) -> None:
    hard, labels, scores = scene(seed, 8)
    soft = hard * torch.rand(hard.shape, generator=torch.Generator().manual_seed(seed))
    options = {"kernel": kernel, "mask_area": hard.sum((1, 2)) if given_area else None}
    agree(mask_matrix_nms(soft, labels, scores, **options), theirs(soft, labels, scores, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.float32])
def test_dtypes_of_scores_and_labels(theirs, dtype, label_dtype) -> None:
    masks, labels, scores = scene(3, 10)
    scores, labels = scores.to(dtype), labels.to(label_dtype) + 0.5 * (label_dtype == torch.float32)
    labels = labels.to(label_dtype)
    agree(mask_matrix_nms(masks, labels, scores), theirs(masks, labels, scores))


def test_large_masks_and_views(theirs) -> None:
    masks, labels, scores = scene(5, 24, 200, 336)  # more pixels than one chunk of the soft path
    area = masks.sum((1, 2))
    for view in (masks, masks[:, ::2], masks.transpose(1, 2), masks.float() * 0.5):
        expected = theirs(view, labels, scores, nms_pre=20, max_num=15)
        agree(mask_matrix_nms(view, labels, scores, nms_pre=20, max_num=15), expected)
    agree(
        mask_matrix_nms(masks, labels, scores, mask_area=area),
        theirs(masks, labels, scores, mask_area=area),
    )


def test_their_faults_are_gone(theirs) -> None:
    masks, labels, scores = scene(1, 6)
    masks[1], masks[4] = False, False  # one empty pair
    assert theirs(masks, labels, scores)[0].isnan().all(), "mmdetection has mended this: say so in docs"
    assert mask_matrix_nms(masks, labels, scores)[0].isfinite().all()

    same = torch.ones(3, 4, 4, dtype=torch.bool)
    three = torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7])
    assert theirs(same, *three, kernel="linear")[0].isnan().any()
    for mine in (same, same.float() * 0.5):
        decayed, _, _, index = mask_matrix_nms(mine, *three, kernel="linear", mask_area=mine.sum((1, 2)))
        assert decayed.isfinite().all()
        assert index[0] == 0


def test_empty_masks_change_nothing_for_the_others() -> None:
    masks, labels, scores = scene(2, 6)
    with_empty = torch.cat([masks, torch.zeros(2, *masks.shape[1:], dtype=torch.bool)])
    for soft in (False, True):
        given = with_empty * 0.5 if soft else with_empty
        decayed, _, _, index = mask_matrix_nms(
            given, torch.cat([labels, labels[:2]]), torch.cat([scores, scores[:2]])
        )
        alone = mask_matrix_nms(given[:6], labels, scores)
        kept = index < 6
        assert torch.equal(index[kept], alone[3])
        assert torch.equal(decayed[kept], alone[0])


def test_a_score_at_the_threshold_stays(theirs) -> None:
    masks = torch.eye(3, dtype=torch.bool)[:, None, :]
    arguments = (masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.25, 0.125, 0.5]))
    for threshold, kept in ((0.25, [2, 0]), (0.26, [2]), (0.75, [])):
        found = mask_matrix_nms(*arguments, filter_thr=threshold)
        assert found[3].tolist() == kept
        agree(found, theirs(*arguments, filter_thr=threshold))


def test_equal_scores_keep_the_order_of_the_input() -> None:
    masks = torch.eye(4, dtype=torch.bool)[:, None, :]
    _, _, _, index = mask_matrix_nms(masks, torch.arange(4), torch.full((4,), 0.5))
    assert index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.zeros(3, 4)}, "expected masks of shape [n, h, w], got [3, 4] (2 dims)"),
        ({"scores": torch.ones(2)}, "expected scores of length n = 3 as masks has, got 2"),
        ({"labels": torch.zeros(4)}, "expected labels of length n = 3 as masks has, got 4"),
        ({"mask_area": torch.zeros(1)}, "expected mask_area of length n = 3 as masks has, got 1"),
        ({"scores": torch.ones(3, dtype=torch.int64)}, "expected scores of a float dtype"),
        ({"kernel": "box"}, "expected kernel to be one of gaussian, linear, got 'box'"),
        ({"kernel": "box", "masks": torch.rand(3, 2, 2)}, "got 'box'"),
        ({"sigma": 0.0, "masks": torch.rand(3, 2, 2)}, "expected sigma > 0 and finite, got 0.0"),
    ],
)
def test_what_is_wrong_is_named(change, message) -> None:
    masks = torch.ones(3, 2, 2, dtype=torch.bool)
    arguments = {"masks": masks, "labels": torch.zeros(3), "scores": torch.rand(3)}
    with pytest.raises(ValueError, match=re.escape(message)):
        mask_matrix_nms(**{**arguments, **change})


def test_the_masks_of_a_large_result() -> None:
    """They are written into cleared memory, where nothing is set not at all."""
    masks = torch.rand(40, 1000, 901, generator=torch.Generator().manual_seed(0)) > 0.999
    scores = torch.linspace(0.1, 0.9, len(masks))
    _, _, kept, index = mask_matrix_nms(masks, torch.arange(len(masks)), scores)
    assert torch.equal(index, torch.arange(len(masks)).flip(0))
    assert torch.equal(kept, masks.flip(0))
