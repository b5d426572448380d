"""Every fault is found before training, and the message says where it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_coco import HEIGHT, WIDTH, CocoSet, block, compressed, runs

from solo_attn.data import CocoInstances, DatasetError, DatasetSummary, check_dataset
from solo_attn.data.segmentation import run_pixels, segmentation_fault

Spoil = Callable[[CocoSet], Any]


def set_in(annotation_id: int, key: str, value: Any) -> Spoil:
    return lambda s: s.annotation(annotation_id).__setitem__(key, value)


def without(part: str, index: int, key: str) -> Spoil:
    return lambda s: s.content[part][index].pop(key)


def in_entry(part: str, index: int, key: str, value: Any) -> Spoil:
    return lambda s: s.content[part][index].__setitem__(key, value)


def sized(annotation_id: int, counts: Any, size: Any = (HEIGHT, WIDTH)) -> Spoil:
    return set_in(annotation_id, "segmentation", {"size": list(size), "counts": counts})


def number(value: int) -> str:
    """One number of a compressed encoding: 5 bits a character, lowest first."""
    bits, rest = value & 31, value >> 5
    if rest == (-1 if bits & 16 else 0):
        return chr(48 + bits)
    return chr(48 + bits + 32) + number(rest)


FAULTS: dict[str, tuple[Spoil, str]] = {
    "no image file": (lambda s: (s.images / "3.png").unlink(), r"3\.png \(image id 3\): no such file"),
    "empty image file": (lambda s: (s.images / "3.png").write_bytes(b""), r"\(image id 3\): .*is empty"),
    "not an image": (lambda s: (s.images / "3.png").write_text("hi"), r"\(image id 3\): cannot be read"),
    "16 bits": (lambda s: s.save(3, Image.new("I;16", (30, 20))), r"3\.png \(image id 3\): expected 8 bits"),
    "image size": (
        lambda s: s.save(3, Image.new("RGB", (20, 30))),
        r"3\.png \(image id 3\): expected 30 x 20 .* got 20 x 30",
    ),
    "image key": (without("images", 1, "file_name"), r"images\[1\]: expected file_name, got .*'id': 3"),
    "image id": (in_entry("images", 1, "id", "three"), r"images\[1\]: expected an integer id .* got 'three'"),
    "image id True": (in_entry("images", 1, "id", True), r"images\[1\]: expected an integer id .* got True"),
    "file name": (in_entry("images", 1, "file_name", 5), r"images\[1\]: .* got 3 and 5"),
    "no whole number": (
        in_entry("images", 1, "height", 20.0),
        r"image id 3: expected height and width as integers, got \[20.0, 30\]",
    ),
    "image no object": (lambda s: s.content["images"].append(None), r"images\[2\]: .* got None"),
    "image twice": (
        lambda s: s.content["images"].append(s.content["images"][1]),
        r"image id 3: duplicate id",
    ),
    "category key": (without("categories", 1, "name"), r"categories\[1\]: .* got {'id': 20}"),
    "category twice": (
        lambda s: s.content["categories"].append(s.content["categories"][0]),
        r"category id 50: duplicate id",
    ),
    "annotation key": (without("annotations", 1, "bbox"), r"annotations\[1\] \(annotation id 12\): .* bbox"),
    "no area": (without("annotations", 2, "area"), r"\(annotation id 13\): expected area"),
    "area": (set_in(13, "area", None), r"annotation id 13: expected area .* got None"),
    "negative area": (set_in(13, "area", -5), r"annotation id 13: expected area .* got -5"),
    "area NaN": (set_in(13, "area", float("nan")), r"annotation id 13: expected area .* got nan"),
    "endless area": (set_in(13, "area", 10**400), r"annotation id 13: expected area .* got an integer of"),
    "null crowd": (set_in(13, "iscrowd", None), r"annotation id 13: expected iscrowd .* got None"),
    "crowd in words": (set_in(13, "iscrowd", "0"), r"annotation id 13: expected iscrowd .* got '0'"),
    "crowd of 2": (set_in(13, "iscrowd", 2), r"annotation id 13: expected iscrowd .* got 2"),
    "crowd NaN": (set_in(13, "iscrowd", float("nan")), r"annotation id 13: expected iscrowd .* got nan"),
    "annotation no object": (lambda s: s.content["annotations"].append(4), r"annotations\[4\]"),
    "annotation id": (set_in(13, "id", [1]), r"annotations\[2\]: expected integers of 64 bits as id"),
    "annotation twice": (set_in(13, "id", 12), r"annotation id 12: duplicate id"),
    "unknown category": (set_in(12, "category_id", 9), r"annotation id 12: unknown category id 9"),
    "unknown image": (set_in(12, "image_id", 8), r"annotation id 12: belongs to image id 8"),
    "no width": (set_in(12, "bbox", [1, 2, 0, 5]), r"annotation id 12: .*width and height .*\[1, 2, 0, 5\]"),
    "negative height": (set_in(12, "bbox", [1, 2, 3, -5]), r"annotation id 12: .*\[1, 2, 3, -5\]"),
    "NaN in box": (set_in(12, "bbox", [1, 2, 3, float("nan")]), r"annotation id 12: .*four finite numbers"),
    "three numbers": (set_in(12, "bbox", [1, 2, 3]), r"annotation id 12: .*four finite numbers"),
    "no segmentation": (set_in(11, "segmentation", []), r"annotation id 11: .* got \[\]"),
    "null segmentation": (set_in(11, "segmentation", None), r"annotation id 11: .* got None"),
    "two points": (set_in(11, "segmentation", [[1, 1, 5, 5]]), r"annotation id 11: .*at least 3 points"),
    "odd numbers": (set_in(11, "segmentation", [[1, 1, 5, 5, 9, 9, 2]]), r"annotation id 11: .*3 points"),
    # The next two end the process where pycocotools gets to see them.
    "NaN in polygon": (
        set_in(11, "segmentation", [[1, 1, 5, 5, 9, float("nan")]]),
        r"annotation id 11: .*finite numbers",
    ),
    "far polygon": (set_in(11, "segmentation", [[1, 1, 5, 5, 1e9, 1]]), r"annotation id 11: .*pixels of the"),
    "words": (set_in(11, "segmentation", [["a", "b", 1, 2, 3, 4]]), r"annotation id 11: .*finite numbers"),
    "RLE of another size": (sized(12, "0", (WIDTH, HEIGHT)), r"annotation id 12: .*\[20, 30\].*\[30, 20\]"),
    "RLE without counts": (
        set_in(12, "segmentation", {"size": [HEIGHT, WIDTH]}),
        r"annotation id 12: .*runs as a list or a COCO string, got None",
    ),
    # pycocotools takes these two, and returns what was in memory.
    "short runs": (sized(13, [10, 5]), r"annotation id 13: expected runs of 600 pixels .* got 15"),
    "short string": (
        sized(12, compressed(block(0, 0, 1, 9, (20, 29)))["counts"]),
        r"annotation id 12: expected runs of 600 pixels .* got 580",
    ),
    "negative run": (sized(13, [-5, 605]), r"annotation id 13: .*got \[-5, 605\]"),
    "cut string": (sized(12, "oo"), r"annotation id 12: .*got 'oo'"),
    "endless number": (sized(12, "P" * 9 + "0"), r"annotation id 12: .*COCO string"),
    "string with a rest": (
        sized(12, compressed(block(15, 5, 4, 6))["counts"] + "P"),
        r"annotation id 12: .*COCO string",
    ),
    "negative run in string": (sized(12, number(700) + number(-100)), r"annotation id 12: .*COCO string"),
    "other letters": (sized(12, "\u00e9\n"), r"annotation id 12: .*COCO string"),
    "half a letter": (sized(12, "\ud800"), r"annotation id 12: .*COCO string"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("look", [check_dataset, CocoInstances])
def test_fault_is_named(coco_set: CocoSet, name: str, look: Callable[..., Any]) -> None:
    spoil, message = FAULTS[name]
    spoil(coco_set)
    with pytest.raises(DatasetError, match=message) as caught:
        look(*coco_set.write())
    assert str(coco_set.annotations) in str(caught.value)
    assert "1 fault(s)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "an empty file"),
        (" \n", "an empty file"),
        ('{"images": [', "expected JSON"),
        ("[]", "got a JSON list"),
        ('{"images": [], "categories": []}', "'annotations', got none"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images', got a dict"),
        ('{"images": [], "annotations": [], "categories": [1]}', "at least one entry in 'images'"),
        ('{"images": [1], "annotations": [], "categories": []}', "at least one entry in 'categories'"),
    ],
)
def test_annotation_file(coco_set: CocoSet, text: str | None, message: str) -> None:
    if text is not None:
        coco_set.annotations.write_text(text)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        check_dataset(coco_set.images, coco_set.annotations)
    assert str(coco_set.annotations) in str(caught.value)


def test_a_folder_that_is_not_there_is_one_fault(coco_set: CocoSet, tmp_path: Path) -> None:
    _, annotations = coco_set.write()
    wrong = tmp_path / "imgaes"
    with pytest.raises(DatasetError) as caught:
        check_dataset(wrong, annotations)
    assert str(caught.value) == (
        f"{annotations}: expected the folder of its images, got {wrong}, which is not there"
    )


def test_faultless(coco_set: CocoSet) -> None:
    summary = check_dataset(*coco_set.write(), decode=True)
    assert summary == DatasetSummary(2, 1, 4, 1, 2)
    assert str(summary) == "2 images (1 without objects), 4 annotations (1 crowd region), 2 categories"


def test_a_crowd_is_marked_by_a_number_or_a_truth_value(coco_set: CocoSet) -> None:
    for annotation_id, value in ((11, False), (12, 0), (13, True), (14, 1)):
        coco_set.annotation(annotation_id)["iscrowd"] = value
    assert check_dataset(*coco_set.write()).crowds == 2
    del coco_set.annotation(14)["iscrowd"]
    assert check_dataset(*coco_set.write()).crowds == 1


def test_all_faults_are_counted_and_ten_listed(coco_set: CocoSet) -> None:
    annotation = coco_set.annotation(11)
    for k in range(100, 114):
        coco_set.content["annotations"].append({**annotation, "id": k, "category_id": 9})
    (coco_set.images / "7.png").unlink()
    with pytest.raises(DatasetError) as caught:
        check_dataset(*coco_set.write())
    message = str(caught.value)
    assert "15 fault(s)" in message
    assert "image id 7" in message
    assert "annotation id 108" in message
    assert "annotation id 109" not in message
    assert message.endswith("... and 5 more")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decode_finds_truncated_image(coco_set: CocoSet, kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = coco_set.save(3, Image.fromarray(noise), format=kind)
    path.write_bytes(path.read_bytes()[:-200])
    images, annotations = coco_set.write()
    check_dataset(images, annotations)  # the header is whole
    with pytest.raises(DatasetError, match=r"3\.png \(image id 3\): cannot be read"):
        check_dataset(images, annotations, decode=True)
    dataset = CocoInstances(images, annotations)
    with pytest.raises(DatasetError, match=r"3\.png \(image id 3\): cannot be read"):
        dataset[dataset.image_ids.index(3)]


def test_decompression_bomb_is_named(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"3\.png \(image id 3\): cannot be read"):
        check_dataset(*coco_set.write())


def test_degenerate_box_can_be_skipped(coco_set: CocoSet) -> None:
    coco_set.annotation(12)["bbox"] = [15, 5, 4, 0]
    images, annotations = coco_set.write()
    summary = check_dataset(images, annotations, on_degenerate="skip")
    assert (summary.degenerate, summary.annotations) == (1, 4)
    assert "1 without width or height" in str(summary)
    dataset = CocoInstances(images, annotations, on_degenerate="skip")
    _, target = dataset[dataset.image_ids.index(7)]
    assert target["labels"].tolist() == [1, 1]  # 11 and 13: 12 is left out
    assert 12 in dataset.coco.anns


def test_image_of_degenerate_boxes_only_has_no_objects(coco_set: CocoSet) -> None:
    coco_set.content["annotations"] = [coco_set.annotation(12)]
    coco_set.annotation(12)["bbox"] = [15, 5, 0, 1]
    assert check_dataset(*coco_set.write(), on_degenerate="skip").images_without_objects == 2


def test_other_on_degenerate(coco_set: CocoSet) -> None:
    with pytest.raises(ValueError, match="expected on_degenerate 'error' or 'skip', got 'drop'"):
        check_dataset(*coco_set.write(), on_degenerate="drop")  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0, 0.02, 0.3, 1]))
def test_run_lengths_of_real_masks_are_accepted(h: int, w: int, seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((h, w)) < density).astype(np.uint8)
    for encoded in (compressed(mask), {"size": [h, w], "counts": runs(mask)}):
        assert segmentation_fault(encoded, (h, w)) is None
        assert segmentation_fault({**encoded, "size": [h, w + 1]}, (h, w + 1)) is not None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_bytes_are_judged_as_their_string(counts: list[int]) -> None:
    """Written by a plain loop; from the fourth run on, as the difference to the run two before."""
    text = "".join(number(run - (counts[k - 2] if k > 2 else 0)) for k, run in enumerate(counts))
    for encoded in (text, text.encode(), counts):
        assert run_pixels(encoded) == sum(counts)
    for broken in (text + "P", text + number(-(10**6) - 1)):  # an unfinished number, and a negative run
        assert run_pixels(broken) is run_pixels(broken.encode()) is None


def test_large_runs() -> None:
    mask = np.zeros((3000, 5000), dtype=np.uint8)
    mask[5, 4999] = 1
    assert segmentation_fault(compressed(mask), mask.shape) is None


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=[chr(k) for k in range(40, 120)], max_size=12))
def test_any_string_is_judged(counts: str) -> None:
    fault = segmentation_fault({"size": [4, 5], "counts": counts}, (4, 5))
    assert fault is None or "expected" in fault


def test_imports_and_what_is_missing() -> None:
    program = """
import sys
import solo_attn, solo_attn.ops
assert "pycocotools" not in sys.modules
sys.modules["pycocotools"] = None
try:
    import solo_attn.data
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pycocotools" in done.stdout
    assert 'pip install -e ".[train]"' in done.stdout


def test_summary_is_plain_data() -> None:
    assert json.dumps(vars(DatasetSummary(1, 0, 2, 0, 1)))
