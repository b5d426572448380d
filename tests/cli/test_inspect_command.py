"""``solo-attn inspect``, and what it makes of a dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from PIL import Image
from small_coco import CocoSet

from solo_attn.data import CocoInstances
from solo_attn.inspection import contact_sheet, grid_setting, inspect_dataset, with_proposal
from solo_attn.training import Config, load_config

SMALL = """
model:
  {backbone: resnet18, norm: gn, fpn_channels: 32, head_channels: 32, num_convs: 1,
  min_size: 128, max_size: 256, num_grids: [8, 6, 4, 3, 2],
  scale_ranges: [[1, 32], [24, 64], [48, 128], [96, 256], [192, 2048]]}
train: {epochs: 1, batch_size: 2, warmup_steps: 1, accelerator: cpu}
data: {workers: 0}
"""


def arguments(root: Path, converted: Path) -> list[object]:
    images = root / "leftImg8bit"
    return [
        *("--images", images / "train", "--annotations", converted / "instances_train.json"),
        *("--val-images", images / "val", "--val-annotations", converted / "instances_val.json"),
    ]


def test_inspect_writes_what_train_takes(root: Path, converted: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    mine, out = tmp_path / "new" / "mine.yaml", tmp_path / "report"
    code, text = run(
        "inspect",
        *arguments(root, converted),
        "--config",
        tmp_path / "small.yaml",
        "--out",
        out,
        "--write",
        mine,
    )
    assert code == 0
    report = json.loads((out / "inspect.json").read_text())
    assert report["objects"] > 20
    for name in (
        "objects in an image",
        "never learned",
        "As set",
        "Proposed",
        "model.num_grids: [8, 6, 4, 3, 2] -> [",
    ):
        assert name in text
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 300
    before, after = load_config(tmp_path / "small.yaml"), load_config(mine)
    assert list(after.model.num_grids) == report["proposal"]["num_grids"] != list(before.model.num_grids)
    assert after.model.head_channels == 32
    code, text = run("train", mine, "--out", tmp_path / "run")
    assert code == 0
    assert "Average Precision" in text


def test_inspect_takes_the_data_of_the_configuration(root: Path, converted: Path, tmp_path: Path) -> None:
    where = arguments(root, converted)
    keys = ("train_images", "train_annotations", "val_images", "val_annotations")
    data = [f"data.{key}={path}" for key, path in zip(keys, where[1::2], strict=True)]
    (tmp_path / "small.yaml").write_text(SMALL)
    command = ["inspect", "--config", tmp_path / "small.yaml", "--out", tmp_path / "out"]
    code, text = run(*command, *data, "--write", tmp_path / "mine.yaml")
    assert code == 0, text
    assert f"{where[3]}, images in {where[1]}\n" in text
    written = load_config(tmp_path / "mine.yaml").data
    assert [getattr(written, key) for key in keys] == [str(path) for path in where[1::2]]
    told = (
        "error: inspect: expected --images and --annotations, or a --config that has data.train_images and "
    )
    told += "data.train_annotations, got "
    for given, got in ((command[1:3], f"{tmp_path / 'small.yaml'} without them"), ([], "neither")):
        code, text = run("inspect", *given, "--out", tmp_path / "out")
        assert (code, text.strip()) == (2, told + got)
    code, text = run(*command, *data, *where[:2])
    assert (code, "expected --annotations with --images" in text) == (2, True)


def test_inspect_errors(root: Path, converted: Path, tmp_path: Path) -> None:
    data = arguments(root, converted)[:4]
    code, text = run("inspect", *data, "--write", tmp_path / "c.yaml", "--out", tmp_path)
    assert (code, "--val-images" in text) == (2, True)
    content = json.loads((converted / "instances_train.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(content | {"annotations": []}))
    data[3] = tmp_path / "none.json"
    code, text = run("inspect", *data, "--out", tmp_path)
    assert (code, "to have an object with a pixel, got none" in text) == (2, True)


def test_inspect_of_masks_without_a_pixel(root: Path, converted: Path, tmp_path: Path) -> None:
    content = json.loads((converted / "instances_train.json").read_text())
    shape = [[10.1, 10.1, 10.4, 10.1, 10.4, 10.4, 10.1, 10.4]]
    tiny = {"bbox": [10.1, 10.1, 0.3, 0.3], "segmentation": shape, "area": 0.09, "iscrowd": 0}
    content["annotations"] = [{**content["annotations"][0], **tiny}]
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    images = root / "leftImg8bit" / "train"
    code, text = run(
        "inspect", "--images", images, "--annotations", tmp_path / "tiny.json", "--out", tmp_path
    )
    told = f"error: inspect: expected {tmp_path / 'tiny.json'} to have an object with a pixel, got none"
    assert (code, text.strip()) == (2, told)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(
    ("given", "missing"), [("--val-images", "--val-annotations"), ("--val-annotations", "--val-images")]
)
def test_inspect_refuses_half_of_the_validation_data(
    root: Path, converted: Path, tmp_path: Path, given: str, missing: str, write: bool
) -> None:
    """Also where a configuration has its own, which would be taken in silence."""
    config = Config.from_dict({"data": {"val_images": "images", "val_annotations": "a.json"}})
    config.save(tmp_path / "c.yaml")
    more = ["--write", tmp_path / "mine.yaml"] if write else []
    data = arguments(root, converted)[:4]
    where = ["--config", tmp_path / "c.yaml", "--out", tmp_path / "out"]
    code, text = run("inspect", *data, *where, *more, given, tmp_path)
    told = f"error: inspect: expected {missing} with {given}, got {given} {tmp_path} alone"
    assert (code, text.strip()) == (2, told)
    assert not (tmp_path / "mine.yaml").exists()


def test_what_is_reported(root: Path, converted: Path) -> None:
    dataset = CocoInstances(root / "leftImg8bit" / "train", converted / "instances_train.json")
    setting = grid_setting(load_config(None).as_dict())
    found = inspect_dataset(dataset, setting)
    entries = [a for a in dataset.coco.anns.values() if not a["iscrowd"]]
    assert found.objects == len(entries) == found.small + found.medium + found.large
    assert found.small == sum(a["area"] < 32**2 for a in entries)
    assert found.medium == sum(32**2 <= a["area"] < 96**2 for a in entries)
    assert found.image_sizes == {"256 x 128": 6}
    cars = [a for a in entries if a["category_id"] == 26]
    assert found.classes["car"] == (len(cars), len({a["image_id"] for a in cars}))
    numbers = [sum(a["image_id"] == k for a in entries) for k in range(1, 7)]
    assert (found.per_image[0], found.per_image[-1]) == (min(numbers), max(numbers))
    assert found.proposal_count.collisions <= found.count.collisions
    assert json.loads(json.dumps(found.as_dict()))["images"] == 6


def test_contact_sheet_begins_with_the_fullest(root: Path, converted: Path, tmp_path: Path) -> None:
    dataset = CocoInstances(root / "leftImg8bit" / "train", converted / "instances_train.json")
    contact_sheet(dataset, tmp_path / "a.png", count=3, columns=3)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (3 * 324 + 4, 164 + 4)  # images are half as high as wide
        pixels = np.asarray(sheet)
    assert len(np.unique(pixels[4:164, 4:324].reshape(-1, 3), axis=0)) > 10


def test_proposal_scales_what_goes_with_the_input(root: Path, converted: Path) -> None:
    dataset = CocoInstances(root / "leftImg8bit" / "train", converted / "instances_train.json")
    data = {"shortest_size": [32, 48], "crop_size": [40, 60]}
    config = Config.from_dict(
        {"model": {"min_size": [24, 48], "max_size": 90, "max_detections": 3}, "data": data}
    )
    found: Any = inspect_dataset(dataset, grid_setting(config.as_dict()))
    assert found.setting.min_size == 48
    after = Config.from_dict(with_proposal(config.as_dict(), found))
    factor = found.proposal.min_size / 48
    assert factor > 1
    assert after.model.min_size == [24 * factor, 48 * factor]
    assert after.data.shortest_size == [32 * factor, 48 * factor]
    assert list(after.data.crop_size) == [40 * factor, 60 * factor]
    assert after.model.max_detections == max(found.per_image)
    assert config.model.min_size == [24, 48]  # a copy


def test_limits_are_raised_each_for_itself(root: Path, converted: Path) -> None:
    """A model that finds 400 may still be measured with COCO's 100."""
    dataset = CocoInstances(root / "leftImg8bit" / "train", converted / "instances_train.json")
    config = Config.from_dict({"model": {"max_detections": 400}})
    found = inspect_dataset(dataset, grid_setting(config.as_dict()))
    after = Config.from_dict(
        with_proposal(config.as_dict(), replace(found, per_image=[*found.per_image[:-1], 300.0]))
    )
    assert (after.model.max_detections, after.train.eval_max_detections) == (400, 300)


