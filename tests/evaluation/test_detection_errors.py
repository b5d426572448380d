"""Each reason and each kind once, on made scores and masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import numpy as np
import torch
from drawn import OFF, SURE, category_map
from PIL import Image
from small_coco import block, compressed
from small_solo import small
from torch import Tensor

from solo_attn.data import CocoInstances, eval_transforms
from solo_attn.evaluation import ErrorReport, evaluate_model, find_errors
from solo_attn.evaluation.errors import FALSE, MISSED
from solo_attn.models import inference
from solo_attn.models.heads import CellMasks, Head, HeadResult
from solo_attn.models.inference import predict
from solo_attn.models.targets import MASK_STRIDES

SIDE = 64  # of the input; level 0 has 8 x 8 cells of 8 pixels, and masks are drawn at stride 4
GRIDS = (8, 6, 4, 3, 2)
NEVER = (1000, 2000)
Box = tuple[int, int, int, int]


def around(row: int, column: int, size: int = 16) -> Box:
    """(x, y, width, height) of an object for which that cell of level 0 alone is responsible."""
    start = 4 - size // 2
    return (8 * column + start, 8 * row + start, size, size)


class Made:
    """A model of given scores {(level, label, row, column): score} and masks {(level, row, column): box}."""

    def __init__(self, scores: Any, masks: Any, **settings: Any) -> None:
        ranges = ((4, 19), NEVER, NEVER, NEVER, (19, 30))
        model = small(num_classes=2, min_size=SIDE, max_size=SIDE, scale_ranges=ranges, num_grids=GRIDS)
        self.transform, self.settings = model.eval().transform, model.settings
        self.settings = self.settings.model_copy(update=settings)
        self.head, self.num_classes, self.num_grids = self, 2, GRIDS
        self.mask_strides = MASK_STRIDES
        chosen: list[dict[Any, float]] = [{} for _ in GRIDS]
        for (level, *place), score in scores.items():
            chosen[level][(0, *place)] = score
        self.logits = tuple(category_map(side, found, 2) for side, found in zip(GRIDS, chosen, strict=True))
        self.masks = masks

    def eval(self) -> None: ...

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def predict(self, images: Sequence[Tensor], *, rle: bool) -> Any:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return predict(self, self.features(None), [(SIDE, SIDE)], sizes, self.settings, rle=rle)  # type: ignore[arg-type]

    def features(self, batch: Any) -> HeadResult:
        levels = tuple(torch.empty(1, 1, SIDE // 8, SIDE // 8) for _ in GRIDS)
        return HeadResult(self.logits, levels, levels)

    def prepare(self, result: HeadResult, images: Any) -> HeadResult:
        return result

    masks_of = Head.masks_of

    def cell_masks(
        self, result: HeadResult, level: int, cells: Tensor, compared_at: tuple[int, int] | None = None
    ) -> CellMasks:
        stride = MASK_STRIDES[level]
        size = (SIDE // stride, SIDE // stride)
        logits = torch.full((len(cells), *size), OFF)
        for k, cell in enumerate(cells[:, 1].tolist()):
            box = self.masks.get((level, *divmod(cell, GRIDS[level])))
            if box is not None:
                x, y, width, height = (side // stride for side in box)
                logits[k, y : y + height, x : x + width] = SURE
        return CellMasks(logits, None, size)


def dataset(folder: Path, objects: Sequence[tuple[Box, int]], size: int = SIDE) -> CocoInstances:
    """One image with boxes as objects, of the labels 0 and 1, as the categories 5 and 9."""
    Image.new("RGB", (size, size)).save(folder / "a.png")
    content = {
        "images": [{"id": 3, "file_name": "a.png", "height": size, "width": size}],
        "categories": [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}],
        "annotations": [
            {
                "id": 40 + k,
                "image_id": 3,
                "category_id": (5, 9)[label],
                "bbox": list(box),
                "area": box[2] * box[3],
                "segmentation": compressed(block(*box, size=(size, size))),
                "iscrowd": 0,
            }
            for k, (box, label) in enumerate(objects)
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoInstances(folder, folder / "a.json", eval_transforms())


def report(folder: Path, objects: Sequence[tuple[Box, int]], model: Made, **settings: Any) -> ErrorReport:
    data = dataset(folder, objects)
    found, results = find_errors(model, data, **settings)  # type: ignore[arg-type]
    metrics, expected = evaluate_model(model, data, **settings)  # type: ignore[arg-type]
    assert results == expected
    assert found.metrics == metrics
    return found


THERE, WIDE = around(3, 3), (20, 20, 36, 16)  # IoU 0.44
CELL = (0, 0, 3, 3)
GOOD = {(0, 3, 3): THERE}
FAR = {(0, 0, row, column): 0.9 for row in (1, 5) for column in range(0, 8, 2)}

MADE: dict[str, tuple[str, list[tuple[Box, int]], Made]] = {}


def case(
    name: str, reason: str, scores: Any, masks: Any, box: Box = THERE, others: Any = (), **settings: Any
) -> None:
    MADE[name] = (reason, [(box, 0), *others], Made(scores, masks, **settings))


case("found", "", {CELL: 0.9}, GOOD)
case("too small for all levels", "level", {CELL: 0.9}, {}, box=(24, 24, 2, 2))
case("another has the cell", "collision", {CELL: 0.9}, GOOD, box=around(3, 3, 8), others=[(THERE, 0)])
case("drawn elsewhere", "mask", {CELL: 0.9}, {(0, 3, 3): (0, 0, 16, 16)})
case("drawn too wide", "mask", {CELL: 0.9}, {(0, 3, 3): WIDE})
case("score below the threshold", "score", {CELL: 0.08}, GOOD)
case("score of another class", "score", {(0, 1, 3, 3): 0.9}, GOOD)
case("score below the last threshold", "score", {CELL: 0.3}, GOOD, final_score_threshold=0.5)
case("a better neighbour", "points_nms", {CELL: 0.5, (0, 0, 3, 2): 0.9}, {**GOOD, (0, 3, 2): (0, 0, 16, 16)})
# Four cells: of the two that draw it well one falls to its score, and the other comes further.
BETWEEN = (16, 16, 16, 16)
case(
    "the cell that comes furthest",
    "points_nms",
    {(0, 0, 2, 2): 0.08, (0, 0, 3, 3): 0.5, (0, 0, 2, 3): 0.9},
    {(0, 2, 2): BETWEEN, (0, 3, 3): BETWEEN},
    box=BETWEEN,
)
# 32 pixels of stride 4, on a level of stride 32.
LONG = (16, 16, 32, 16)
case("few pixels", "area", {(4, 0, 0, 0): 0.9}, {(4, 0, 0): LONG}, box=LONG)
case("nms_pre", "limit", {CELL: 0.5, (0, 0, 6, 6): 0.9}, {**GOOD, (0, 6, 6): (44, 44, 16, 16)}, nms_pre=1)
case(
    "max_detections",
    "limit",
    {CELL: 0.5, (0, 0, 6, 6): 0.9},
    {**GOOD, (0, 6, 6): (44, 44, 16, 16)},
    max_detections=1,
)
# exp(-2 x 0.44^2) x 0.6 = 0.40
case(
    "a better one over it",
    "matrix_nms",
    {CELL: 0.6, (0, 0, 6, 6): 0.9},
    {**GOOD, (0, 6, 6): WIDE},
    final_score_threshold=0.45,
)
case(
    "beyond what the evaluation counts",
    "taken",
    {CELL: 0.5, **FAR, (0, 0, 3, 7): 0.8, (0, 0, 3, 0): 0.8},
    {
        **GOOD,
        **{(0, row, column): (8 * column, 52 * (row > 1), 12, 12) for _, _, row, column in FAR},
        (0, 3, 7): (52, 20, 12, 16),
        (0, 3, 0): (0, 20, 12, 16),
    },
)


@pytest.mark.parametrize("name", MADE)
def test_why_an_object_is_missed(tmp_path: Path, name: str) -> None:
    reason, objects, model = MADE[name]
    found = report(tmp_path, objects, model, max_detections=10)
    assert found.objects == len(objects)
    assert [one.reason for one in found.missed] == ([reason] if reason else [])
    if reason:
        (one,) = found.missed
        *_, width, height = objects[0][0]
        assert (one.image_id, one.annotation_id, one.category_id) == (3, 40, 5)
        assert one.area == width * height
        without = reason in ("level", "collision", "vanished")
        poor = 0 if name == "drawn elsewhere" else 16 / 36
        # Enlarged bilinearly, corners are round.
        assert one.iou == pytest.approx(0 if without else poor if reason == "mask" else 1, abs=0.2)
        assert (one.score < 1e-9) is (without or name == "score of another class")


def test_an_object_of_which_the_input_has_no_pixel(tmp_path: Path) -> None:
    """At half the size every second pixel is taken."""
    data = dataset(tmp_path, [((51, 51, 1, 1), 0)], size=2 * SIDE)
    found, _ = find_errors(Made({CELL: 0.9}, GOOD), data)  # type: ignore[arg-type]
    assert [one.reason for one in found.missed] == ["vanished"]


def test_every_reason_has_its_case() -> None:
    assert {reason for reason, *_ in MADE.values()} - {""} == MISSED.keys() - {"vanished"}


@pytest.mark.parametrize(
    ("kind", "place", "box", "iou"),
    [
        ("duplicate", (0, 0, 6, 6), THERE, 1.0),
        ("class", (0, 1, 6, 6), THERE, 1.0),
        ("mask", (0, 0, 6, 6), WIDE, 16 / 36),
        ("both", (0, 1, 6, 6), WIDE, 16 / 36),
        ("background", (0, 0, 6, 6), (44, 44, 16, 16), 0.0),
    ],
)
def test_what_a_false_positive_is(
    tmp_path: Path, kind: str, place: tuple[int, ...], box: Box, iou: float
) -> None:
    model = Made({CELL: 0.9, place: 0.8}, {**GOOD, (0, 6, 6): box})
    found = report(tmp_path, [(THERE, 0)], model)
    assert found.missed == ()
    (one,) = found.false_positives
    assert (one.image_id, one.category_id, one.kind) == (3, (5, 9)[place[1]], kind)
    assert one.iou == pytest.approx(iou, abs=0.02)
    assert set(FALSE) >= {kind}


@pytest.mark.parametrize("gpu", [False, True])
def test_a_head_of_factors(tmp_path: Path, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SOLOv2's masks are products of kernels and features: perfect ones stand in for them all the same."""
    monkeypatch.setattr(inference, "waits_long", lambda features: gpu)
    data = dataset(tmp_path, [(around(3, 3, 24), 0), (around(6, 6, 24), 1)])
    model = small(num_classes=2, min_size=SIDE, max_size=SIDE, head="solov2", attention=None).eval()
    found, _ = find_errors(model, data)
    assert found.objects == 2
    assert found.perfect_masks.ap >= found.metrics.ap


