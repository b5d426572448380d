"""Run a trained model over a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data import CocoInstances, collate
from ..evaluation import CocoMetrics, coco_results, evaluate
from ..models import SOLO


def evaluate_model(
    model: SOLO,
    dataset: CocoInstances,
    *,
    batch_size: int = 1,
    workers: int = 0,
    max_detections: int = 100,
    advance: Callable[[int], None] | None = None,
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """COCO's twelve numbers of a model on a data set, and the results they were made from.

    Args:
        model: on the device that it shall run on.
        dataset: with `eval_transforms`.
        batch_size: images at a time.
        workers: processes that load images.
        max_detections: best instances of an image that count; COCO's numbers are defined with 100.
        advance: called with the number of images done after each batch.
    """
    device = next(model.parameters()).device
    loader = DataLoader(dataset, batch_size, collate_fn=collate, num_workers=workers)
    model.eval()
    results: list[dict[str, Any]] = []
    for images, targets in loader:
        with torch.inference_mode():
            predictions = model([image.to(device) for image in images])
        for target, prediction in zip(targets, predictions, strict=True):
            results += coco_results(int(target["image_id"]), prediction, dataset.category_ids)
        if advance is not None:
            advance(len(images))
    return evaluate(dataset.coco, results, max_detections=max_detections), results
