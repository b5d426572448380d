"""Other people's files that were once taken in silence, or ended the process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from PIL import Image
from small_coco import HEIGHT, WIDTH, CocoSet

from solo_attn._utils.limits import Limits, limits
from solo_attn._utils.text import name_fault, printable, shown
from solo_attn.data import CocoInstances, DatasetError, ImageError, check_dataset, read_image
from solo_attn.data.images import file_fault
from solo_attn.evaluation import evaluate
from solo_attn.formats.labelme import shape_mask
from solo_attn.models import CheckpointError, ModelInfo, build_solo, load_model, save_model
from solo_attn.predictor import load

SIZE = (HEIGHT, WIDTH)


def on(image_id: int, orientation: int, size: tuple[int, int] = SIZE) -> Callable[[CocoSet], Any]:
    """Store an image of that (height, width) with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3))
    return lambda s: s.save(image_id, image, exif=exif)


def with_ids(old: int, new: int) -> Callable[[CocoSet], Any]:
    def change(s: CocoSet) -> None:
        for entry in (*s.content["images"], *s.content["annotations"]):
            for key in ("id", "image_id"):
                if entry.get(key) == old:
                    entry[key] = new

    return change


def named(name: Any) -> Callable[[CocoSet], Any]:
    return lambda s: s.content["categories"][0].update(name=name)


def shaped(segmentation: Any, **more: Any) -> Callable[[CocoSet], Any]:
    return lambda s: s.annotation(11).update(segmentation=segmentation, **more)


ZIGZAG = [
    c for k in range(30_000) for c in (290.0 * (k % 2), k % 200 * 1.0)
]  # long ways inside what is allowed

