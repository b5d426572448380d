"""Polygons against shapely, which knows what a valid one is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.loading import need
from solo_attn.formats.geojson import polygons, to_geojson, write_geojson

NAMES = ["car", "bus"]


@pytest.fixture(scope="module")
def shapely() -> Any:
    return need("shapely")


def shapes(shapely: Any, parts: list[Any]) -> list[Any]:
    return [shapely.Polygon(part[0], part[1:]) for part in parts]


def covered(shapely: Any, parts: list[Any], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre lies in one of the polygons."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    whole = shapely.MultiPolygon(shapes(shapely, parts))
    return shapely.contains_xy(whole, x.ravel(), y.ravel()).reshape(shape)


def check(shapely: Any, mask: np.ndarray) -> None:
    parts = polygons(mask)
    for part, shape in zip(parts, shapes(shapely, parts), strict=True):
        assert shape.is_valid, shapely.is_valid_reason(shape)
        for k, ring in enumerate(part):
            assert ring[0] == ring[-1]
            assert len(ring) >= 5
            assert len(set(ring)) == len(ring) - 1, "a ring that does not meet itself"
            assert shapely.LinearRing(ring).is_ccw == (k == 0)
    whole = shapely.MultiPolygon(shapes(shapely, parts))
    assert whole.is_valid, shapely.is_valid_reason(whole)
    assert whole.area == mask.sum()
    if mask.any():
        assert np.array_equal(covered(shapely, parts, mask.shape), mask)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bits=st.integers(0, 2**81 - 1),
)
def test_any_small_mask(shapely, height, width, bits) -> None:
    pixels = [bits >> k & 1 for k in range(height * width)]
    check(shapely, np.array(pixels, dtype=bool).reshape(height, width))


@pytest.mark.parametrize("density", [0.3, 0.5, 0.6, 0.8])
def test_noise(shapely, density) -> None:
    check(shapely, np.random.default_rng(0).random((60, 70)) < density)


def drawing(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("mask", "rings"),
    [
        (drawing("#"), [1]),
        (drawing("#.", ".#"), [1, 1]),  # touching in a corner: two parts
        (drawing("###", "#.#", "###"), [2]),
        (drawing("###", "#.#", "##."), [2]),  # an outline that would touch itself: outline and hole
        (drawing("####", "#.##", "##.#", "####"), [3]),  # two holes that touch in a corner
        (drawing("#####", "#...#", "#.#.#", "#...#", "#####"), [2, 1]),  # an island in a hole
        (drawing("#######", "#.#.#.#", "#######"), [4]),  # holes whose left neighbour bounds another hole
        (drawing("..", ".."), []),
    ],
)
def test_parts_and_holes(shapely, mask, rings) -> None:
    check(shapely, mask)
    assert [len(part) for part in polygons(mask)] == rings


def found(*masks: np.ndarray) -> dict[str, torch.Tensor]:
    count = len(masks)
    return {
        "boxes": torch.zeros(count, 4),
        "labels": torch.arange(count) % 2,
        "scores": 0.9 - 0.2 * torch.arange(count),
        "masks": torch.from_numpy(np.stack(masks)),
    }


def test_features(shapely, tmp_path) -> None:
    instances = found(
        drawing("###", "#.#", "###"), drawing("#.#", "...", "..."), drawing("...", "...", "...")
    )
    write_geojson(tmp_path / "a.geojson", instances, NAMES)
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection == to_geojson(instances, NAMES)
    assert collection["type"] == "FeatureCollection"
    first, second, third = collection["features"]
    assert first["type"] == "Feature"
    told = {key: first["properties"][key] for key in ("id", "label", "score")}
    assert told == {"id": 1, "label": "car", "score": pytest.approx(0.9)}
    assert first["geometry"]["coordinates"][0] == [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]
    assert second["geometry"]["type"] == "MultiPolygon"
    assert second["properties"]["label"] == "bus"
    assert third["geometry"] is None
    for feature, mask in zip(collection["features"][:2], instances["masks"], strict=False):
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert shape.is_valid
        assert shape.area == mask.sum()
    assert [f["properties"]["id"] for f in to_geojson(instances, NAMES, score_threshold=0.6)["features"]] == [
        1,
        2,
    ]
    nothing = {key: x[:0] for key, x in instances.items()}
    assert to_geojson(nothing, NAMES) == {"type": "FeatureCollection", "features": []}


def test_what_is_wrong_is_named(tmp_path) -> None:
    instances = found(drawing("#"), drawing("#"))
    with pytest.raises(ValueError, match=r"to_geojson: expected prediction\['labels'\] in 0\.\.0, got 1"):
        to_geojson(instances, ["car"])
    with pytest.raises(OSError, match="write_geojson: expected path to be a file that can be written"):
        write_geojson(tmp_path / "no" / "a.geojson", instances, NAMES)
