import contextlib
import copy
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_coco import real_data

from solo_attn.data import DatasetError
from solo_attn.evaluation import METRICS, evaluate
from solo_attn.formats import coco_results, write_results

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "bus"}]
IDS = [7, 3]
ONE = pytest.approx(1.0)  # pycocotools adds an epsilon to a denominator: 1 may come out 2e-16 short


def squares(corners, labels, side=40, size=(100, 120)):
    """A prediction of squares, all with different scores."""
    masks = torch.zeros(len(corners), *size, dtype=torch.bool)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    corner = torch.tensor(corners, dtype=torch.float32).reshape(-1, 2)
    return {
        "boxes": torch.cat([corner, corner + side], 1),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": 0.9 - 0.1 * torch.arange(len(corners)),
        "masks": masks,
    }


SCENE = {
    1: squares([(0, 0), (60, 0), (0, 50), (60, 50)], [0, 0, 1, 1]),
    2: squares([(10, 10), (70, 10)], [0, 1]),
}


def ground_truth(scene=SCENE, **more):
    """The scene as COCO JSON with neither info nor licenses."""
    annotations = []
    for image_id, instances in scene.items():
        for result in coco_results(image_id, instances, IDS):
            del result["score"]
            area = float(mask_utils.area(result["segmentation"]))
            annotations.append({"id": len(annotations) + 1, "area": area, "iscrowd": 0, **result})
    images = [{"id": image_id, "height": 100, "width": 120} for image_id in scene]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}


def as_coco(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def results_of(scene):
    return [result for image_id, found in scene.items() for result in coco_results(image_id, found, IDS)]


def keep(prediction, index):
    return {key: value[index] for key, value in prediction.items()}


@pytest.mark.data
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_reference_numbers(iou_type, capsys):
    reference = real_data("cocoapi_ref")
    found = evaluate(
        reference / "instances_val2014_100.json",
        str(reference / f"instances_val2014_fake{iou_type}100_results.json"),
        iou_type=iou_type,
    )
    assert list(found.as_dict().values()) == json.loads((reference / "expected.json").read_text())[iou_type]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_perfect(iou_type):
    found = evaluate(as_coco(ground_truth()), results_of(SCENE), iou_type=iou_type)
    # 40 x 40 is medium, so small and large are undefined; the first image has two objects of each class.
    assert found.as_dict() == dict.fromkeys(METRICS, ONE) | {
        "ap_small": -1.0,
        "ap_large": -1.0,
        "ar_small": -1.0,
        "ar_large": -1.0,
        "ar1": pytest.approx(2 / 3),
    }


def test_half_missed():
    half = {1: keep(SCENE[1], [0, 2])}
    scene = {1: SCENE[1]}
    found = evaluate(as_coco(ground_truth(scene)), results_of(half))
    # Precision is 1 up to recall 0.5: 51 of COCO's 101 recall points.
    assert found.ap == pytest.approx(51 / 101)
    assert found.ar100 == 0.5


def test_wrong_labels():
    wrong = {i: {**found, "labels": 1 - found["labels"]} for i, found in SCENE.items()}
    assert evaluate(as_coco(ground_truth()), results_of(wrong)).ap == 0.0


def test_no_results():
    found = evaluate(as_coco(ground_truth()), [])
    assert set(found.as_dict().values()) == {0.0, -1.0}
    assert (found.ap, found.ar100, found.ap_small) == (0.0, 0.0, -1.0)


def test_no_objects_at_all():
    empty = {1: squares([], [])}
    assert set(evaluate(as_coco(ground_truth(empty)), results_of(SCENE)[:1]).as_dict().values()) == {-1.0}
    assert set(evaluate(as_coco(ground_truth(empty)), results_of(empty)).as_dict().values()) == {-1.0}


def test_image_ids():
    gt, only_second = as_coco(ground_truth()), results_of({2: SCENE[2]})
    assert evaluate(gt, only_second).ap < 1
    assert evaluate(gt, only_second, image_ids=[2]).ap == ONE
    assert evaluate(gt, results_of(SCENE), image_ids=[2]).ap == ONE


def test_arguments_stay_as_they_were(tmp_path):
    gt, results = as_coco(ground_truth()), results_of(SCENE)
    before = copy.deepcopy((gt.dataset, results))
    evaluate(gt, results)
    assert (gt.dataset, results) == before


def test_annotation_ids_zero_and_repeated():
    gt = ground_truth()
    for annotation in gt["annotations"]:
        annotation["id"] = 0
        del annotation["iscrowd"]
    assert evaluate(as_coco(gt), results_of(SCENE)).ap == ONE


def test_bbox_does_not_size_masks():
    """A false positive on a diagonal line: few pixels, large box. By its mask it is small, not medium."""
    line = {key: value[:1].clone() for key, value in SCENE[2].items()}
    line["masks"] = torch.eye(100, 120, dtype=torch.bool)[None]
    line["boxes"], line["scores"] = torch.tensor([[0.0, 0.0, 60.0, 60.0]]), torch.tensor([0.99])
    results = results_of(SCENE) + coco_results(2, line, IDS)
    found = evaluate(as_coco(ground_truth()), results)
    assert found.ap < 1
    assert found.ap_medium == ONE


def test_max_detections():
    corners = [(x, y) for x in range(0, 120, 8) for y in range(0, 96, 8)]
    scene = {1: squares(corners, [0] * len(corners), side=6)}
    scene[1]["scores"] = torch.linspace(0.9, 0.1, len(corners))
    gt, results = as_coco(ground_truth(scene)), results_of(scene)
    assert len(corners) == 180
    capped = evaluate(gt, results)
    assert capped.ar100 == pytest.approx(100 / 180)
    more = evaluate(gt, results, max_detections=200)
    assert (more.ap, more.ap50, more.ap_small, more.ar100) == (ONE, ONE, ONE, ONE)
    assert more.ar10 == pytest.approx(10 / 180)
    assert "maxDets=200 ] = 100.0" in more.table().splitlines()[0]
    fewer = evaluate(gt, results, max_detections=10)
    assert fewer.ap50 == fewer.ap > 0


def test_table_is_pycocotools_own_in_per_cent():
    gt = as_coco({**ground_truth(), "info": {}})
    results = results_of({1: keep(SCENE[1], [0, 3]), 2: SCENE[2]})
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), "segm")
        judge.evaluate()
        judge.accumulate()
        with contextlib.redirect_stdout(printed):
            judge.summarize()
    found = evaluate(gt, results)
    lines = []
    for line in printed.getvalue().splitlines():
        head, _, value = line.rpartition(" = ")
        lines.append(f"{head} = {'–' if float(value) < 0 else f'{100 * float(value):.1f}'}")
    assert str(found) == found.table() == "\n".join(lines)
    assert "–" in found.table()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))
