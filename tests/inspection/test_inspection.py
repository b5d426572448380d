"""What `inspect` draws; tests/cli/test_cli_data.py has the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

import torch
from PIL import Image

from solo_attn.data import CocoInstances
from solo_attn.inspection import sheet


def test_the_contact_sheet_goes_by_objects_not_by_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crowd regions and boxes without width are not drawn, and do not count."""
    boxes = {1: [[2, 2, 5, 5]], 2: [[2, 2, 5, 5]] * 3, 3: [[2, 2, 5, 5], [9, 9, 4, 4]], 4: [[1, 1, 0, 4]] * 4}
    content: dict[str, list[dict[str, Any]]] = {"categories": [{"id": 1, "name": "a"}], "annotations": []}
    content["images"] = [{"id": k, "file_name": f"{k}.png", "height": 20, "width": 30} for k in boxes]
    for image_id, listed in boxes.items():
        Image.new("RGB", (30, 20)).save(tmp_path / f"{image_id}.png")
        for box in listed:
            x, y, w, h = box
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": 1,
                "bbox": box,
            }
            shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            entry |= {"area": w * h, "segmentation": shape, "iscrowd": int(image_id == 2)}
            content["annotations"].append(entry)
    (tmp_path / "set.json").write_text(json.dumps(content))
    drawn: list[int] = []

    def draw(image: torch.Tensor, found: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
        drawn.append(len(found["labels"]))
        return image

    monkeypatch.setattr(sheet, "draw_instances", draw)
    dataset = CocoInstances(tmp_path, tmp_path / "set.json", on_degenerate="skip")
    sheet.contact_sheet(dataset, tmp_path / "sheet.png")
    assert drawn == [2, 1, 0, 0]
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (4 * 324 + 4, 213 + 8), "no room for pictures of another shape"
    Image.new("RGB", (20, 30)).save(tmp_path / "1.png")
    content["images"][0] |= {"height": 30, "width": 20}
    (tmp_path / "set.json").write_text(json.dumps(content))
    dataset = CocoInstances(tmp_path, tmp_path / "set.json", on_degenerate="skip")
    sheet.contact_sheet(dataset, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (4 * 324 + 4, 320 + 8), "one is higher than wide"
