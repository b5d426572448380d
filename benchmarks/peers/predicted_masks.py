"""Masks that models predicted on COCO images, where they lie beside the repository."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

POOL = Path(__file__).parents[2] / "shared" / "data" / "yolact_pool" / "pool_A.json.gz"
SIZE = (200, 336)  # what SOLO compares masks at, of an image of 800 x 1344
MASKS = 500

needs_pool = pytest.mark.skipif(
    not POOL.exists(), reason="shared/data/yolact_pool is not beside the repository"
)


def pooled_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Bool [n, 200, 336], labels and scores of the busiest images: images apart, so labels made to differ."""
    import pycocotools.mask as coco_mask

    with gzip.open(POOL, "rt", encoding="utf-8") as file:
        results = json.load(file)
    masks, labels, scores = [], [], []
    for number, (image, _) in enumerate(Counter(r["image_id"] for r in results).most_common()):
        for result in (r for r in results if r["image_id"] == image):
            mask = torch.from_numpy(coco_mask.decode(result["segmentation"])).float()
            masks.append(F.interpolate(mask[None, None], SIZE, mode="area")[0, 0] > 0.5)
            labels.append(1000 * number + result["category_id"])
            scores.append(result["score"])
        if len(masks) >= MASKS:
            break
    return torch.stack(masks)[:MASKS], torch.tensor(labels)[:MASKS], torch.tensor(scores)[:MASKS]
