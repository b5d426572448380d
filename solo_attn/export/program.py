"""The model as a program of fixed sizes, which torch.export can trace: docs/export.md says what differs."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models import SOLO, InferenceSettings
from ..models.candidates import best_pairs, points_nms
from ..models.heads import STRIDES, Head, HeadResult, build_head
from ..models.layers import rows_at
from ..models.solo import SIZE_DIVISIBLE as UNIT
from ..models.solo import normalisation


class Found(NamedTuple):
    """What the program returns, for D = `FixedProgram.detections` rows an image, the best first.

    Attributes:
        scores: float32 [B, D], 0 from row ``count`` on.
        labels: int64 [B, D], 0 from row ``count`` on.
        masks: float32 [B, D, H / 4, W / 4], probabilities, 0 from row ``count`` on.
        count: int64 [B], instances.
        left_out: int64 [B], (cell, class) pairs above ``score_threshold`` that K left out; where it is not 0
            the model itself may find more.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which has no use here
    left_out: Tensor


class FixedProgram(nn.Module):
    """A model's prediction up to the masks at stride 4, with as many candidates for every image.

    Of each level the K best (cell, class) pairs go on, whether there are so many above the threshold or not,
    and their scores are 0 where they are not candidates. From there on the steps are those of
    docs/method.md, "Inference".

    Args:
        model: is not changed; the program has a copy of its weights, on the CPU.
        candidates: K.

    Attributes:
        detections: D, rows of the results: ``max_detections``, or fewer where there are fewer candidates.
    """

    mean: Tensor
    std: Tensor
    head: Head
    backbone: nn.Module
    options: InferenceSettings
    candidates: int
    detections: int

    def __init__(self, model: SOLO, candidates: int) -> None:
        super().__init__()
        # Not a copy of the head: with masks="dense" it would make the masks of all cells too.
        settings = model.settings.model_copy(update={"masks": "chosen"})
        self.head = build_head(model.head.num_classes, settings.fpn_channels, settings)
        self.head.load_state_dict(model.head.state_dict())
        self.backbone = deepcopy(model.backbone)
        self.options = settings
        self.candidates = candidates
        for name, value in zip(("mean", "std"), normalisation(settings), strict=True):
            self.register_buffer(name, torch.tensor(value)[:, None, None])
        self.detections = min(
            sum(self._chosen(side) for side in self.head.num_grids), settings.max_detections
        )
        self.float().cpu().requires_grad_(False).eval()

    def _chosen(self, side: int) -> int:
        """Candidates of a level."""
        return min(self.candidates, side * side * self.head.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images float32 [B, 3, H, W] in 0..1, H and W multiples of 32, to the parts of `Found`.

        A plain tuple: a program that returns a type of this library could not be loaded without it.
        """
        # All of the images, but with sides that are visibly multiples of 32: half of such a side is a
        # multiple of 16, where of other numbers torch.export would keep rounding in ever longer expressions.
        height, width = (images.shape[2] // UNIT) * UNIT, (images.shape[3] // UNIT) * UNIT
        images = (images[:, :, :height, :width] - self.mean) / self.std
        result = self.head(list(self.backbone(images).values()))
        scores, labels, masks, left_out = self._candidates(result)
        scores, best = self._suppressed(scores, labels, masks)
        found = scores >= 0
        return (
            torch.where(found, scores, 0.0),
            torch.where(found, labels.gather(1, best), 0),
            torch.where(found[..., None, None], rows_at(masks, best), 0.0),
            found.sum(1),
            left_out,
        )

    def _candidates(self, result: HeadResult) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps 1 to 4: scores with maskness, 0 of no candidate, labels, probabilities, what K left out."""
        options, head = self.options, self.head
        compared_at = result.compared_at
        every_score, every_label, every_mask = [], [], []
        left_out = result.features[0].new_zeros(result.features[0].shape[0], dtype=torch.int64)
        for level, logits in enumerate(result.category_logits):
            scores, pair, missing = best_pairs(
                points_nms(logits.sigmoid()), options.score_threshold, self._chosen(head.num_grids[level])
            )
            left_out = left_out + missing
            # By index, as the model has them: topk gives equal scores in any order.
            pair, order = pair.sort()
            scores = scores.gather(1, order)
            masks = head.fixed_masks(result, level, pair // head.num_classes, compared_at)
            inside = masks > options.mask_threshold
            area = inside.sum((2, 3))
            maskness = torch.where(inside, masks, 0.0).sum((2, 3)) / area.clamp(min=1)
            every_score.append(torch.where(area > STRIDES[level], scores * maskness, 0.0))
            every_label.append(pair % head.num_classes)
            every_mask.append(masks)
        return torch.cat(every_score, 1), torch.cat(every_label, 1), torch.cat(every_mask, 1), left_out

    def _suppressed(self, scores: Tensor, labels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Steps 5 to 8: the best decayed scores, -1 where there are no more, and their indices, [B, D]."""
        options = self.options
        earlier = _earlier(scores, torch.arange(scores.shape[1], device=scores.device))
        rank = earlier.sum(1)
        alive = (scores > 0) & (rank < options.nms_pre)
        bits = (masks > options.mask_threshold).flatten(2).to(masks.dtype)
        # Counts of pixels are exact in float32 up to 2^24 of them: images of 16,384 x 16,384.
        inter = bits @ bits.transpose(1, 2)
        area = bits.sum(2)
        iou = inter / (area[:, :, None] + area[:, None] - inter).clamp(min=1)
        pairs = earlier & (labels[:, :, None] == labels[:, None]) & alive[:, :, None]
        overlap = torch.where(pairs, iou, 0.0)  # d_ij
        worst = overlap.amax(1)[:, :, None]  # c_i
        if options.nms_kernel == "gaussian":
            decay = torch.exp(options.nms_sigma * (worst.square() - overlap.square()))
        else:
            # A mask with an identical one before it (c_i = 1) decays no other: that one does.
            decay = torch.where(worst < 1, (1 - overlap) / (1 - worst).clamp(min=1e-12), 1.0)
        decayed = scores * torch.where(pairs, decay, 1.0).amin(1).clamp(max=1)
        decayed = torch.where(alive & (decayed >= options.final_score_threshold), decayed, -1.0)
        place = _earlier(decayed, rank).sum(1)
        best = place.topk(self.detections, largest=False).indices
        return decayed.gather(1, best), best


def _earlier(scores: Tensor, index: Tensor) -> Tensor:
    """Whether i stands before j by higher score, then lower index: bool [B, i, j]. No two have one place.

    Args:
        scores: [B, N].
        index: int64 [N] or [B, N], no number twice.
    """
    first, second = scores[:, :, None], scores[:, None]
    return (first > second) | ((first == second) & (index[..., :, None] < index[..., None, :]))
