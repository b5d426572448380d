"""The program of fixed sizes gives what the model gives, of every head; no runtime but PyTorch yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_export import agree, exportable

from solo_attn.export import ExportedModel, FixedProgram, Found
from solo_attn.models import SOLO
from solo_attn.models.candidates import points_nms
from solo_attn.models.settings import OF_HEADS

ENOUGH = 120  # candidates of a level: 6 x 6 cells of three classes are 108
IMAGES = [torch.rand(3, *size, generator=torch.Generator().manual_seed(7)) for size in ((64, 96), (70, 64))]


def eager(model: SOLO, candidates: int = ENOUGH) -> ExportedModel:
    return ExportedModel(FixedProgram(model, candidates), model.settings, candidates, b"")


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        *((head, {}) for head in OF_HEADS),
        ("solo", {"masks": "dense"}),
        ("solo", {"attention": "gated", "coords": None}),
        ("solo", {"attention": "literal", "attention_vectors": "features"}),
        ("solo", {"attention": "rsqrt", "attention_vectors": "projection", "nms_kernel": "linear"}),
        ("solov2", {"attention": "gated"}),
        ("solov2_light", {"attention": "literal"}),
        ("decoupled", {"coords": "inclusive", "nms_pre": 9, "max_detections": 5}),
        ("solo", {"nms_pre": 30, "mask_threshold": 0.3, "final_score_threshold": 0.0}),
    ],
    ids=str,
)
def test_it_finds_what_the_model_finds(head: str, settings: dict[str, Any]) -> None:
    model = exportable(head, **settings)
    with torch.no_grad():
        agree(eager(model).predict(IMAGES), model.predict(IMAGES))
        found = eager(model).predict(IMAGES[:1], rle=True)
    assert found[0]["masks"] == model.predict(IMAGES[:1], rle=True)[0]["masks"]


@pytest.mark.parametrize("head", ["solo", "solov2"])
@pytest.mark.parametrize("limits", [{}, {"nms_pre": 20, "max_detections": 7}], ids=["all", "few"])
def test_equal_scores_have_one_order(head: str, limits: dict[str, int]) -> None:
    """By level, row, column and class, as in the model: on a constant image every cell may have one score."""
    model = exportable(head, final_score_threshold=0.0, nms_sigma=0.1, **limits)
    with torch.no_grad():
        model.head.category_output.weight.zero_()
        for name, parameter in model.head.named_parameters():
            if name.startswith("mask_output"):
                parameter.fill_(1.0 if name.endswith("bias") else 0.0)
    image = torch.full((3, 64, 96), 0.5)
    (expected,) = model.predict([image])
    (found,) = eager(model).predict([image])
    assert len(expected["scores"].unique()) < len(expected["scores"]) / 2, "most are equal"
    assert len(expected["labels"]) == limits.get("max_detections", 100)
    assert found["labels"].equal(expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    assert found["masks"].equal(expected["masks"])


def test_nothing_found_is_rows_of_zero() -> None:
    model = exportable()
    torch.nn.init.constant_(model.head.category_output.bias, -20.0)
    found = Found(*FixedProgram(model, 10)(torch.rand(2, 3, 64, 96)))
    assert found.scores.shape == (2, 50)
    assert found.masks.shape == (2, 50, 16, 24)
    assert found.count.tolist() == found.left_out.tolist() == [0, 0]
    assert not any(x.any() for x in found)
    for rle in (False, True):
        (nothing,) = eager(model).predict(IMAGES[:1], rle=rle)
        assert {name: len(x) for name, x in nothing.items()} == dict.fromkeys(nothing, 0)


def test_what_k_leaves_out_is_counted_and_told() -> None:
    model = exportable(score_threshold=0.4)
    full, few = (Found(*FixedProgram(model, k)(torch.stack(IMAGES[:1]))) for k in (ENOUGH, 4))
    assert int(full.left_out) == 0
    assert int(full.count) > int(few.count)
    batch, _ = model.transform(IMAGES[:1])
    levels = [points_nms(x.sigmoid()) for x in model.features(batch.tensors).category_logits]
    above = sum(max(0, int((scores > 0.4).sum()) - 4) for scores in levels)
    assert int(few.left_out) == above > 0
    with pytest.warns(UserWarning, match=f"at most 4 candidates on each level of an image, got {above} more"):
        eager(model, 4).predict(IMAGES[:1])


def test_tiles() -> None:
    model = exportable(tile=64, tile_overlap=32, max_detections=10)
    image = torch.rand(3, 64, 150, generator=torch.Generator().manual_seed(3))
    agree(eager(model).predict([image]), model.predict([image]))


def test_the_model_is_not_changed() -> None:
    model = exportable()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    program = FixedProgram(model, 5)
    assert all(p.requires_grad for p in model.head.parameters())
    assert not any(p.requires_grad for p in program.parameters())
    assert all(x.equal(before[name]) for name, x in model.state_dict().items())


def test_an_image_too_thin() -> None:
    with pytest.raises(ValueError, match=r"^export: expected an image to keep a pixel on each side"):
        eager(exportable()).predict([torch.rand(3, 1, 900)])
