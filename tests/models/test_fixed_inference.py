"""`find_detections`: what `predict` finds, in sizes and by operations that a CUDA graph can hold."""

import importlib

import pytest
import shim
import torch
from drawn import OFF
from small_export import exportable
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from solo_attn.backends import registry
from solo_attn.models import fixed_inference, inference
from solo_attn.models.fixed_inference import find_detections
from solo_attn.models.settings import OF_HEADS

ENOUGH = 120  # candidates of a level: 6 x 6 cells of three classes are 108
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7))
FORMS = [
    *((head, {}) for head in OF_HEADS),
    ("solo", {"masks": "dense"}),
    ("solo", {"attention": "gated", "coords": None}),
    ("solo", {"attention": "literal", "nms_kernel": "linear", "nms_pre": 30, "final_score_threshold": 0.0}),
    ("solov2", {"attention": "gated", "max_detections": 5}),
]
WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal", "is_nonzero")


class NoWaits(TorchDispatchMode):
    """Refuses each operation for which the host waits for a GPU, or whose shape depends on the data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0].strip("_")
        bools = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if bools or any(wait.strip("_") in name for wait in WAITS):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def plain(model, result):
    drawn = inference.draw_candidates(model.head, result, model.settings)
    return inference.suppress(drawn, model.head.num_classes, model.settings), drawn


def cells_of(kept, drawn):
    """The (level, image, cell) of each."""
    cells = [(k, *cell) for k, of_level in drawn.cells for cell in of_level.tolist()]
    return [cells[k] for k in kept.mask]


@torch.no_grad()
@pytest.mark.parametrize(("head", "settings"), FORMS, ids=str)
def test_it_finds_what_the_model_finds_and_never_waits(head, settings):
    model = exportable(head, **settings)
    expected, drawn = plain(model, model.features(IMAGES))
    with NoWaits():
        found = model.detect(IMAGES, ENOUGH)
    assert found.scores.shape == found.labels.shape == found.masks.shape
    assert found.left_out.tolist() == [0, 0]
    kept = found.kept(found.count.tolist())
    assert len(expected.score) > 4
    assert kept.image.equal(expected.image)
    assert kept.label.equal(expected.label)
    torch.testing.assert_close(kept.score, expected.score, atol=1e-5, rtol=0)
    masks, others = found.drawn.bits.to_bool(), drawn.bits.to_bool()
    assert (masks[kept.mask] != others[expected.mask]).float().mean() < 1e-3
    assert cells_of(kept, found.drawn) == cells_of(expected, drawn)
    for row, count in zip(found.scores, found.count, strict=True):
        assert not row[count:].any()


class Products(NoWaits):
    """Counts the products of chosen cells."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name.startswith("grid_attention") or name in ("addmm", "baddbmm", "bmm"):
            self.names.append(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.skipif(shim.MISSING is not None, reason=str(shim.MISSING))
def test_products_of_all_levels_are_one_launch(monkeypatch):
    """On a GPU, which the shim plays for these products alone; each image has cells of each level."""
    model = exportable(attention="gated")
    expected = model.detect(IMAGES, 7)
    result = model.head.prepare(model.features(IMAGES), {4: torch.tensor([1])})
    cells = {4: torch.tensor([[1, 3], [1, 0]])}
    (second,) = model.head.masks_of(result, cells)
    shim.seed(1)
    real = registry.select

    def select(op, *args):
        return shim.BACKEND if op == "grid_attention" else real(op, *args)

    for module in ("_library", "grid_attention"):
        monkeypatch.setattr(importlib.import_module(f"solo_attn.ops.{module}"), "select", select)
    with Products() as products:
        found = model.detect(IMAGES, 7)
    assert products.names == ["grid_attention_levels"] * 2
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.labels.equal(expected.labels)
    assert found.masks.equal(expected.masks)
    for one, other in zip(found.drawn.masks, expected.drawn.masks, strict=True):
        torch.testing.assert_close(one.coarse_logits, other.coarse_logits)
        torch.testing.assert_close(one.attention, other.attention)
    (masks,) = model.head.masks_of(result, cells)  # of the second image alone
    torch.testing.assert_close(masks, second)


@torch.no_grad()
def test_what_waits_is_seen():
    model = exportable()
    for wrong in (lambda: plain(model, model.features(IMAGES)), lambda: IMAGES[IMAGES > 0.5]):
        with pytest.raises(AssertionError, match="waits for the device"), NoWaits():
            wrong()


@torch.no_grad()
@pytest.mark.parametrize("rle", [False, True], ids=["bool", "rle"])
def test_predict_takes_it_on_a_gpu_and_starts_again_where_k_was_too_small(monkeypatch, rle):
    model = exportable(attention="gated")
    images = list(IMAGES)
    expected = model.predict(images, rle=rle)
    monkeypatch.setattr(inference, "waits_long", lambda features: True)
    left_out = []

    for limit in (ENOUGH, 5):

        def limited(*args, limit=limit):
            found = find_detections(*args, limit)
            left_out.append(found.left_out.tolist())
            return found

        monkeypatch.setattr(inference, "find_detections", limited)
        found = model.predict(images, rle=rle)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)
            assert one["labels"].equal(other["labels"])
            if rle:
                assert one["masks"] == other["masks"]
            else:
                assert one["masks"].equal(other["masks"])
    assert left_out[0] == [0, 0]
    assert min(left_out[1]) > 0