def test_an_image_without_objects(tmp_path: Path) -> None:
    found = report(tmp_path, [], Made({CELL: 0.9}, GOOD))
    assert found.objects == 0
    assert [one.kind for one in found.false_positives] == ["background"]
    assert "0 of 0 objects missed" in found.table()


def test_perfect_masks_and_scores(tmp_path: Path) -> None:
    """Each mends its own part, and neither what has no cell."""
    objects = [(THERE, 0), (around(6, 6), 1), (around(1, 6, 8), 0)]
    cells = {CELL: 0.9, (0, 1, 6, 6): 0.05, (0, 0, 1, 1): 0.95, (0, 0, 1, 6): 0.05}
    masks = {(0, 3, 3): WIDE, (0, 6, 6): around(6, 6), (0, 1, 1): around(1, 1), (0, 1, 6): around(6, 1)}
    found = report(tmp_path, objects, Made(cells, masks))
    by_object = {one.annotation_id: one.reason for one in found.missed}
    assert by_object == {40: "mask", 41: "score", 42: "mask"}
    assert found.metrics.ap50 == 0
    # Of class 0 one of two, behind a false positive: precision 0.5 up to recall 0.5; of class 1 none.
    assert found.perfect_masks.ap50 == pytest.approx(0.5 * 51 / 101 / 2)
    # Of class 0 none, as no mask is right; of class 1 all.
    assert found.perfect_scores.ap50 == pytest.approx(1 / 2)


