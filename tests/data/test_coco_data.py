from __future__ import annotations

import io
import pickle
from contextlib import redirect_stdout

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from PIL import Image
from small_coco import HEIGHT, WIDTH, CocoSet, block
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from solo_attn.data import CocoInstances, collate, eval_transforms, train_transforms


@pytest.fixture
def dataset(coco_set: CocoSet) -> CocoInstances:
    return CocoInstances(*coco_set.write())


def test_sample(dataset: CocoInstances) -> None:
    image, target = dataset[dataset.image_ids.index(7)]
    assert isinstance(image, tv_tensors.Image)
    assert (image.dtype, image.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    with Image.open(dataset.images / "7.png") as stored:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(stored))
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (HEIGHT, WIDTH)
    assert target["boxes"].tolist() == [[4, 3, 13, 11], [15, 5, 19, 11], [20, 2, 28, 18]]
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    expected = [block(4, 3, 9, 8), block(15, 5, 4, 6), block(20, 2, 8, 16)]  # polygon, string, list
    assert np.array_equal(target["masks"].numpy(), np.stack(expected))
    assert (target["image_id"].dtype, target["image_id"].item()) == (torch.int64, 7)


def test_labels_follow_ascending_category_ids(dataset: CocoInstances) -> None:
    assert dataset.category_ids == [20, 50]
    assert dataset.class_names == ["cup", "fork"]
    assert dataset.num_classes == 2
    labels = dataset[dataset.image_ids.index(7)][1]["labels"]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0, 1]


def test_crowd_is_left_to_the_evaluation(dataset: CocoInstances) -> None:
    assert len(dataset[dataset.image_ids.index(7)][1]["labels"]) == 3
    assert dataset.coco.anns[14]["iscrowd"] == 1
    assert dataset.summary.crowds == 1


def test_image_without_objects_stays(dataset: CocoInstances) -> None:
    assert sorted(dataset.image_ids) == [3, 7]
    _, target = dataset[dataset.image_ids.index(3)]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_other_colour_modes_become_rgb(coco_set: CocoSet, mode: str) -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8) * 255)
    coco_set.save(3, grey.convert("RGB").convert(mode), format="TIFF" if mode == "CMYK" else "PNG")
    dataset = CocoInstances(*coco_set.write())
    image, _ = dataset[dataset.image_ids.index(3)]
    assert np.array_equal(image.numpy(), np.broadcast_to(np.array(grey), (3, HEIGHT, WIDTH)))


def test_transparent_pixels_keep_their_colour(coco_set: CocoSet) -> None:
    coco_set.save(3, Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, 0)))
    dataset = CocoInstances(*coco_set.write())
    assert dataset[dataset.image_ids.index(3)][0][:, 0, 0].tolist() == [10, 200, 30]


def test_exif_orientation_is_not_applied(coco_set: CocoSet) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    coco_set.save(3, image, exif=exif)
    dataset = CocoInstances(*coco_set.write())
    loaded, _ = dataset[dataset.image_ids.index(3)]
    assert loaded.shape == (3, HEIGHT, WIDTH)
    assert loaded[0, 0, 0] == 255


def test_nothing_is_printed(coco_set: CocoSet) -> None:
    with redirect_stdout(io.StringIO()) as printed:
        CocoInstances(*coco_set.write())
    assert printed.getvalue() == ""


def test_transforms_get_image_and_target(coco_set: CocoSet) -> None:
    dataset = CocoInstances(*coco_set.write(), lambda image, target: (image.shape, sorted(target)))
    assert dataset[0] == ((3, HEIGHT, WIDTH), ["boxes", "image_id", "labels", "masks"])


def test_loader_with_a_worker(coco_set: CocoSet) -> None:
    dataset = CocoInstances(*coco_set.write(), eval_transforms())
    images, targets = next(iter(DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=1)))
    assert isinstance(images, list)
    assert isinstance(targets, list)
    assert [image.dtype for image in images] == [torch.float32] * 2
    assert [len(target["labels"]) for target in targets] == [0, 3]


def test_pickles_for_workers_that_are_spawned(coco_set: CocoSet) -> None:
    dataset = CocoInstances(*coco_set.write(), train_transforms(flip=0))
    image, target = pickle.loads(pickle.dumps(dataset))[1]
    expected, same = dataset[1]
    assert torch.equal(image, expected)
    assert torch.equal(target["masks"], same["masks"])
