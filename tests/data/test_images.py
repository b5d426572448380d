"""One way to read an image file, and one to find those that cannot be read before training."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from PIL import Image
from small_coco import HEIGHT, WIDTH, CocoSet

from solo_attn.data import CocoInstances, DatasetError, ImageError, read_image
from solo_attn.data import images as images_file


def cut(coco_set: CocoSet, image_id: int, kind: str = "PNG") -> None:
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = coco_set.save(image_id, Image.fromarray(noise), format=kind)
    path.write_bytes(path.read_bytes()[:-200])


def test_pixels(coco_set: CocoSet) -> None:
    image = read_image(coco_set.images / "7.png")
    assert (image.dtype, image.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert image.is_contiguous()
    with Image.open(coco_set.images / "7.png") as stored:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(stored))


def test_exif_orientation(coco_set: CocoSet) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = coco_set.save(3, image, exif=exif)
    turned, stored = read_image(path), read_image(path, exif=False)
    assert (turned.shape, stored.shape) == ((3, WIDTH, HEIGHT), (3, HEIGHT, WIDTH))
    assert turned[0, 0, HEIGHT - 1] == stored[0, 0, 0] == 255


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_refuses_what_would_turn_white(coco_set: CocoSet, mode: str) -> None:
    path = coco_set.save(3, Image.new(mode, (WIDTH, HEIGHT), 300), format="TIFF")
    with pytest.raises(ImageError, match="expected 8 bits a channel, got PIL's mode '") as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_refuses_a_truncated_image(coco_set: CocoSet, kind: str) -> None:
    cut(coco_set, 3, kind)
    with pytest.raises(ImageError, match=r"3\.png: cannot be read as an image"):
        read_image(coco_set.images / "3.png")


@pytest.mark.parametrize(
    "error", [OSError("o"), SyntaxError("s"), ValueError("v"), Image.DecompressionBombError("b")]
)
def test_whatever_pil_raises(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    images, annotations = coco_set.write()
    dataset = CocoInstances(images, annotations)

    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ImageError, match=f"cannot be read as an image: {error}"):
        read_image(images / "3.png")
    with pytest.raises(DatasetError, match=r"3\.png \(image id 3\): cannot be read as an image"):
        dataset[0]


def test_the_error_pickles_for_other_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is no image")))
    assert str(error) == "a.png: is no image"
    assert error.reason == "is no image"


def test_the_data_set_reads_by_it(coco_set: CocoSet) -> None:
    """A file that turned into another kind after the data set was checked."""
    dataset = CocoInstances(*coco_set.write())
    coco_set.save(3, Image.new("I;16", (WIDTH, HEIGHT)))
    with pytest.raises(DatasetError, match=r"3\.png \(image id 3\): expected 8 bits a channel"):
        dataset[dataset.image_ids.index(3)]


def test_check_images_names_every_bad_one(coco_set: CocoSet) -> None:
    cut(coco_set, 3)
    cut(coco_set, 7, "JPEG")
    dataset = CocoInstances(*coco_set.write())  # the headers are whole
    done: list[tuple[int, threading.Thread]] = []
    with pytest.raises(DatasetError) as caught:
        dataset.check_images(lambda count: done.append((count, threading.current_thread())))
    message = str(caught.value)
    assert message.startswith(f"{coco_set.annotations}: 2 fault(s)")
    for image_id in (3, 7):
        path = coco_set.images / f"{image_id}.png"
        assert f"\n  {path} (image id {image_id}): cannot be read as an image: " in message
    assert done == [(1, threading.current_thread())] * 2


def test_check_images_of_faultless_ones(coco_set: CocoSet) -> None:
    def not_wanted(image: object, target: object) -> None:
        raise AssertionError("transforms are no part of it")

    dataset = CocoInstances(*coco_set.write(), not_wanted)
    done: list[int] = []
    dataset.check_images(done.append)
    assert done == [1, 1]
    dataset.check_images()


def test_check_images_can_be_interrupted(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_set.content["images"] += [{**coco_set.content["images"][0], "id": k} for k in range(100, 400)]
    dataset = CocoInstances(*coco_set.write())
    read, started = images_file.read_image, []

    def counted(*arguments: object, **options: object) -> torch.Tensor:
        started.append(arguments)
        # Slower than the thread that is interrupted, as real images are.
        threading.Event().wait(0.005)
        return read(*arguments, **options)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images_file, "read_image", counted)
    monkeypatch.setattr(images_file.os, "cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        dataset.check_images(interrupt)
    assert len(started) < 150
