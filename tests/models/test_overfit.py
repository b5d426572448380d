"""Each system learns one image by heart: the losses, targets and inference belong together."""

import json
import math

import pytest
import torch
from small_solo import SYSTEMS, rectangles, small

from solo_attn.evaluation import coco_results, evaluate

SIZE = (64, 96)
# Two look-alikes side by side (class 0), two more of different sizes, and one that is unlike all others.
BOXES = [(4, 8, 28, 32), (32, 8, 56, 32), (64, 4, 92, 28), (8, 40, 36, 60), (48, 36, 88, 60)]
LABELS = [0, 0, 1, 1, 2]
STEPS, WARMUP, RATE = 130, 20, 0.2


def picture():
    image = 0.4 + 0.05 * torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    for (x1, y1, x2, y2), label in zip(BOXES, LABELS, strict=True):
        image[label, y1:y2, x1:x2] += 0.5
    return image, rectangles(BOXES, LABELS, SIZE)


def ground_truth(target, path):
    """Write the target as COCO annotations."""
    results = coco_results(1, {**target, "masks": target["masks"].bool(), "scores": torch.ones(5)}, [1, 2, 3])
    for number, result in enumerate(results):
        mask = target["masks"][number]
        result.update(id=number + 1, iscrowd=0, area=float(mask.sum()))
        del result["score"]
    content = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": results,
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_image_is_learnt_by_heart(system, tmp_path):
    # A grid that keeps the look-alikes' cells apart: points-NMS joins neighbours.
    model = small(system, seed=1, num_convs=2, num_grids=(16, 12, 8, 6, 4), attention_scale="cosine").train()
    image, target = picture()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    history = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        losses = model([image], [target])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[0]["loss_mask"] > 2.5  # dice near 1, times lambda
    assert history[-1]["loss_mask"] < 0.6
    assert history[-1]["loss_category"] < 0.1 < history[0]["loss_category"]

    (found,) = model.eval()([image])
    metrics = evaluate(ground_truth(target, tmp_path / "truth.json"), coco_results(1, found, [1, 2, 3]))
    # Rounding steers so short a training: allow for one object of five, where all are usually found.
    assert metrics.ap50 > 0.75
    assert metrics.ap > 0.5  # masks are drawn at stride 4 at best
