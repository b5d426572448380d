"""mmdetection's SOLOv2 head beside ours: the whole head, and its masks alone, from its outputs on.

Of the masks alone both are given the same kernels, features and scores. At 800 x 1344, E = 256 and h x w
200 x 336:

- prediction, 200 candidates: 6.9 GFLOP for the product, 69 MB of features read, 1.7 MB of bits written; then
  the kept masks, 100 at most, 3.4 GFLOP and 60 MB of bool at 600 x 1000;
- losses of 12 objects, K (cell, object) pairs on all levels: 2 K E h w flops forward and three times that
  backward, the features read twice and their gradient (69 MB) written once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solo_attn import MaskFactors, dice_loss, mask_bits, matrix_nms, paste_masks
from solo_attn.bench import inputs
from solo_attn.models import ModelSettings
from solo_attn.models.heads import SOLOv2Head

from .loading import peer
from .mmdet_heads import IMAGE, META, NUM_CLASSES, ORIGINAL, SIZE, copy_weights

OPTIONS = ModelSettings()
GRIDS = OPTIONS.num_grids
STRIDES = (8, 8, 16, 32, 32)
CHANNELS, CANDIDATES = 256, 200
COARSE = (SIZE[0] // 4, SIZE[1] // 4)


def their_head() -> Any:
    """mmdetection's, of which only what comes after its convolutions is run."""
    return peer("mmdet.models.dense_heads").SOLOV2Head(
        num_classes=NUM_CLASSES,
        in_channels=256,
        feat_channels=512,
        stacked_convs=4,
        strides=STRIDES,
        scale_ranges=OPTIONS.scale_ranges,
        num_grids=GRIDS,
        cls_down_index=0,
        mask_feature_head={
            "feat_channels": 128,
            "start_level": 0,
            "end_level": 3,
            "out_channels": CHANNELS,
            "mask_stride": 4,
            "norm_cfg": {"type": "GN", "num_groups": 32, "requires_grad": True},
        },
        loss_mask={
            "type": "DiceLoss",
            "use_sigmoid": True,
            "activate": True,
            "eps": 1e-3,
            "loss_weight": 3.0,
        },
        loss_cls={"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        test_cfg=peer("mmengine.config").ConfigDict(
            score_thr=OPTIONS.score_threshold,
            mask_thr=OPTIONS.mask_threshold,
            nms_pre=OPTIONS.nms_pre,
            kernel=OPTIONS.nms_kernel,
            sigma=OPTIONS.nms_sigma,
            filter_thr=OPTIONS.final_score_threshold,
            max_per_img=OPTIONS.max_detections,
        ),
    )


def same_weights() -> tuple[Any, SOLOv2Head]:
    """Their head and ours, with masks like a trained head's; candidates by `mmdet_heads.set_candidates`."""
    torch.manual_seed(0)
    ours = SOLOv2Head(NUM_CLASSES)
    theirs = their_head()
    with torch.no_grad():
        ours.category_output.weight.mul_(5)
        ours.kernel_output.weight.mul_(5)
    copy_weights(ours, theirs)
    return theirs, ours


def outputs() -> tuple[Tensor, Tensor, Tensor]:
    """Kernels [cells, E] and scores [cells, classes] of all levels, features [1, E, h, w].

    `CANDIDATES` cells have a score above the threshold; their kernels draw objects.
    """
    generator = torch.Generator().manual_seed(0)
    cells = sum(side * side for side in GRIDS)
    drawing, features, _, _ = inputs.mask_factors(CANDIDATES, COARSE, CHANNELS)
    chosen = torch.randperm(cells, generator=generator)[:CANDIDATES].sort().values
    kernels = 0.02 * torch.randn(cells, CHANNELS, generator=generator)
    kernels[chosen] = drawing[torch.randperm(CANDIDATES, generator=generator)]
    scores = torch.zeros(cells, NUM_CLASSES)
    labels = torch.randint(NUM_CLASSES, (CANDIDATES,), generator=generator)
    scores[chosen, labels] = 0.2 + 0.8 * torch.rand(CANDIDATES, generator=generator)
    return kernels, scores, features


@torch.no_grad()
def predict_theirs(head: Any, kernels: Tensor, scores: Tensor, features: Tensor) -> Any:
    """Scores, labels and masks, by mmdetection; it writes to the scores it is given."""
    found = head._predict_by_feat_single(kernels, scores.clone(), features, META)
    return found.scores, found.labels, found.masks


@torch.no_grad()
def predict_ours(kernels: Tensor, scores: Tensor, features: Tensor) -> Any:
    """The same by our ops: bits, areas and maskness, Matrix NMS, pasting of what is kept."""
    cell, label = (scores > OPTIONS.score_threshold).nonzero().unbind(1)
    factors = MaskFactors(kernels[cell], features, torch.zeros_like(cell))
    bits = mask_bits(factors, None, COARSE, COARSE, OPTIONS.mask_threshold)
    strides = torch.cat([torch.full((side * side,), s) for side, s in zip(GRIDS, STRIDES, strict=True)])
    large = (bits.areas > strides[cell]).nonzero().squeeze(1)
    score, label = (scores[cell, label] * bits.maskness)[large], label[large]
    best = score.argsort(descending=True, stable=True)[: OPTIONS.nms_pre]
    place, label = large[best], label[best]
    score = matrix_nms(bits.select(place), label, score[best], OPTIONS.nms_kernel, OPTIONS.nms_sigma)
    kept = (score >= OPTIONS.final_score_threshold).nonzero().squeeze(1)
    kept = kept[score[kept].argsort(descending=True, stable=True)[: OPTIONS.max_detections]]
    masks = paste_masks(factors[place[kept]], None, COARSE, COARSE, IMAGE, ORIGINAL, OPTIONS.mask_threshold)
    return score[kept], label[kept], masks


def pairs(head: Any, instances: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Of each level the kernels and the mask targets of its (cell, object) pairs.

    Targets by mmdetection, which keeps both of two objects that meet in a cell.
    """
    masks, _, _, cells = head._get_targets_single(instances, featmap_sizes=COARSE)
    generator = torch.Generator().manual_seed(0)
    kernels = [0.06 * torch.randn(len(level), CHANNELS, generator=generator) for level in cells]
    return [rows.requires_grad_() for rows in kernels], masks


def train_theirs(head: Any, kernels: list[Tensor], masks: list[Tensor], features: Tensor) -> list[Tensor]:
    """Dice losses of each level, and backward to kernels and features, as mmdetection's loss_by_feat does."""
    losses = []
    for rows, truth in zip(kernels, masks, strict=True):
        if len(rows):
            logits = torch.nn.functional.conv2d(features, rows[:, :, None, None]).squeeze(0)
            losses.append(head.loss_mask(logits, truth, reduction_override="none"))
    return _gradients(torch.cat(losses) / head.loss_mask.loss_weight, kernels, features)


def train_ours(kernels: list[Tensor], masks: list[Tensor], features: Tensor) -> list[Tensor]:
    """The same by our op: all levels at once, as their masks are of one size."""
    rows = torch.cat(kernels)
    factors = MaskFactors(rows, features, torch.zeros(len(rows), dtype=torch.int64))
    return _gradients(dice_loss(factors, None, torch.cat(masks)), kernels, features)


def _gradients(losses: Tensor, kernels: list[Tensor], features: Tensor) -> list[Tensor]:
    leaves = [*(rows for rows in kernels if len(rows)), features]
    return [losses.detach(), *torch.autograd.grad(losses.sum(), leaves)]
