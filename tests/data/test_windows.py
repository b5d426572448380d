"""Pictures by windows: the same pixels as of the whole file, and of deep ones the same 8 bits everywhere."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from solo_attn.data import CocoInstances, DatasetError, ImageError, read_image
from solo_attn.data.images import file_fault, open_image
from solo_attn.data.windows import Windows

HEIGHT, WIDTH = 70, 90
PERCENTILES = (1.0, 99.0)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LAYOUTS = {
    "mapped": {},
    "tiles": {"tile": (32, 32)},
    "deflate": {"tile": (32, 32), "compression": "zlib", "predictor": True},
    "lzw strips": {"rowsperstrip": 7, "compression": "lzw"},
    "planes": {"planarconfig": "separate", "tile": (16, 32), "photometric": "rgb"},
    "big": {"bigtiff": True, "byteorder": ">"},
}


def written(path, layout, array=RGB):
    options = dict(LAYOUTS[layout])
    if options.get("planarconfig"):
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    tifffile.imwrite(path, array, **{"photometric": "rgb", **options})
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_are_parts_of_the_picture(tmp_path, layout):
    path = written(tmp_path / "a.tif", layout)
    found = open_image(path)
    assert found.size == (HEIGHT, WIDTH)
    assert type(found.array) is not np.ndarray, "not read as a whole"
    expected = torch.from_numpy(RGB).permute(2, 0, 1)
    for top, left, bottom, right in [(0, 0, 70, 90), (3, 5, 40, 37), (31, 31, 33, 33), (69, 89, 70, 90)]:
        assert torch.equal(found.window(top, left, bottom, right), expected[:, top:bottom, left:right])
    assert torch.equal(found.whole(), read_image(path))


def test_of_a_pyramid_the_full_size_is_read(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, subifds=1, tile=(32, 32), photometric="rgb")
        file.write(RGB[::2, ::2], subfiletype=1, tile=(32, 32), photometric="rgb")
    assert torch.equal(open_image(path).whole(), torch.from_numpy(RGB).permute(2, 0, 1))


def test_other_layouts_are_left_to_pil(tmp_path):
    Image.fromarray(RGB).convert("P").save(tmp_path / "palette.tif")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for name in ("palette.tif", "cmyk.tif", "a.png"):
        found = open_image(tmp_path / name)
        assert torch.equal(found.window(3, 4, 50, 60), read_image(tmp_path / name)[:, 3:50, 4:60])


DEEP = {
    "uint16": (RGB.astype(np.uint16) * 200 + 17, {}),
    "grey16": (RGB[..., 0].astype(np.uint16) * 100, {"photometric": "minisblack"}),
    "float32": (RGB.astype(np.float32) / 1000 - 0.1, {"tile": (32, 32), "compression": "zlib"}),
    "float64": (RGB[..., 0].astype(np.float64) * 1e6, {"photometric": "minisblack"}),
    "int32": (RGB[..., 0].astype(np.int32) * -1000, {"photometric": "minisblack"}),
}


def by_hand(values):
    """Each channel linearly from its percentiles to 0..255."""
    channels = values.reshape(HEIGHT, WIDTH, -1).astype(np.float64)
    low, high = (np.percentile(channels, p, axis=(0, 1)) for p in PERCENTILES)
    found = np.rint(np.clip((channels - low) / (high - low), 0, 1) * 255)
    return torch.from_numpy(np.broadcast_to(found, (HEIGHT, WIDTH, 3)).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("kind", DEEP)
def test_deep_tiffs_are_scaled_by_percentiles(tmp_path, kind):
    values, options = DEEP[kind]
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, values, **{"photometric": "rgb", **options})
    with pytest.raises(ImageError, match=r"(expected 8 bits a channel|cannot be read as an image)"):
        read_image(path)
    found = read_image(path, percentiles=PERCENTILES)
    assert found.dtype == torch.uint8
    assert (found.double() - by_hand(values)).abs().max() <= 1, "float32 rounds some halves otherwise"
    window = open_image(path, percentiles=PERCENTILES).window(10, 20, 60, 50)
    assert torch.equal(window, found[:, 10:60, 20:50]), "limits are the picture's, not the window's"
    assert file_fault(path, {"height": HEIGHT, "width": WIDTH}, False, PERCENTILES) is None
    told = f"expected {WIDTH + 1} x {HEIGHT} pixels as annotated, got {WIDTH} x {HEIGHT}"
    assert file_fault(path, {"height": HEIGHT, "width": WIDTH + 1}, False, PERCENTILES) == told


def test_deep_pngs_too(tmp_path):
    values = RGB[..., 0].astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = read_image(tmp_path / "deep.png", percentiles=PERCENTILES)
    assert (found.double() - by_hand(values)).abs().max() <= 1
    eight = read_image_of(RGB, tmp_path)
    assert (eight.double() - by_hand(RGB)).abs().max() <= 1, "the setting is for every image alike"


def read_image_of(array, folder):
    Image.fromarray(array).save(folder / "eight.png")
    return read_image(folder / "eight.png", percentiles=PERCENTILES)


def test_what_is_no_number_counts_for_nothing():
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values[0] = np.nan
    values[1, :9] = np.inf
    found = Windows(values, "YX").scaled((0, 100)).whole()
    assert found[:, 0].max() == 0
    assert found[:, 1, :9].min() == 255
    assert found[0, 2:].diff(dim=1).min() >= 0
    for constant in (7.0, np.nan):
        flat = Windows(np.full((4, 4), constant), "YX").scaled((1, 99)).whole()
        assert flat.unique().tolist() == [0]


def test_percentiles_of_a_large_picture_look_at_a_part(monkeypatch):
    values = np.arange(300 * 300, dtype=np.uint16).reshape(300, 300)
    whole = Windows(values, "YX").scaled(PERCENTILES)
    monkeypatch.setattr("solo_attn.data.windows.LOOKED_AT", 400)
    part = Windows(values, "YX").scaled(PERCENTILES)
    assert np.allclose(whole.limits, part.limits, rtol=0.06, atol=2000)
    assert not np.array_equal(whole.limits, part.limits)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((5, 9, 9), np.uint16), {"photometric": "minisblack"}, "the axes"),
        (np.zeros((9, 9, 5), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}, "channels"),
        (np.zeros((9, 9), np.complex64), {}, "integers or floats"),
    ],
)
def test_what_is_no_picture_is_said(tmp_path, array, options, message):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ImageError, match=rf"a\.tif: cannot be read as an image: .*{message}"):
        read_image(tmp_path / "a.tif", percentiles=PERCENTILES)


def test_four_bits_a_channel_are_the_same_by_windows(tmp_path):
    """Written by hand: one row of 15, 0, 0, 15, which is white and black."""
    tags = [(256, 4), (257, 1), (258, 4), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(file + b"\xf0\x0f")
    whole = read_image(tmp_path / "a.tif")
    assert whole[0].tolist() == [[255, 0, 0, 255]]
    assert torch.equal(open_image(tmp_path / "a.tif").whole(), whole)


def test_a_broken_tiff_is_an_error(tmp_path):
    path = written(tmp_path / "a.tif", "deflate", RGB.astype(np.uint16))
    path.write_bytes(path.read_bytes()[:100])
    for read in (read_image, open_image):
        with pytest.raises(ImageError, match=r"a\.tif: cannot be read as an image"):
            read(path, percentiles=PERCENTILES)


def test_data_sets_read_deep_images(coco_set):
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(coco_set.images / "3.png")
    with pytest.raises(DatasetError, match=r"expected 8 bits a channel.*; model\.percentiles scales it"):
        CocoInstances(*coco_set.write())
    dataset = CocoInstances(*coco_set.write(), percentiles=PERCENTILES)
    dataset.check_images()
    image, _ = dataset[dataset.image_ids.index(3)]
    assert image.dtype == torch.uint8
