"""Objects of one training image pasted into another."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .coco import Sample
from .transforms import FitBoxes

_FIT = v2.Compose([FitBoxes(), v2.ToPureTensor()])


class CopyPaste(Dataset[Sample]):
    """``dataset`` with objects of its other images pasted in, each image with a probability.

    Both images are augmented before. The other image and its objects are drawn from torch's random state: the
    same state gives the same sample. Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation
    Method for Instance Segmentation", arXiv:2012.07177, without its blurred edges, which made no difference
    there.

    Args:
        dataset: its samples are float images in 0..1 and targets, as `train_transforms` leaves them.
        probability: in 0..1; with 0 the samples are those of ``dataset``, drawn from the same random numbers.
    """

    dataset: Dataset[Sample]
    probability: float

    def __init__(self, dataset: Dataset[Sample], probability: float) -> None:
        self.dataset, self.probability = dataset, probability

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.dataset[index]
        if self.probability == 0 or torch.rand(()).item() >= self.probability:
            return image, target
        other = int(torch.randint(len(self), ()))
        source, pasted = self.dataset[other]
        return paste_objects(image, target, source, pasted, torch.rand(len(pasted["labels"])) < 0.5)


def paste_objects(
    image: Tensor, target: dict[str, Tensor], source: Tensor, pasted: dict[str, Tensor], chosen: Tensor
) -> Sample:
    """Lay chosen objects of ``source`` over ``image``, at the place they have in it.

    A mask is learned at its place, so objects keep their places; of a larger source only the upper left part
    is used. Masks of older objects that they cover are cut, and dropped if nothing is left.

    Args:
        image: float [3, H, W] in 0..1.
        target: its ``boxes`` [N, 4], ``labels`` [N] and ``masks`` uint8 [N, H, W]; other entries stay.
        source: float [3, H2, W2].
        pasted: the same of ``source``.
        chosen: bool, which of its objects.

    Returns:
        New tensors of the same kinds.
    """
    height, width = image.shape[1:]
    masks = torch.zeros(int(chosen.sum()), height, width, dtype=torch.uint8)
    found = pasted["masks"][chosen][:, :height, :width]
    masks[:, : found.shape[1], : found.shape[2]] = found
    cover = masks.amax(0).bool() if len(masks) else torch.zeros(height, width, dtype=torch.bool)
    canvas = torch.zeros_like(image)
    part = source[:, :height, :width]
    canvas[:, : part.shape[1], : part.shape[2]] = part
    everything: dict[str, Any] = {
        **target,
        "masks": tv_tensors.Mask(torch.cat([target["masks"] * ~cover, masks])),
        "labels": torch.cat([target["labels"], pasted["labels"][chosen]]),
    }
    return _FIT(torch.where(cover, canvas, image), everything)
