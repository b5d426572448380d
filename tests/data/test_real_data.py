"""Microscopy of many sizes and crowds of one class; photographs of all COCO classes with crowd regions."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from small_coco import real_data
from torchvision.ops import masks_to_boxes

from solo_attn.data import CocoInstances, check_dataset, collate, eval_transforms, train_transforms

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("name", "folder", "images"),
    [
        ("instances_paper_train450", "images_train", 450),
        ("instances_paper_val50", "images_train", 50),
        ("instances_test", "images_test", 65),
    ],
)
def test_nuclei(name: str, folder: str, images: int) -> None:
    data = real_data("dsb2018")
    path = data / f"{name}.json"
    summary = check_dataset(data / folder, path)
    nuclei = len(json.loads(path.read_text())["annotations"])  # the images are drawn by whoever made the file
    assert nuclei > 10 * images
    assert (summary.images, summary.annotations, summary.categories) == (images, nuclei, 1)


def test_nuclei_of_all_sizes() -> None:
    data = real_data("dsb2018")
    dataset = CocoInstances(data / "images_train", data / "instances_paper_val50.json", eval_transforms())
    samples = [dataset[k] for k in range(0, len(dataset), 5)]
    images, targets = collate(samples)
    assert len({image.shape for image in images}) > 1
    for image, target in zip(images, targets, strict=True):
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1
        assert target["masks"].shape[1:] == image.shape[1:]
        assert len(target["labels"]) > 0
        expected = masks_to_boxes(target["masks"])
        expected[:, 2:] += 1
        assert torch.equal(target["boxes"], expected)


def test_augmented_nuclei() -> None:
    data = real_data("dsb2018")
    torch.manual_seed(0)
    vary = train_transforms(scale_jitter=(0.5, 1.5), crop_size=256, colour=0.2, vertical_flip=0.5)
    dataset = CocoInstances(data / "images_train", data / "instances_train_crowded100.json", vary)
    for k in range(0, 100, 20):
        image, target = dataset[k]
        assert image.shape == (3, 256, 256)
        assert (target["masks"].amax((1, 2)) > 0).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert target["boxes"].max() <= 256


def test_photographs_of_all_classes() -> None:
    data = real_data("coco_open")
    path = data / "instances_train.json"
    dataset = CocoInstances(data / "images", path)
    entries = json.loads(path.read_text())["annotations"]
    assert (len(dataset), dataset.num_classes) == (80, 80)
    assert (dataset.class_names[0], dataset.category_ids[-1]) == ("person", 90)  # ids have gaps
    assert dataset.summary.crowds == sum(e["iscrowd"] for e in entries) == 11
    for crowd in [e for e in entries if e["iscrowd"]][:4]:
        _, target = dataset[dataset.image_ids.index(crowd["image_id"])]
        own = [e for e in entries if e["image_id"] == crowd["image_id"] and not e["iscrowd"]]
        assert [dataset.category_ids[k] for k in target["labels"]] == [e["category_id"] for e in own]
        areas = target["masks"].flatten(1).sum(1).numpy()
        assert np.allclose(areas, [e["area"] for e in own], rtol=0.2, atol=30)  # polygons' own areas
        box = torch.tensor([e["bbox"] for e in own])
        assert torch.allclose(target["boxes"][:, 2:] - target["boxes"][:, :2], box[:, 2:], atol=1e-3)


def test_photographs_decode() -> None:
    data = real_data("coco_open")
    assert check_dataset(data / "images", data / "instances_val.json", decode=True).images == 24
