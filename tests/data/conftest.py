from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from small_coco import CocoSet

torch.set_num_threads(1)


@pytest.fixture
def coco_set(tmp_path: Path) -> CocoSet:
    from small_coco import CocoSet  # needs pycocotools, without which the tests skip and not this file

    return CocoSet(tmp_path / "coco")
