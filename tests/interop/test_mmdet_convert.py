"""Converted checkpoints against mmdetection's own detectors: predictions, losses, gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.loading import need

need("mmdet")

from mmdet_models import (  # noqa: E402
    CLASSES,
    SIZE,
    SMALL,
    agree,
    compare_gradients,
    config,
    detector,
    objects,
    ours_of,
    photo,
    sample,
    save,
    theirs,
    training_losses,
)

from solo_attn.interop.mmdet import convert_checkpoint, mask_matrix_nms  # noqa: E402
from solo_attn.models import load_model  # noqa: E402

BGR = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """mmdetection's detector, ours, and the file it came from."""
    settings = config(18, **SMALL)
    model = detector(settings)
    path = save(model, settings, tmp_path_factory.mktemp("mmdet") / "epoch_3.pth")
    out = path.with_name("converted.ckpt")
    convert_checkpoint(path, out)
    return model, load_model(out)[0], path


def test_the_whole_prediction(pair) -> None:
    model, ours, _ = pair
    for seed in (0, 1):
        image = photo(seed)
        agree(*ours_of(ours, image), *theirs(model, image))


def test_single_precision(pair) -> None:
    model, ours, _ = pair
    image = photo(0)
    with torch.no_grad():
        data = {"inputs": [image.flip(0)], "data_samples": [sample(SIZE, SIZE)]}
        expected = model.test_step(data)[0].pred_instances
    agree(ours([image.float() / 255])[0], expected, score=1e-3)  # a pixel at the threshold may fall otherwise


def test_two_images_of_other_sizes_in_one_batch(pair) -> None:
    model, ours, _ = pair
    images = [photo(2, (150, 180)), photo(3, (150, 210))]
    for found, expected in zip(ours_of(ours, *images), theirs(model, *images), strict=True):
        agree(found, expected)


def test_masks_at_the_size_of_an_image_that_was_resized(pair) -> None:
    model, ours, _ = pair
    model, ours = copy.deepcopy(model).double(), copy.deepcopy(ours).double()
    image = photo(4, (300, 410)).double() / 255
    batch, _ = ours.transform([image])  # theirs resizes bytes with OpenCV: other pixels to begin with
    assert batch.image_sizes[0] != (300, 410)
    with torch.no_grad():
        expected = model.predict(batch.tensors, [sample(batch.image_sizes[0], (300, 410))])
    found = ours([image])[0]
    assert found["masks"].shape[1:] == (300, 410)
    agree(found, expected[0].pred_instances)


@pytest.mark.parametrize(
    ("depth", "settings"),
    [
        pytest.param(50, {"fpn": 256, "classes": 80}, id="resnet50 of the published size"),
        pytest.param(101, {**SMALL, "classes": 1}, id="resnet101, one class"),
        pytest.param(34, {**SMALL, "classes": 3}, id="resnet34"),
    ],
)
def test_other_backbones_and_numbers_of_classes(depth, settings, tmp_path) -> None:
    settings = config(depth, **settings)
    model = detector(settings, seed=depth)
    done = convert_checkpoint(save(model, settings, tmp_path / "a.pth"), tmp_path / "a.safetensors")
    ours, info = load_model(tmp_path / "a.safetensors")
    assert info.model["backbone"] == f"resnet{depth}"
    assert len(info.class_names) == settings.model.mask_head.num_classes
    assert any("numbered" in note for note in done.notes)  # the file names five classes
    image = photo(5)
    agree(*ours_of(ours, image), *theirs(model, image))


@pytest.mark.parametrize(
    "preprocessor",
    [
        BGR,
        {**BGR, "rgb_to_bgr": True},
        {"mean": None, "std": None, "bgr_to_rgb": True},
    ],
    ids=["blue first", "turned round by the other name", "no normalisation"],
)
def test_channels_and_normalisation(preprocessor, tmp_path) -> None:
    settings = config(18, **SMALL)
    settings.model.data_preprocessor.update(preprocessor)
    model = detector(settings)
    ours = convert_checkpoint(save(model, settings, tmp_path / "a.pth")).model
    image = photo(6)
    agree(*ours_of(ours, image), *theirs(model, image))


