"""A SOLO's weights used as the public versions use theirs: all masks of all levels, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_attn.bench import plain
from solo_attn.models import SOLO
from solo_attn.models.candidates import points_nms
from solo_attn.models.heads import STRIDES
from solo_attn.models.inference import boxes_of
from solo_attn.models.layers import bilinear
from solo_attn.models.losses import DICE_EPS, category_loss
from solo_attn.models.targets import LevelTargets, assign

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


class DenseSOLO:
    """The losses and the instances of ``model``, from mask logits [B, S*S, 2h, 2w] of all levels.

    Resizing, padding and targets are the model's own, the same for both.

    Args:
        model: whose weights and settings are used, shared with it.
        compiler: what the two large parts go through: all from the batch to the losses, and all from the
            batch to probability maps. Left out of them is what depends on how many candidates there are.
    """

    def __init__(self, model: SOLO, compiler: Compiler = lambda part: part) -> None:
        self._model = model
        self._losses_of = compiler(self._losses)
        self._maps_of = compiler(self._maps)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The losses, as the model returns them in training mode."""
        model = self._model
        batch, resized = model.transform(list(images), [dict(target) for target in targets])
        height, width = batch.tensors.shape[-2:]
        assigned = assign(resized, (height, width), model.head.num_grids, model.settings.scale_ranges)
        return self._losses_of(batch.tensors, assigned)

    @torch.no_grad()
    def instances(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The instances, as the model returns them in evaluation mode."""
        batch, _ = self._model.transform(list(images))
        scores, maps = self._maps_of(batch.tensors)
        with torch.autocast(
            batch.tensors.device.type, enabled=False
        ):  # areas are sums that bfloat16 cannot hold
            return [
                self._choose([x[i] for x in scores], [x[i] for x in maps], size, tuple(image.shape[1:]))
                for i, (image, size) in enumerate(zip(images, batch.image_sizes, strict=True))
            ]

    def _mask_logits(self, level: int, features: Tensor, grid: Tensor) -> Tensor:
        head = self._model.head
        size = (2 * features.shape[2], 2 * features.shape[3])
        logits = bilinear(head.mask_outputs[level](head.mask_features(features)), size)
        if head.attention is None:
            return logits
        vectors = head.attention.vectors(level, grid).to(logits.dtype)
        added = plain.attention_residual(logits, vectors * head.attention.scale(grid) ** 0.5)
        offset = head.attention.bias(level)
        return added if offset is None else added + offset

    def _losses(self, batch: Tensor, targets: Sequence[LevelTargets]) -> dict[str, Tensor]:
        model = self._model
        logits, levels, grids = model.features(batch)[:3]
        rows = []
        for k, level in enumerate(targets):
            maps = self._mask_logits(k, levels[k], grids[k])
            chosen = maps[level.cells[:, 0], level.cells[:, 1]].flatten(1).float().sigmoid()
            truth = level.masks.flatten(1).float()
            overlap = (chosen * truth).sum(1)
            total = chosen.square().sum(1) + truth.square().sum(1) + 2 * DICE_EPS
            rows.append(1 - 2 * overlap / total)
        dice = torch.cat(rows)
        mean, weight = dice.sum() / max(len(dice), 1), model.settings.mask_loss_weight
        return {"loss_category": category_loss(logits, targets), "loss_mask": weight * mean}

    def _maps(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Category scores [B, C, S, S] and probability maps [B, S*S, H / 4, W / 4] of each level."""
        logits, levels, grids = self._model.features(batch)[:3]
        out_size = (2 * levels[1].shape[2], 2 * levels[1].shape[3])
        scores = [points_nms(x.float().sigmoid()) for x in logits]
        maps = [
            bilinear(self._mask_logits(k, levels[k], grids[k]).sigmoid(), out_size)
            for k in range(len(levels))
        ]
        return scores, maps

    def _choose(
        self,
        scores: Sequence[Tensor],
        maps: Sequence[Tensor],
        image_size: tuple[int, int],
        original_size: tuple[int, ...],
    ) -> dict[str, Tensor]:
        """The instances of one image, from [C, S, S] and [S*S, H / 4, W / 4] of each level."""
        options = self._model.settings
        found: list[tuple[Tensor, ...]] = []
        for level, probability, stride in zip(scores, maps, STRIDES, strict=True):
            cell, label = level.flatten(1).T.gt(options.score_threshold).nonzero().unbind(1)
            chosen = probability[cell].float()
            mask = chosen > options.mask_threshold
            area = mask.flatten(1).sum(1)
            maskness = (chosen * mask).flatten(1).sum(1) / area.clamp(min=1)
            score = level.flatten(1)[label, cell] * maskness
            keep = (area > stride).nonzero().squeeze(1)
            found.append(tuple(x[keep] for x in (score, label, chosen, mask)))
        score, label, chosen, mask = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = score.argsort(descending=True, stable=True)[: options.nms_pre]
        score, label, chosen, mask = score[order], label[order], chosen[order], mask[order]
        if len(score):
            score = plain.matrix_nms(mask, label, score, sigma=options.nms_sigma)
        order = score.argsort(descending=True, stable=True)[: options.max_detections]
        order = order[score[order] >= options.final_score_threshold]
        size = (4 * chosen.shape[1], 4 * chosen.shape[2])
        pasted = chosen.new_zeros(0, *original_size, dtype=torch.bool)
        if len(order):
            full = bilinear(chosen[order][None], size)[..., : image_size[0], : image_size[1]]
            pasted = F.interpolate(full, original_size, mode="bilinear")[0] > options.mask_threshold
        return {"boxes": boxes_of(pasted), "labels": label[order], "scores": score[order], "masks": pasted}
