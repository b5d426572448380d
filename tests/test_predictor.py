"""From images to results: every kind of picture gives the same, and each result is what its formats say."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_solo import confident, small

import solo_attn
from solo_attn.data import ImageError, read_image
from solo_attn.data.windows import Windows
from solo_attn.models import ModelInfo, save_model
from solo_attn.predictor import Predictor, as_windows

NAMES, CATEGORIES = ["rock", "paper", "scissors"], [7, 3, 9]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = confident(small(max_detections=12))
    path = tmp_path_factory.mktemp("model") / "solo.safetensors"
    save_model(model, ModelInfo(model.config, NAMES, CATEGORIES, {}), path)
    return path


@pytest.fixture(scope="module")
def predictor(weights):
    return solo_attn.load(weights, "cpu")


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def same(a, b):
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.scores, b.scores)
    assert a.runs == b.runs


def test_a_result_is_the_models(predictor, pixels):
    found = predictor(pixels)
    (expected,) = predictor.model([pixels.float() / 255])
    assert len(found) == len(expected["scores"]) == 12
    for key in ("boxes", "labels", "scores", "masks"):
        assert torch.equal(getattr(found, key), expected[key])
    assert found.names == [NAMES[label] for label in expected["labels"].tolist()]
    assert found.masks.dtype == torch.bool
    assert all(coco_mask.decode(rle).shape == (64, 96) for rle in found.runs)


def test_every_kind_of_picture(predictor, pixels, tmp_path):
    array = pixels.permute(1, 2, 0).numpy()
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    expected = predictor(pixels)
    kinds = [file, str(file), Image.fromarray(array), array, array[:, :, :].astype(np.float32) / 255]
    for picture in [*kinds, pixels.float() / 255, pixels.double() / 255]:
        same(predictor(picture), expected)
    for batch_size in (1, 2, 5):
        results = predictor([*kinds, pixels], batch_size)
        assert len(results) == len(kinds) + 1
        for result in results:
            assert torch.equal(result.labels, expected.labels)
            torch.testing.assert_close(result.scores, expected.scores)
    assert predictor([]) == []


@pytest.mark.parametrize(
    "buffer", [np.zeros((64, 96, 3), np.uint8), torch.zeros(3, 64, 96, dtype=torch.uint8)]
)
def test_a_buffer_may_be_filled_again(predictor, buffer):
    """As a decoder of frames does, before the picture is predicted or drawn."""
    pictures = []
    for level in (0, 255):
        buffer[:] = level
        pictures.append(as_windows(buffer))
    found = predictor(buffer)
    buffer[:] = 7
    assert [int(picture.whole().max()) for picture in pictures] == [0, 255]
    assert int(found.image.min()) == 255


def test_grey_pictures_are_grey_ones_in_colour():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert torch.equal(as_windows(grey).whole(), as_windows(np.stack([grey] * 3, axis=2)).whole())
    assert torch.equal(as_windows(Image.fromarray(grey)).whole(), as_windows(grey).whole())


def test_a_file_and_a_pil_image_are_turned_by_exif(tmp_path):
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert as_windows(tmp_path / "a.png").whole().shape == (3, 4, 3)
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(as_windows(opened).whole(), as_windows(tmp_path / "a.png").whole())


def test_above_and_formats(predictor, pixels, tmp_path):
    found = predictor(pixels)
    score = float(found.scores[4])
    chosen = found.above(score)
    assert len(chosen) == int((found.scores >= score).sum()) >= 5
    assert torch.equal(chosen.masks, found.masks[: len(chosen)])
    results = found.to_coco(17)
    assert [r["category_id"] for r in results] == [CATEGORIES[label] for label in found.labels.tolist()]
    assert {r["image_id"] for r in results} == {17}
    assert np.array_equal(coco_mask.decode(results[2]["segmentation"]), found.masks[2].numpy())
    features = found.to_geojson(score)["features"]
    assert [f["properties"]["label"] for f in features] == chosen.names
    found.save(tmp_path / "found.png", score)
    with Image.open(tmp_path / "found.png") as drawn:
        assert drawn.size == (96, 64)
        assert np.array_equal(np.array(drawn), found.draw(score).permute(1, 2, 0).numpy())
    found.save(tmp_path / "found.jpg")
    with Image.open(tmp_path / "found.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_nothing_found(weights, pixels):
    found = solo_attn.load(weights, "cpu", score_threshold=1.0)(pixels)
    assert len(found) == 0
    assert found.masks.shape == (0, 64, 96)
    assert found.to_coco(1) == []
    assert torch.equal(found.draw(), pixels)
    assert repr(found) == "Result(96 x 64 pixels: nothing)"


def test_settings_of_inference_may_be_changed(weights, pixels):
    assert len(solo_attn.load(weights, "cpu", max_detections=3)(pixels)) == 3
    with pytest.raises(ValueError, match=r"load: expected settings to be among .*, got num_convs"):
        solo_attn.load(weights, "cpu", num_convs=2)
    with pytest.raises(ValueError, match="load: expected max_detections to be an integer >= 1, got 0"):
        solo_attn.load(weights, "cpu", max_detections=0)


def test_deep_pictures_are_as_in_training(predictor, pixels, tmp_path):
    """What the checkpoint's percentiles make of a file, an array and a tensor is what a data set gives."""
    model = confident(small(max_detections=12, percentiles=(2, 98)))
    path = tmp_path / "deep.safetensors"
    save_model(model, ModelInfo(model.config, NAMES, CATEGORIES, {}), path)
    deep = solo_attn.load(path, "cpu")
    assert deep.model.settings.percentiles == (2, 98)
    values = pixels.permute(1, 2, 0).numpy().astype(np.uint16) * 150 + 9
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib")
    seen = read_image(tmp_path / "a.tif", percentiles=(2, 98))
    for picture in (tmp_path / "a.tif", values, values.astype(np.float64)):
        found = deep(picture)
        assert torch.equal(found.image, seen)
        assert found.runs == predictor(seen).runs
    with pytest.raises(ImageError, match="expected 8 bits a channel"):
        predictor(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="expected percentiles to be low < high"):
        small(percentiles=(98, 2))