FAULTS: dict[str, tuple[Callable[[CocoSet], Any], str]] = {
    "upside down": (on(3, 3), "expected an image without EXIF orientation, got 3"),
    "mirrored": (on(3, 2), "without EXIF orientation, got 2"),
    "annotated neither way": (on(3, 6, (10, 30)), r"as annotated, got 30 x 10 \(or 10 x 30 by its EXIF"),
    "id of 64 bits": (with_ids(3, 2**63), "expected an integer id of 64 bits .* got 9223372036854775808"),
    "id far below": (with_ids(3, -(2**70)), "expected an integer id of 64 bits"),
    "endless name": (named("x" * 2_000_000), "name of at most 200 characters, got 2000000"),
    "half a character": (named("a\ud800"), r"without control characters, got 'a\\+ud800'"),
    "a terminal's command": (named("\x1b[31mred"), r"without control characters, got '\\+x1b\[31mred'"),
    "two lines": (named("a\nb"), "without control characters"),
    "turned text": (named("a\u202eb"), "without control characters"),
    "no text": (named(7), "expected a name to be text, got 7"),
    "nothing": (named(" "), "expected a name to be text"),
    "sizes as floats": (shaped({"size": [20.0, 30.0], "counts": [600]}), "run-length encoding of size"),
    "a run that is true": (shaped({"size": [20, 30], "counts": [599, True]}), "runs as a list"),
    "pairs": (shaped([[[1, 1], [5, 5], [9, 1], [2, 2], [3, 3], [4, 4]]]), "polygons of finite numbers"),
    "numbers as text": (shaped([["1", "1", "5", "5", "9", "1"]]), "polygons of finite numbers"),
    "truth as number": (shaped([[True, 1, 5, 5, 9, 1]]), "polygons of finite numbers"),
    "many points": (shaped([[1.0, 2.0] * 300_000]), "at most 100000 points .*POLYGON_POINTS.*, got 300000"),
    "long ways": (shaped([ZIGZAG]), "at most 2000000 pixels of outline"),
    "long ways in parts": (shaped([ZIGZAG[:20_000]] * 3), "pixels of outline"),
    "a far box": (shaped([[4, 3, 13, 3, 13, 11]], bbox=[0, 0, 1e300, 1]), "bbox in pixels of the image"),
    "a long file name": (lambda s: s.content["images"][1].update(file_name="x" * 5000), "cannot be read"),
    "a file name with a null": (lambda s: s.content["images"][1].update(file_name="a\0b"), r"image id 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(coco_set: CocoSet, name: str) -> None:
    spoil, message = FAULTS[name]
    spoil(coco_set)
    with pytest.raises(DatasetError, match=message) as caught:
        check_dataset(*coco_set.write())
    assert len(str(caught.value)) < 7000
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_photo_is_read_as_it_was_annotated(coco_set: CocoSet, orientation: int) -> None:
    on(3, orientation, (WIDTH, HEIGHT))(coco_set)  # stored on its side, annotated upright
    dataset = CocoInstances(*coco_set.write())
    image, _ = dataset[0]
    assert torch.equal(image, read_image(coco_set.images / "3.png"))
    on(3, orientation)(coco_set)  # annotated as stored
    image, _ = CocoInstances(*coco_set.write())[0]
    assert torch.equal(image, read_image(coco_set.images / "3.png", exif=False))


def test_the_largest_ids_work(coco_set: CocoSet) -> None:
    with_ids(7, 2**63 - 1)(coco_set)
    images, annotations = coco_set.write()
    dataset = CocoInstances(images, annotations)
    assert int(dataset[1][1]["image_id"]) == 2**63 - 1
    found = [
        {**{k: a[k] for k in ("image_id", "category_id")}, "score": 0.9, "segmentation": a["segmentation"]}
        for a in coco_set.content["annotations"]
        if a["id"] == 12
    ]
    assert evaluate(annotations, found).ap == pytest.approx(0.5)  # of two classes one


@pytest.mark.parametrize("segmentation", [[], None, [[1, 1]]])
def test_what_promises_to_skip_skips(coco_set: CocoSet, segmentation: Any) -> None:
    coco_set.annotation(11).update(segmentation=segmentation, bbox=[4, 3, 0, 0])
    images, annotations = coco_set.write()
    with pytest.raises(DatasetError, match="width and height above 0"):
        check_dataset(images, annotations)
    dataset = CocoInstances(images, annotations, on_degenerate="skip")
    assert dataset.summary.degenerate == 1
    assert len(dataset[1][1]["labels"]) == 2
    assert evaluate(dataset.coco, []).ap == 0


def test_as_many_annotations_as_an_image_may_have(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "image_annotations", 3)
    with pytest.raises(DatasetError, match=r"at most 3 annotations .*MAX_IMAGE_ANNOTATIONS\), got 4"):
        check_dataset(*coco_set.write())


def test_pixels_and_formats_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(limits, "image_pixels", 1199)
    with pytest.raises(ImageError, match=r"at most 1199 pixels \(SOLO_ATTN_MAX_IMAGE_PIXELS\), got 40 x 30"):
        read_image(path)
    for compression in ("raw", "tiff_adobe_deflate"):  # tifffile could read them too
        Image.new("RGB", (40, 30)).save(tmp_path / "a.tif", compression=compression)
        with pytest.raises(ImageError, match=r"at most 1199 pixels .*, got 40 x 30"):
            read_image(tmp_path / "a.tif")
        told = file_fault(tmp_path / "a.tif", {"height": 30, "width": 40}, False, None)
        assert told is not None
        assert "at most 1199 pixels" in told
    Image.new("RGB", (4, 3)).save(path, format="EPS")  # PIL would start Ghostscript
    with pytest.raises(ImageError, match="cannot identify image file"):
        read_image(path)


def test_pages_beyond_the_first_are_said(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="2 pages or frames, of which the first is read"):
        read_image(tmp_path / "a.tif")
    pages[0].save(tmp_path / "b.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "b.tif")


def test_json_has_a_limit(coco_set: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    images, annotations = coco_set.write()
    monkeypatch.setattr(limits, "json_bytes", 100)
    with pytest.raises(DatasetError, match=r"at most 100 bytes \(SOLO_ATTN_MAX_JSON_BYTES\)"):
        check_dataset(images, annotations)


CORNERS = [[10, 5], [20, 5], [20, 15], [10, 15]]
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "turned rectangle": (
        {"points": [[10, 5], [20, 6], [19, 15], [9, 14]]},
        "corners along the image's sides",
    ),
    "rectangle of three": ({"points": CORNERS[:3]}, "2 or 4 points"),
    "circle of four": ({"shape_type": "circle", "points": CORNERS}, "2 points .* of a circle"),
    "oriented of five": ({"shape_type": "oriented_rectangle", "points": [*CORNERS, [1, 1]]}, "4 points"),
    "points as text": ({"shape_type": "polygon", "points": ["12", "34", "56"]}, "at least 3 points"),
    "numbers as text": ({"shape_type": "polygon", "points": [["1", "2"]] * 3}, "at least 3 points"),
    "three coordinates": ({"shape_type": "polygon", "points": [[1, 2, 3]] * 3}, "at least 3 points"),
    "far away": ({"shape_type": "polygon", "points": [[1, 2], [3, 1e9], [5, 6]]}, "at least 3 points"),
    "type a list": ({"shape_type": ["rectangle"], "points": CORNERS}, "shape_type with an area"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_labelme_are_read_whole_or_named(name: str) -> None:
    shape, message = SHAPES[name]
    with pytest.raises(DatasetError, match=f"^here.*{message}"):
        shape_mask("here", {"label": "a", "shape_type": "rectangle", **shape}, SIZE)


def test_a_rectangle_may_have_all_its_corners() -> None:
    both = [
        shape_mask("here", {"label": "a", "shape_type": "rectangle", "points": points}, SIZE)
        for points in (CORNERS, CORNERS[::-1], [CORNERS[0], CORNERS[2]])
    ]
    assert both[0].sum() == 11 * 11
    assert all(np.array_equal(mask, both[0]) for mask in both)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in pairwise("abcdefghi")
)
YAML = {
    "aliases": (ALIASES, "unknown key"),
    "aliases in a setting": (f"{ALIASES}train: {{epochs: *i}}", "train.epochs to be"),
    "aliases in a section": (f"{ALIASES}train: *i", "train to"),
    "a date as a setting": ("train: {epochs: 2024-01-01}", "train.epochs to be"),
    "a date that is none": ("train: {epochs: 2024-13-45}", "expected YAML: month must be in 1..12"),
    "digits": (f"train: {{epochs: {'9' * 5000}}}", "expected YAML: Exceeds the limit"),
    "digits of another base": (f"train: {{epochs: 0x{'f' * 5000}}}", "an integer of 20000 bits"),
    "brackets": ("train: " + "[" * 100_000, "at most [0-9]+ brackets"),
    "braces": ("{a: " * 10_000, "at most [0-9]+ brackets"),
    "a key that is a list": ("? [a, b]\n: 1", "expected YAML|expected sections"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_configuration_is_refused_in_one_short_line(tmp_path: Path, name: str) -> None:
    """Some of these once took minutes and gigabytes to be shown."""
    from solo_attn.training import ConfigError, load_config

    text, message = YAML[name]
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 1200
    assert "\n" not in str(caught.value)


def small_file(path: Path, **changes: Any) -> Path:
    settings = {"backbone": "resnet18", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    model = build_solo(2, **settings, num_grids=(4, 3, 2, 2, 2))
    save_model(model, ModelInfo(model.config, ["a", "b"], [1, 2], {}), path)
    content = torch.load(path, weights_only=True)
    for place, value in changes.items():
        info, _, key = place.partition("__")
        (content["solo_attn"][info] if key else content["solo_attn"])[key or info] = value
    torch.save(content, path)
    return path


HUGE: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"model__num_convs": 10**9}, "at most 1000 model layers"),
    "channels": (
        {"model__head_channels": 32 * 10**6},
        "does not fit its own settings: expected at most|version",
    ),
    "classes": ({"model__num_classes": 10**9}, "num_classes|at most"),
    "grids": ({"model__num_grids": [10**6] * 5}, "at most 50000000 model scores"),
    "sides": ({"model__min_size": 10**6, "model__max_size": 10**6}, "at most 100000000 image pixels"),
    "no classes": ({"class_names": None}, "expected class_names to be a list"),
    "fewer names": ({"class_names": ["a"]}, "list of num_classes = 2 entries, got 1"),
    "names that obey": ({"class_names": ["a", "\x1b[2J"]}, "without control characters"),
    "ids beyond": ({"category_ids": [1, 2**64]}, "category_ids of 64 bits"),
    "no settings": ({"model": None}, "expected model to hold settings"),
    "no section": ({"config": {"train": None}}, "expected config.'train' to hold settings"),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_a_checkpoint_asks_for_is_looked_at_first(tmp_path: Path, name: str) -> None:
    changes, message = HUGE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(small_file(tmp_path / "a.ckpt", **changes))
    assert "\x1b" not in str(caught.value)


def test_an_expanded_tensor_takes_no_memory(tmp_path: Path) -> None:
    path = small_file(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    name = next(n for n in content["state_dict"] if n.endswith("conv1.weight"))
    content["state_dict"][name] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"to be float32 \[64, 3, 7, 7\], got float32 \[1000000, 1000000\]"
    ):
        load_model(path)


@pytest.mark.parametrize("tile", [None, 48])
def test_masks_as_pixels_are_limited_and_run_lengths_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int | None
) -> None:
    small = {"score_threshold": 0.0, "final_score_threshold": 0.0, "mask_threshold": 0.01, "tile": tile}
    file = small_file(tmp_path / "a.ckpt", model__min_size=32, model__max_size=64)
    predictor = load(file, "cpu", max_detections=3, tile_overlap=16, **small)
    image = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    found = predictor(image)
    assert len(found) > 0
    monkeypatch.setattr(limits, "mask_bytes", len(found) * 60 * 80 - 1)
    message = rf"at most {limits.mask_bytes} bytes .*MASK_BYTES\), got {len(found)} of 60 x 80 pixels"
    with pytest.raises(ValueError, match=f"predict: .*{message}"):
        predictor.model([image])
    with pytest.raises(ValueError, match=f"Result.masks: .*{message}"):
        _ = found.masks
    assert len(predictor(image).to_coco(1)) == len(found)  # as run lengths
    limits.mask_bytes += 1
    assert found.masks.shape == (len(found), 60, 80)


def test_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_attn._utils import limits as module

    monkeypatch.setenv("SOLO_ATTN_MAX_IMAGE_PIXELS", "500")
    assert module._from_environment().image_pixels == 500
    monkeypatch.setenv("SOLO_ATTN_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="expected image_pixels to be an integer >= 1, got 'many'"):
        module._from_environment()
    with pytest.raises(ValueError, match="image_pixels"):
        Limits().image_pixels = 0


def test_anything_is_shown_in_a_short_line() -> None:
    bomb: Any = "x"
    for _ in range(60):
        bomb = [bomb] * 9
    for value in (bomb, {"a": bomb}, 10**6000, "\x1b" * 10**6, {k: k for k in range(10**4)}):
        assert len(shown(value)) < 100
        assert printable(shown(value)) == shown(value)
    for name in ("人", "मानव", "می‌خواهم", "traffic\u00a0light", "🚗"):
        assert name_fault(name) is None
        assert printable(name) == name


def test_bad_ids_and_scores_of_results(coco_set: CocoSet) -> None:
    _, annotations = coco_set.write()
    good = {
        "image_id": 7,
        "category_id": 20,
        "score": 0.5,
        "segmentation": coco_set.annotation(12)["segmentation"],
    }
    for change in (
        {"image_id": [7]},
        {"category_id": {}},
        {"image_id": True},
        {"score": True},
        {"score": [0.5]},
    ):
        with pytest.raises(ValueError, match=r"^evaluate: expected results\[0\]"):
            evaluate(annotations, [{**good, **change}])
    assert evaluate(annotations, json.loads(json.dumps([good]))).ap > 0
