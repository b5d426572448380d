"""One way to read an image file, and one to find those that cannot be read before training."""

from __future__ import annotations

import pickle
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from PIL import Image
from small_coco import HEIGHT, WIDTH, CocoSet

from solo_attn.data import CocoInstances, DatasetError, ImageError, check_dataset, read_image
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


def deep_png(kind: int, channels: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)
    rows = zlib.compress(bytes(HEIGHT * (1 + 2 * channels * WIDTH)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_tiff(planes: int) -> bytes:
    pixels, start = 6 * HEIGHT * WIDTH, 38
    strips = [start + k * pixels // planes for k in range(planes)]
    lengths = [pixels // planes] * planes
    # The strips' places and lengths: in the entry itself if it is one, else where the entry says.
    places, sizes = (14, 26) if planes > 1 else (strips[0], lengths[0])
    entries = [
        (256, 3, 1, WIDTH), (257, 3, 1, HEIGHT), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, planes, places), (277, 3, 1, 3), (278, 3, 1, HEIGHT), (279, 4, planes, sizes),
        (284, 3, 1, 2 if planes > 1 else 1),
    ]  # fmt: skip
    listed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I3H", start + pixels, 16, 16, 16)
    head += struct.pack(f"<{2 * planes}I", *strips, *lengths)
    return head.ljust(start, b"\0") + bytes(pixels) + struct.pack("<H", len(entries)) + listed + bytes(4)


def deep_sgi() -> bytes:
    return struct.pack(">hBBHHHH", 474, 0, 2, 3, WIDTH, HEIGHT, 3).ljust(512, b"\0") + bytes(
        6 * HEIGHT * WIDTH
    )


DEEP = {
    "PNG": (deep_png(2, 3), 16),
    "PNG with alpha": (deep_png(6, 4), 16),
    "grey PNG with alpha": (deep_png(4, 2), 16),
    "TIFF": (deep_tiff(1), 16),
    "TIFF in planes": (deep_tiff(3), 16),
    "SGI": (deep_sgi(), 16),
    "PPM": (f"P6 {WIDTH} {HEIGHT} 65535\n".encode() + bytes(6 * HEIGHT * WIDTH), 16),
    "PPM of 10 bits": (f"P6 {WIDTH} {HEIGHT} 1023\n".encode() + bytes(6 * HEIGHT * WIDTH), 10),
    "PPM in words": (f"P3 {WIDTH} {HEIGHT} 300 ".encode() + b"7 " * (3 * HEIGHT * WIDTH), 9),
}


@pytest.mark.parametrize("kind", DEEP)
def test_refuses_colours_that_would_lose_bits(coco_set: CocoSet, kind: str) -> None:
    """PIL opens them as RGB and drops the lower bits without a word."""
    content, bits = DEEP[kind]
    path = coco_set.images / "3.png"
    path.write_bytes(content)
    with Image.open(path) as image:
        image.load()
        assert (image.mode[0] in "RL", image.size) == (True, (WIDTH, HEIGHT))
    with pytest.raises(ImageError, match=f"expected 8 bits a channel, got {bits}"):
        read_image(path)
    for decode in (False, True):
        with pytest.raises(DatasetError, match=rf"\(image id 3\): expected 8 bits a channel, got {bits}"):
            check_dataset(*coco_set.write(), decode=decode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("JPEG", "L"),
        ("PNG", "LA"),
        ("PPM", "RGB"),
        ("SGI", "RGB"),
        ("TIFF", "CMYK"),
        ("WEBP", "RGB"),
    ],
)
def test_eight_bits_are_read_from_any_format(coco_set: CocoSet, kind: str, mode: str) -> None:
    path = coco_set.save(3, Image.new(mode, (WIDTH, HEIGHT)), format=kind)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)


def test_a_bitmap_in_words_is_read(coco_set: CocoSet) -> None:
    path = coco_set.images / "3.png"
    path.write_bytes(f"P1 {WIDTH} {HEIGHT} ".encode() + b"0 " * (HEIGHT * WIDTH))
    assert read_image(path).unique().tolist() == [255]


def test_five_bits_a_channel_are_no_sixteen(coco_set: CocoSet) -> None:
    """A BMP of 16 bits a pixel, whose layout PIL calls "BGR;16"."""
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    size = 2 * WIDTH * HEIGHT
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 16, 3, size, 0, 0, 0, 0)
    path = coco_set.images / "3.png"
    path.write_bytes(
        b"BM" + struct.pack("<IHHI", 66 + size, 0, 0, 66) + header + masks + b"\x00\xf8" * (size // 2)
    )
    assert read_image(path)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_refuses_a_truncated_image(coco_set: CocoSet, kind: str) -> None:
    cut(coco_set, 3, kind)
    with pytest.raises(ImageError, match=r"3\.png: cannot be read as an image"):
        read_image(coco_set.images / "3.png")


@pytest.mark.parametrize(
    "error",
    [OSError("o"), SyntaxError("s"), TypeError("t"), MemoryError("m"), Image.DecompressionBombError("b")],
)
def test_whatever_pil_raises(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    images, annotations = coco_set.write()
    dataset = CocoInstances(images, annotations)

    def broken(*arguments: object, **options: object) -> None:
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
    """A file that turned into another kind after the dataset was checked."""
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


def test_a_folder_is_searched_by_endings(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "below/c.tif", "folder.png/d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in images_file.image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    below = images_file.image_files(tmp_path, below=True)
    assert [path.name for path in below] == ["a.jpg", "b.PNG", "c.tif", "d.gif"]
    assert images_file.image_files(tmp_path / "none") == []