def test_report_as_table_json_and_picture(tmp_path: Path) -> None:
    model = Made({CELL: 0.9, (0, 1, 6, 6): 0.8}, {(0, 3, 3): WIDE, (0, 6, 6): THERE, (0, 1, 1): around(1, 1)})
    found = report(tmp_path, [(THERE, 0), (around(1, 1), 1)], model)
    found.save(tmp_path / "e.json")
    stored = json.loads((tmp_path / "e.json").read_text())
    assert stored["objects"] == 2
    assert {k: v for k, v in stored["missed_by_reason"].items() if v} == {"mask": 1, "score": 1}
    assert {k: v for k, v in stored["false_positives_by_kind"].items() if v} == {"mask": 1, "class": 1}
    assert stored["metrics"] == found.metrics.as_dict()
    assert stored["missed"][0]["annotation_id"] == 40
    table = found.table()
    assert "2 of 2 objects missed at IoU 0.5" in table
    assert f"{1:>8}   50.0 %  {MISSED['mask']}" in table
    assert "2 instances that match no object" in table
    assert "with perfect masks" in table
    found.draw(tmp_path / "e.png")
    assert np.asarray(Image.open(tmp_path / "e.png")).std() > 10


@pytest.mark.parametrize(("iou", "missed"), [(0.5, 0), (0.75, 0), (0.85, 1)])
def test_iou(tmp_path: Path, iou: float, missed: int) -> None:
    data = dataset(tmp_path, [(THERE, 0), (around(6, 6), 0)])
    model = Made({CELL: 0.9, (0, 0, 6, 6): 0.9}, {(0, 3, 3): (20, 20, 20, 16), (0, 6, 6): around(6, 6)})
    found, _ = find_errors(model, data, iou=iou)  # type: ignore[arg-type]
    assert len(found.missed) == missed  # the first one's IoU is close to 0.8


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(THERE, 0)])
    with pytest.raises(ValueError, match=r"find_errors: expected iou to be one of 0\.5, 0\.55, .* got 0\.52"):
        find_errors(Made({}, {}), data, iou=0.52)  # type: ignore[arg-type]
    expected = rf"find_errors: expected image id 3 to be one tile, 32 x 32 pixels, got \({SIDE}, {SIDE}\)"
    with pytest.raises(ValueError, match=expected):
        find_errors(Made({}, {}, tile=32), data)  # type: ignore[arg-type]


def test_an_image_that_is_one_tile_is_an_image(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(THERE, 0), (around(6, 6), 0)])
    scores, masks = {CELL: 0.9}, {(0, 3, 3): THERE}
    whole, tiled = (find_errors(Made(scores, masks, tile=tile), data)[0] for tile in (None, SIDE))  # type: ignore[arg-type]
    assert whole == tiled
    assert len(whole.missed) == 1