def test_a_tiff_is_predicted_by_windows(weights, pixels, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels.permute(1, 2, 0).numpy(), tile=(16, 16), photometric="rgb")
    predictor = solo_attn.load(weights, "cpu", tile=32, tile_overlap=8)
    expected = predictor(pixels)
    one_a_tile = solo_attn.load(weights, "cpu", tile=32, tile_overlap=0, max_detections=1)(pixels)
    assert 1 < len(one_a_tile) <= 6, "max_detections is a tile's"
    read = []
    window = Windows.window
    monkeypatch.setattr(Windows, "window", lambda self, *box: read.append(box) or window(self, *box))
    found = predictor(tmp_path / "a.tif")
    assert all(b - t <= 32 and r - left <= 32 for t, left, b, r in read)
    same(found, expected)
    assert found.to_geojson() == expected.to_geojson()


def test_what_is_no_picture(predictor, tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png"):
        predictor(tmp_path / "missing.png")
    for picture, message in [
        (3, "expected a file, a PIL image, an array, a tensor or a list of these, got int"),
        (np.zeros((4, 4, 2), np.uint8), r"an array of shape \[H, W, 3\] or \[H, W\], got \[4, 4, 2\]"),
        (torch.zeros(4, 4), r"a tensor of shape \[3, H, W\], got \[4, 4\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"of dtype uint8 or a float dtype, got int64"),
        (torch.full((3, 4, 4), 200.0), r"floats in 0\.\.1, got 200\.\.200"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            predictor(picture)


def test_the_file_says_what_it_is(predictor):
    assert repr(predictor) == "Predictor(resnet18, 3 classes: rock, paper, scissors)"
    assert isinstance(predictor, Predictor)