@torch.no_grad()
@pytest.mark.parametrize("head", OF_HEADS)
def test_every_tensor_lies_on_the_gpu(head):
    """Of tensors without data the device need not be here, but those of two devices do not meet."""
    attention = "gated" if head.startswith("solo") else None
    with FakeTensorMode():
        with torch.device("cuda"):
            model = exportable(head, attention, attention_vectors="position" if attention else "features")
            images = torch.rand(2, 3, 64, 96)
        assert inference.waits_long(model.features(images).features[1])
        assert not inference.waits_long(torch.empty(9, 1, 200, 200, device="cuda"))  # 23 million pixels
        with NoWaits():
            found = model.detect(images)
    assert {x.device.type for x in (found.scores, found.labels, found.count, found.left_out)} == {"cuda"}
    assert found.scores.shape == (2, 100)


@torch.no_grad()
@pytest.mark.parametrize("head", ["solo", "solov2"])
def test_under_autocast(head):
    model = exportable(head, attention="gated")
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = plain(model, model.features(IMAGES[:1]))
        found = model.detect(IMAGES[:1], ENOUGH)
    torch.testing.assert_close(found.scores[0, :5], expected.score[:5], atol=2e-2, rtol=0)


def test_levels_of_one_size_are_one_batch():
    model, batches = exportable(), []
    model.head.mask_tower.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    model.detect(IMAGES)
    assert batches == [4, 2, 4]


def test_arguments_of_detect():
    model = exportable()
    with pytest.raises(
        ValueError, match=r"^SOLO.detect: expected batch to be of shape .*, got \[3, 64, 96\]"
    ):
        model.detect(IMAGES[0])
    with pytest.raises(ValueError, match=r"multiples of 32, got \[2, 3, 64, 70\]"):
        model.detect(IMAGES[..., :70])
    with pytest.raises(ValueError, match="expected candidates to be an integer >= 1, got 0"):
        model.detect(IMAGES, 0)


@torch.no_grad()
def test_sizes_do_not_depend_on_scores():
    model = exportable(final_score_threshold=0.0)
    found = find_detections(model.head, model.features(IMAGES), model.settings)
    torch.nn.init.constant_(model.head.category_output.bias, OFF)
    nothing = find_detections(model.head, model.features(IMAGES), model.settings)
    assert nothing.count.tolist() == nothing.left_out.tolist() == [0, 0]
    assert not nothing.scores.any()
    for name in ("scores", "labels", "masks"):
        assert getattr(found, name).shape == getattr(nothing, name).shape
    counts = [len(cells) for _, cells in nothing.drawn.cells]
    assert counts == [2 * min(fixed_inference.CANDIDATES, 3 * side**2) for side in model.head.num_grids]
    assert len(nothing.kept([0, 0]).score) == 0


def test_of_equal_scores_the_first_comes_first():
    model = exportable(final_score_threshold=0.0)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        model.head.category_output.bias.fill_(0.0)
        for output in model.head.mask_outputs:
            output.bias.fill_(3.0)
        result = model.features(IMAGES)
        expected, drawn = plain(model, result)
        found = find_detections(model.head, result, model.settings, ENOUGH)
    kept = found.kept(found.count.tolist())
    assert kept.label.equal(expected.label)
    assert kept.score.equal(expected.score)
    assert cells_of(kept, found.drawn) == cells_of(expected, drawn)