def test_values_of_images_of_16_bits(coco_set: CocoSet, tmp_path: Path) -> None:
    """By which model.percentiles is chosen: of the file's own values, not of what they are scaled to."""
    values = np.linspace(0, 60_000, 20 * 30).astype(np.uint16).reshape(20, 30)
    for name, factor in (("7.png", 1), ("3.png", 0.5)):
        Image.fromarray((values * factor).astype(np.uint16)).save(coco_set.images / name)
    images, annotations = coco_set.write()
    data = ["inspect", "--images", images, "--annotations", annotations, "--out", tmp_path]
    code, text = run(*data)
    assert (code, "model.percentiles scales it" in text) == (2, True), text
    code, text = run(*data, "model.percentiles=[0.5, 99.5]")
    assert code == 0, text
    for told in ("2 of uint16", "the percentiles 0.5 and 99.5 of each channel", "60000"):
        assert told in " ".join(text.split())
    found = json.loads((tmp_path / "inspect.json").read_text())["values"]
    assert (found["images"], found["dtypes"]) == (2, {"uint16": 2})
    assert (found["lowest"][0], found["lowest"][-1], found["highest"][-1]) == (0, 30_000, 60_000)
    assert found["highest"][found["percentiles"].index(50)] == pytest.approx(30_000, abs=100)
