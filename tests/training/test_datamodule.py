"""What a data module refuses before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from solo_attn.data import DatasetError
from solo_attn.models import build_solo
from solo_attn.training import Config, ConfigError, SOLODataModule, train


def write_set(folder: Path, name: str, size: tuple[int, int]) -> dict[str, str]:
    """One image of (width, height) with one object."""
    width, height = size
    Image.new("RGB", size).save(folder / f"{name}.png")
    whole = [0, 0, width, 0, width, height, 0, height]
    content: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": 7, "file_name": f"{name}.png", "height": height, "width": width}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 1,
                "bbox": [0, 0, width, height],
                "segmentation": [whole],
                "area": width * height,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {f"{name}_images": str(folder), f"{name}_annotations": str(folder / f"{name}.json")}


def configured(
    folder: Path,
    *,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **sizes: tuple[int, int],
) -> Config:
    parts: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        parts |= write_set(folder, name, sizes.get(name, (60, 40)))
    settings = {"min_size": 64, "max_size": 128, **(model or {})}
    return Config.from_dict({"data": {**parts, **(data or {})}, "model": settings})


def read(config: Config) -> SOLODataModule:
    data = SOLODataModule(config)
    data.setup("fit")
    return data


def test_data_is_read_once_and_not_when_it_is_named(tmp_path: Path) -> None:
    config = configured(tmp_path)
    annotations = Path(config.data.train_annotations)
    data = read(config)
    first = data.train_set
    annotations.unlink()
    data.setup("validate")
    assert data.train_set is first
    with pytest.raises(ConfigError, match=rf"data\.train_annotations .* got {annotations}"):
        SOLODataModule(config).setup("fit")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_image_too_thin_for_the_model_is_refused(tmp_path: Path, part: str) -> None:
    config = configured(tmp_path, **{part: (500, 1)})  # type: ignore[arg-type]
    with pytest.raises(DatasetError) as caught:
        train(config, tmp_path / "run")
    (line,) = str(caught.value).splitlines()[1:]
    assert f"{tmp_path / part}.png (image id 7)" in line
    assert "model.min_size 64, model.max_size 128, got 500 x 1" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [(127, 1), (128, 1), (129, 1), (1, 129), (258, 2), (255, 2), (384, 3)])
def test_what_is_refused_is_what_cannot_be_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    small = {"backbone": "resnet18", "fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    model = build_solo(1, norm="gn", min_size=64, max_size=128, **small)  # type: ignore[arg-type]
    try:
        model.eval().transform([torch.zeros(3, size[1], size[0])])
        fits = True
    except RuntimeError:
        fits = False
    config = configured(tmp_path, val=size)
    if fits:
        read(config)
    else:
        with pytest.raises(DatasetError, match=f"got {size[0]} x {size[1]}"):
            read(config)


@pytest.mark.parametrize("settings", [{"data": {"crop_size": 32}}, {"model": {"resize_in_training": False}}])
def test_a_thin_training_image_that_is_not_resized_stays(tmp_path: Path, settings: dict[str, Any]) -> None:
    read(configured(tmp_path, train=(500, 1), **settings))


@pytest.mark.parametrize("model", [{"min_size": []}, {"min_size": 0}, {"max_size": 0}])
def test_sizes_that_make_no_model_are_no_fault_of_the_images(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(min|max)_size"):
        train(configured(tmp_path, model=model), tmp_path / "run")


@pytest.mark.parametrize(("key", "kind"), [("train_images", "folder"), ("val_annotations", "file")])
def test_a_path_that_is_not_there_is_told_with_its_setting(tmp_path: Path, key: str, kind: str) -> None:
    config = configured(tmp_path)
    setattr(config.data, key, "nowhere")
    message = (
        rf"^config: expected data\.{key} to be a {kind}, got nowhere, which is not there; .*docs/data\.md "
    )
    with pytest.raises(ConfigError, match=message):
        read(config)


def test_crowded_images_are_drawn_more_often(tmp_path: Path) -> None:
    """By (objects + 1) ** sample_power, in which crowd regions and the empty image count as none."""
    config = configured(tmp_path)
    annotations = json.loads(Path(config.data.train_annotations).read_text())
    (image,), (one,) = annotations["images"], annotations["annotations"]
    annotations["images"] = [image, {**image, "id": 8}]
    annotations["annotations"] = [{**one, "id": k + 1} for k in range(8)]
    Path(config.data.train_annotations).write_text(json.dumps(annotations))
    config.data.sample_power = 0.5
    loader = read(config).train_dataloader()
    assert loader.sampler.weights.tolist() == [3.0, 1.0]  # type: ignore[union-attr]
    config.data.sample_power = 0.0
    assert read(config).train_dataloader().sampler.weights is None  # type: ignore[union-attr]