@pytest.mark.parametrize(("nms_pre", "least"), [(60, 30), (-1, 101)])
def test_the_settings_of_the_prediction(nms_pre, least, tmp_path) -> None:
    settings = config(18, **SMALL)
    settings.model.test_cfg.update(
        nms_pre=nms_pre,
        score_thr=0.15,
        mask_thr=0.45,
        filter_thr=-1,
        kernel="linear",
        max_per_img=-1,
    )
    model = detector(settings)
    done = convert_checkpoint(save(model, settings, tmp_path / "a.pth"))
    image = photo(0)
    agree(*ours_of(done.model, image), *theirs(model, image), least=least)


def test_their_model_with_our_matrix_nms(pair, monkeypatch) -> None:
    model, _, _ = pair
    image = photo(0)
    (before,) = theirs(model, image)
    head = need("mmdet.models.dense_heads.solo_head")
    calls = []

    def counted(*arguments: Any, **options: Any) -> Any:
        found = mask_matrix_nms(*arguments, **options)
        calls.append((arguments[2], found))
        return found

    monkeypatch.setattr(head, "mask_matrix_nms", counted)
    (after,) = theirs(model, image)
    ((scores, (decayed, _, _, index)),) = calls
    assert int((decayed < 0.9 * scores[index]).sum()) > 10, "masks that suppress each other"
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=1e-6)
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.masks, before.masks)


# Names of the same parameter: the bottom of what mmdetection trains, the neck, and each part of the head.
PARAMETERS = {
    "backbone.layer2.0.conv1.weight": "backbone.body.layer2.0.conv1.weight",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
    "neck.fpn_convs.3.conv.bias": "backbone.fpn.layer_blocks.3.0.bias",
    "mask_head.mask_convs.0.conv.weight": "head.mask_tower.0.weight",
    "mask_head.cls_convs.1.gn.weight": "head.category_tower.4.weight",
    "mask_head.conv_mask_list.1.weight": "head.mask_outputs.1.weight",
    "mask_head.conv_cls.bias": "head.category_output.bias",
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients(pair, seed, dtype) -> None:
    # In copies, and the gradients in float64: in float32 a rounding turns a ReLU on or off now and then, and
    # what lies below it gets another gradient.
    model, ours = (copy.deepcopy(x).to(dtype).train() for x in pair[:2])
    image, target = photo(seed), objects(seed)
    expected = training_losses(model, image, target, dtype)
    found = ours([image.to(dtype) / 255], [target])
    assert float(expected["loss_mask"].detach()) > 0.5, "objects that some cell is responsible for"
    for name, their_name in (("loss_mask", "loss_mask"), ("loss_category", "loss_cls")):
        torch.testing.assert_close(found[name].to(dtype), expected[their_name], rtol=0, atol=1e-4)
    if dtype == torch.float64:
        sum(expected.values()).backward()
        sum(found.values()).backward()
        compare_gradients(model, ours, PARAMETERS)


def test_what_the_file_says_is_kept(pair) -> None:
    _, ours, path = pair
    done = convert_checkpoint(path)
    assert done.notes == []
    assert done.info.class_names == list(CLASSES)
    assert done.info.category_ids == [1, 2, 3, 4, 5]
    assert done.info.model["coords"] == "inclusive"
    assert done.info.model["attention"] is None
    assert (done.info.model["min_size"], done.info.model["max_size"]) == (min(SIZE), max(SIZE))
    assert not ours.training


def test_coco_categories_get_coco_ids(tmp_path) -> None:
    coco = need("mmdet.datasets").CocoDataset.METAINFO["classes"]
    settings = config(18, **SMALL, classes=80)
    path = save(detector(settings), settings, tmp_path / "a.pth", meta={"dataset_meta": {"CLASSES": coco}})
    info = convert_checkpoint(path).info
    assert info.class_names == list(coco)
    assert (info.category_ids[0], info.category_ids[11], info.category_ids[-1]) == (1, 13, 90)
    assert len(set(info.category_ids)) == 80
