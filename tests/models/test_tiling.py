"""Pictures by tiles: the same objects, whatever the tiles cut."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from small_solo import confident, small

from solo_attn._utils.run_lengths import decode_window, encode_window
from solo_attn.models import build_solo
from solo_attn.models.tiling import assemble, cropping, find_pieces, tile_starts

SIZE = (150, 210)


def disks(places, size=SIZE):
    """Bool [N, H, W] of (row, column, radius)."""
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])[None, :]
    return torch.stack([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column, radius in places])


def seeing(masks, labels):
    """A model that sees each object's part in a tile; the picture's channels hold the pixels' places."""
    sizes = []

    def predict(tiles):
        found = []
        for tile in tiles:
            sizes.append(tuple(tile.shape[1:]))
            inside = tile[2] > 0
            rows, columns = tile[0].long(), tile[1].long()
            parts = masks[:, rows, columns] & inside
            there = parts.flatten(1).any(1)
            scores = parts.flatten(1).sum(1) / masks.flatten(1).sum(1)  # a part is less sure than the whole
            found.append({"masks": parts[there], "labels": labels[there], "scores": scores[there]})
        return found

    y, x = torch.meshgrid(*(torch.arange(n).float() for n in masks.shape[1:]), indexing="ij")
    return predict, torch.stack([y, x, torch.ones_like(x)]), sizes


def found_in(masks, tile, overlap, labels=None):
    labels = torch.zeros(len(masks), dtype=torch.int64) if labels is None else labels
    predict, image, sizes = seeing(masks, labels)
    pieces = find_pieces(predict, tuple(image.shape[1:]), cropping(image), tile, overlap, (0.0, 0.0, 0.0))
    assert set(sizes) == {(tile, tile)}
    return assemble(pieces, tuple(masks.shape[1:]), rle=False)


def same_masks(found, masks):
    assert len(found) == len(masks)
    left = [mask.numpy().tobytes() for mask in masks]
    for mask in found:
        left.remove(mask.numpy().tobytes())


@given(st.integers(1, 500), st.integers(2, 100), st.data())
def test_tiles_cover_a_side(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


@pytest.mark.parametrize(("tile", "overlap"), [(64, 24), (80, 40), (256, 64), (150, 30)])
def test_each_object_is_found_once_and_whole(tile, overlap):
    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(10, 150, 26), np.arange(10, 210, 26), indexing="ij")
    places = [(r, c, generator.integers(3, 12)) for r, c in zip(rows.flat, columns.flat, strict=True)]
    masks = disks(places)
    same_masks(found_in(masks, tile, overlap)["masks"], masks)


def test_an_object_larger_than_a_tile_is_put_together():
    masks = disks([(75, 105, 70), (12, 12, 6)])
    found = found_in(masks, 64, 24)
    same_masks(found["masks"], masks)
    assert sorted(found["boxes"].tolist()) == [[6.0, 6.0, 19.0, 19.0], [35.0, 5.0, 176.0, 146.0]]


def test_a_mask_over_several_objects_takes_none_of_them():
    """Small objects at a larger mask's place stay: they were one object by what lies in the overlap."""
    small = [(20, column, 5) for column in range(12, 200, 14)]
    masks = disks([*small, (20, 70, 30), (60, 44, 6), (60, 58, 7)])  # the last two touch
    found = found_in(masks, 64, 40)
    assert {mask.numpy().tobytes() for mask in masks} <= {mask.numpy().tobytes() for mask in found["masks"]}


def test_objects_of_two_classes_in_one_place_stay_two():
    masks = disks([(75, 60, 11), (75, 60, 11)])
    found = found_in(masks, 64, 24, torch.tensor([0, 1]))
    assert sorted(found["labels"].tolist()) == [0, 1]
    same_masks(found["masks"], masks)


def test_scores_fall():
    masks = disks([(20, 20, 9), (60, 100, 8), (100, 150, 30)])
    scores = found_in(masks, 64, 24)["scores"]
    assert len(scores) == 3
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_run_lengths_are_those_of_the_whole_picture(height, width, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    mask = np.array(bits).reshape(h, w)
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top : top + h, left : left + w] = mask
    expected = coco_mask.encode(whole)
    found = encode_window(mask, top, left, (height, width))
    assert (found["counts"], list(found["size"])) == (expected["counts"], list(expected["size"]))
    cut, y, x = decode_window(expected)
    again = np.zeros_like(whole)
    again[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    assert np.array_equal(again, whole)
    assert cut.size == 0 or (cut.any(0)[[0, -1]].all() and cut.any(1)[[0, -1]].all())


@pytest.mark.parametrize("tile", [None, 64])
def test_run_lengths_of_a_model_are_its_masks(tile):
    model = confident(small(tile=tile, tile_overlap=20))
    images = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    for pixels, runs in zip(model(images), model.predict(images, rle=True), strict=True):
        assert len(runs["masks"]) == len(pixels["scores"]) > 0
        for key in ("boxes", "labels", "scores"):
            assert torch.equal(pixels[key], runs[key])
        for mask, rle in zip(pixels["masks"], runs["masks"], strict=True):
            assert torch.equal(mask, torch.from_numpy(coco_mask.decode(rle)).bool())


def test_a_picture_of_one_tile_is_an_image():
    model = confident(small(min_size=64, max_size=64))
    image = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))]
    whole = model(image)[0]
    model.settings.tile = 64
    tiled = model(image)[0]
    solid = whole["masks"].flatten(1).any(1)
    assert solid.any()
    for key in whole:
        assert torch.equal(whole[key][solid], tiled[key])


def test_no_object():
    model = small(tile=64, tile_overlap=0, score_threshold=1.0).eval()
    (found,) = model([torch.rand(3, 100, 130)])
    assert found["masks"].shape == (0, 100, 130)
    assert found["boxes"].shape == (0, 4)
    (runs,) = model.predict([torch.rand(3, 100, 130)], rle=True)
    assert runs["masks"] == []


def test_errors():
    with pytest.raises(ValueError, match="expected tile_overlap to be an integer < tile, got 64 and tile 64"):
        build_solo(1, tile=64)
    with pytest.raises(RuntimeError, match=r"SOLO\.predict: expected the model in evaluation mode"):
        small().train().predict([torch.rand(3, 64, 96)])
