"""Steps 1 to 8 of docs/method.md, "Inference", in sizes that do not depend on the scores.

Nothing waits for the device and every shape follows from those of the arguments, so that a CUDA graph can
hold it. Of each level the K best (cell, class) pairs are drawn, candidates or not; those that are none have a
score of 0 and change nothing. The result is that of `inference` wherever K pairs are enough, and says where
they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import mask_bits_levels, matrix_nms
from .candidates import Candidates, Drawn, best_pairs, points_nms
from .heads import STRIDES, Head, HeadResult
from .settings import InferenceSettings

CANDIDATES = 256  # K


@dataclass(frozen=True)
class Detections:
    """What is found in a batch of B images, D rows for each, the best first.

    Attributes:
        scores: float32 [B, D], 0 from row ``count`` on.
        labels: int64 [B, D].
        masks: int64 [B, D], index of the row's mask among those of ``drawn``.
        count: int64 [B], rows that are instances.
        left_out: int64 [B], pairs above ``score_threshold`` that K left out; where it is not 0, a larger K
            may find more.
        drawn: all pairs and their masks; each image has K (or S*S*C) of a level.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    count: Tensor
    left_out: Tensor
    drawn: Drawn

    def kept(self, count: list[int]) -> Candidates:
        """The instances alone, by image; ``count`` is the attribute, which the host knows by now."""

        def joined(rows: Tensor) -> Tensor:
            return torch.cat([row[:n] for row, n in zip(rows, count, strict=True)])

        image = torch.arange(len(count), device=self.labels.device)[:, None].expand_as(self.labels)
        return Candidates(*map(joined, (image, self.labels, self.scores, self.masks)))


def find_detections(
    head: Head, result: HeadResult, options: InferenceSettings, candidates: int = CANDIDATES
) -> Detections:
    """The instances of each image of a batch, before their masks have the image's size.

    Args:
        head: makes the masks.
        result: what it made of the pyramid.
        options: thresholds and limits.
        candidates: K.
    """
    drawn, left_out = _draw(head, result, options, candidates)
    pairs = drawn.candidates
    batch = len(left_out)
    labels, scores, masks = (x.unflatten(0, (batch, -1)) for x in (pairs.label, pairs.score, pairs.mask))
    # Step 5.
    scores, best = (x[:, : options.nms_pre] for x in scores.sort(dim=1, descending=True, stable=True))
    labels, masks = labels.gather(1, best), masks.gather(1, best)
    # Steps 6 and 7 for all images at once: labels are made to differ between images.
    image = torch.arange(batch, device=labels.device)[:, None]
    assert drawn.bits is not None
    decayed = matrix_nms(
        drawn.bits.select(masks.flatten()),
        (image * head.num_classes + labels).flatten(),
        scores.flatten(),
        options.nms_kernel,
        options.nms_sigma,
    ).view_as(scores)
    alive = (scores > 0) & (decayed >= options.final_score_threshold)
    # Step 8.
    ranked = torch.where(alive, decayed, -1.0).sort(dim=1, descending=True, stable=True)
    scores, best = (x[:, : options.max_detections] for x in ranked)
    found = scores >= 0
    return Detections(
        torch.where(found, scores, 0.0),
        labels.gather(1, best),
        masks.gather(1, best),
        found.sum(1),
        left_out,
        drawn,
    )


def _draw(head: Head, result: HeadResult, options: InferenceSettings, count: int) -> tuple[Drawn, Tensor]:
    """Steps 1 to 4: pairs of all levels by image, their score 0 where they are none; what K left out."""
    out_size = result.compared_at
    batch = len(result.features[0])
    image = torch.arange(batch, device=result.features[0].device)[:, None]
    chosen: dict[int, Tensor] = {}
    labels, scores, places, least, missing, start = [], [], [], [], [], 0
    for level, logits in enumerate(result.category_logits):
        kept = points_nms(logits.float().sigmoid())
        score, pair, left_out = best_pairs(kept, options.score_threshold, count)
        pair, order = pair.sort(dim=1)  # of equal scores, the first by index is the better one
        cells = pair // head.num_classes
        chosen[level] = torch.stack([image.expand_as(cells), cells], dim=2).flatten(0, 1)
        labels.append(pair % head.num_classes)
        scores.append(score.gather(1, order))
        places.append(torch.arange(start, start + pair.numel(), device=pair.device).view_as(pair))
        least.append(torch.full_like(pair, STRIDES[level]))
        missing.append(left_out)
        start += pair.numel()
    result = head.prepare(result, dict.fromkeys(chosen))
    masks = head.fixed_masks_of(result, chosen, out_size)
    bits = mask_bits_levels(masks, out_size, options.mask_threshold)
    label, score, mask, area = (torch.cat(parts, dim=1) for parts in (labels, scores, places, least))
    score = torch.where(bits.areas[mask] > area, score * bits.maskness[mask].float(), 0.0)
    pairs = Candidates(*(x.flatten() for x in (image.expand_as(label), label, score, mask)))
    return Drawn(pairs, [*chosen.items()], masks, bits, out_size), torch.stack(missing).sum(0)
