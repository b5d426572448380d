"""A small dataset in Cityscapes' layout, and the same converted."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_cityscapes
from command_line import run

CLASSES = "person,rider,car,truck,bus,bicycle"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cityscapes.write(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="session")
def converted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    code, text = run("convert", "cityscapes", root, out, "--classes", CLASSES)
    assert code == 0
    assert f"{out / 'instances_train.json'}: 6 images" in text
    assert f"its images: {root / 'leftImg8bit' / 'val'}" in text
    return out
