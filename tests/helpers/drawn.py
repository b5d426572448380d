"""`predict` on category scores and masks that were made by hand."""

import math

import torch

from solo_attn.models import InferenceSettings
from solo_attn.models.heads import CellMasks, Head, HeadResult
from solo_attn.models.inference import predict

OFF, SURE = -50.0, 50.0  # sigmoids of exactly 0 and 1 in float32


class Drawn:
    """A head that has drawn its masks already: mask logits [B, S*S, h, w] of each level."""

    def __init__(self, masks, num_classes):
        self.masks, self.num_classes, self.asked = masks, num_classes, []

    def prepare(self, result, images):
        return result

    masks_of = Head.masks_of

    def cell_masks(self, result, level, cells, compared_at=None):
        self.asked.append(level)
        coarse = self.masks[level][cells[:, 0], cells[:, 1]]
        return CellMasks(coarse, None, (2 * coarse.shape[1], 2 * coarse.shape[2]))


def run(categories, masks, size, images=None, originals=None, **options):
    """`predict` from category logits {level: [B, C, S, S]} and mask logits {level: [B, S*S, h, w]}.

    size: of the level of stride 8, (h, w): all masks are compared at twice that.
    """
    some = next(iter(categories.values()))
    count, classes = some.shape[:2]
    logits = [categories.get(k, torch.full((count, classes, 1, 1), OFF)) for k in range(5)]
    head = Drawn(masks, classes)
    levels = [torch.empty(count, 1, *size)] * 5
    result = HeadResult(tuple(logits), tuple(levels), tuple(levels))
    full = [(8 * size[0], 8 * size[1])] * count
    options = InferenceSettings(**options)
    return predict(head, result, images or full, originals or images or full, options), head


def category_map(side, scores, classes=1, images=1):
    """Logits of the given scores {(image, class, row, column): probability}, of 0 elsewhere."""
    logits = torch.full((images, classes, side, side), OFF)
    for place, score in scores.items():
        logits[place] = math.log(score / (1 - score)) if score < 1 else SURE
    return logits


def flat_masks(side, logit, size=(2, 2), images=1):
    return torch.full((images, side * side, *size), float(logit))


def far_apart(side):
    """Cells that no points-NMS window joins."""
    return [(row, column) for row in range(0, side, 2) for column in range(0, side, 2)]