def test_rle_round_trip(count, height, width, seed):
    generator = np.random.default_rng(seed)
    prediction = {
        "boxes": torch.from_numpy(generator.random((count, 4), dtype=np.float32)),
        "labels": torch.from_numpy(generator.integers(0, 2, count)),
        "scores": torch.from_numpy(generator.random(count, dtype=np.float32)),
        "masks": torch.from_numpy(generator.random((count, height, width)) < 0.4),
    }
    results = json.loads(json.dumps(coco_results(5, prediction, IDS)))
    assert len(results) == count
    for number, result in enumerate(results):
        decoded = torch.from_numpy(mask_utils.decode(result["segmentation"])).bool()
        assert torch.equal(decoded, prediction["masks"][number])
        assert result["category_id"] == IDS[prediction["labels"][number]]
        assert result["score"] == prediction["scores"][number].item()
        x1, y1, x2, y2 = prediction["boxes"][number].tolist()
        assert result["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])


def test_files(tmp_path):
    gt, found = tmp_path / "gt.json", tmp_path / "results.json"
    gt.write_text(json.dumps(ground_truth()))
    found.write_text("old")
    write_results(found, results_of(SCENE))
    assert json.loads(found.read_text()) == results_of(SCENE)
    assert evaluate(str(gt), found).ap == ONE
    with pytest.raises(TypeError):
        write_results(found, [{"image_id": object()}])
    assert json.loads(found.read_text()) == results_of(SCENE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gt.json", "results.json"]
    with pytest.raises(OSError, match=r"write_results: expected path .* got '.*/none/results.json'"):
        write_results(tmp_path / "none" / "results.json", [])


GOOD = results_of({2: SCENE[2]})[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"results\[1\]\['image_id'\] among the 2 images .* the unknown id 99"),
        ({"category_id": 1}, r"results\[1\]\['category_id'\] among the 2 categories .* the unknown id 1"),
        ({"score": float("nan")}, r"results\[1\]\['score'\] a finite number, got nan"),
        ({"score": None}, r"results\[1\]\['score'\] a finite number, got None"),
        ({"score": "x"}, r"results\[1\]\['score'\] a finite number, got 'x'"),
        ({"score": 10**400}, r"results\[1\]\['score'\] a finite number, got an integer of"),
        ({"segmentation": [[0, 0, 1, 1, 2, 2]]}, r"results\[1\]\['segmentation'\] a compressed RLE"),
        (
            {"segmentation": {"size": [10, 10], "counts": "T3"}},
            r"of size \[100, 120\] as the image is, got size \[10, 10\]",
        ),
        (
            {"segmentation": {"size": 100, "counts": "T3"}},
            r"of size \[100, 120\] as the image is, got size 100",
        ),
    ],
)
def test_bad_results(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(as_coco(ground_truth()), [GOOD, {**GOOD, **change}])
    assert re.match(r"evaluate: (expected )?results\[1\]\[", str(caught.value))


def test_a_score_may_be_any_number():
    found = [{**GOOD, "score": score} for score in (1, np.float32(0.5), torch.tensor(0.5))]
    assert evaluate(as_coco(ground_truth()), found).ap > 0


RUN_LENGTHS = """
import ast, sys
from pycocotools.coco import COCO
from solo_attn.evaluation import evaluate
*cases, whole = ast.literal_eval(sys.argv[1])
whole, *cases = ({"size": [10, 10], "counts": counts} for counts in (whole, *cases, whole))
for runs in cases:
    for stored, found in ((whole, runs), (runs, whole)):
        truth, one = COCO(), {"image_id": 1, "category_id": 1}
        truth.dataset = {
            "images": [{"id": 1, "height": 10, "width": 10}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{**one, "area": 100, "segmentation": stored}],
        }
        try:
            evaluate(truth, [{**one, "score": 0.5, "segmentation": found}])
            print("accepted", flush=True)
        except ValueError as error:
            print(str(error).replace("\\n  ", " "), flush=True)
"""


def test_run_lengths_of_another_number_of_pixels_end_with_a_message():
    """In a process of its own: pycocotools does not come back from some, and no signal gets through to it."""
    whole, sixty = (
        mask_utils.encode(np.ones((rows, 10), dtype=np.uint8, order="F"))["counts"] for rows in (10, 6)
    )
    cases = ["", sixty, sixty.decode(), "zzz!!", b"zzz!!", b"", [0, 60], whole]
    done = subprocess.run(
        [sys.executable, "-c", RUN_LENGTHS, repr(cases)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    no_runs, short = (
        "expected a run-length encoding to have runs as a list or a COCO string, got {!r}",
        "expected runs of 100 pixels in all as the image has, got 60",
    )
    expected = [
        f"{where}: {(no_runs if k in (0, 3, 4, 5) else short).format(case)}"
        for k, case in enumerate(cases[:7])
        for where in (
            "evaluate: results[0]['segmentation']",
            "evaluate: coco_gt: 1 fault(s) in the dataset: annotations[0]",
        )
    ]
    lines = done.stdout.splitlines()
    assert (lines[:12], lines[13]) == (expected[:12], expected[13])
    assert lines[12].startswith("evaluate: expected results[0]['segmentation'] a compressed RLE")
    assert lines[14:] == ["accepted"] * 2


def test_runs_may_be_bytes():
    found = {
        **GOOD,
        "segmentation": mask_utils.encode(np.asfortranarray(SCENE[2]["masks"][0].byte().numpy())),
    }
    assert isinstance(found["segmentation"]["counts"], bytes)
    assert evaluate(as_coco(ground_truth()), [found]) == evaluate(as_coco(ground_truth()), [GOOD])


def spoilt(key, value):
    dataset = ground_truth()
    dataset["annotations"][1][key] = value
    return as_coco(dataset)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (as_coco({"images": []}), "expected COCO annotations with a list 'annotations', got none"),
        (spoilt("iscrowd", None), r"annotations\[1\]: expected iscrowd .* got None"),
        (spoilt("iscrowd", "0"), r"annotations\[1\]: expected iscrowd .* got '0'"),
        (spoilt("area", -5), r"annotations\[1\]: expected area .* got -5"),
        (spoilt("category_id", 5), r"annotations\[1\]: unknown category id 5"),
        (spoilt("image_id", 9), r"annotations\[1\]: belongs to image id 9"),
    ],
)
def test_bad_ground_truth(truth, message, iou_type):
    """By the checks of `data.validate`, whose own tests have the other faults."""
    with pytest.raises(DatasetError, match=rf"(?s)evaluate: coco_gt: .*{message}"):
        evaluate(truth, [], iou_type=iou_type)


def test_ground_truth_needs_what_is_evaluated_only():
    for iou_type, shape, other in (("segm", "segmentation", "bbox"), ("bbox", "bbox", "segmentation")):
        dataset = ground_truth()
        for annotation in dataset["annotations"]:
            annotation[other] = None
        assert evaluate(as_coco(dataset), results_of(SCENE), iou_type=iou_type).ap == ONE
        del dataset["annotations"][0][shape]
        with pytest.raises(DatasetError, match=rf"annotations\[0\] .*: expected {shape}"):
            evaluate(as_coco(dataset), results_of(SCENE), iou_type=iou_type)


def test_a_file_of_ground_truth_is_named(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(DatasetError, match=r"broken\.json: expected JSON"):
        evaluate(broken, [])


def test_bad_arguments():
    gt = as_coco(ground_truth())
    cases = [
        (ValueError, "iou_type 'segm' or 'bbox', got 'keypoints'", gt, [], {"iou_type": "keypoints"}),
        (ValueError, "max_detections of at least 10, got 5", gt, [], {"max_detections": 5}),
        (ValueError, "image_ids among .* the unknown id 9", gt, [], {"image_ids": [1, 9]}),
        (ValueError, "results to be a list", gt, {"a": 1}, {}),
        (ValueError, r"results\[0\] to have .*score, segmentation", gt, [{"image_id": 1}], {}),
        (ValueError, r"results\[0\]\['bbox'\] \[x, y", gt, [{**GOOD, "bbox": [1, 2]}], {"iou_type": "bbox"}),
        (ValueError, r"results\[0\]\['bbox'\] \[x, y", gt, [{**GOOD, "bbox": None}], {"iou_type": "bbox"}),
        (
            ValueError,
            r"results\[0\]\['bbox'\] \[x, y",
            gt,
            [{**GOOD, "bbox": [*"1234"]}],
            {"iou_type": "bbox"},
        ),
        (FileNotFoundError, "results to be a JSON file, got '/none.json'", gt, "/none.json", {}),
    ]
    for error, message, truth, results, options in cases:
        with pytest.raises(error, match="evaluate: expected " + message):
            evaluate(truth, results, **options)


def test_bad_predictions():
    good = SCENE[2]
    cases = [
        (
            ValueError,
            r"prediction with the keys .* no \['scores'\]",
            {k: good[k] for k in good if k != "scores"},
        ),
        (TypeError, r"prediction\['masks'\] to be a tensor", {**good, "masks": None}),
        (ValueError, r"prediction\['masks'\] of shape \[N, H, W\]", {**good, "masks": good["masks"][0]}),
        (ValueError, r"prediction\['boxes'\] of N = 2", {**good, "boxes": good["boxes"][:1]}),
        (
            ValueError,
            r"prediction\['boxes'\] of shape \[N, 4\], got \[2, 3\]",
            {**good, "boxes": good["boxes"][:, :3]},
        ),
        (ValueError, r"prediction\['labels'\] in 0..1, got 2", {**good, "labels": good["labels"] + 1}),
    ]
    for error, message, prediction in cases:
        with pytest.raises(error, match="coco_results: expected " + message):
            coco_results(1, prediction, IDS)
