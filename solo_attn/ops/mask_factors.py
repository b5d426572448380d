"""Coarse logits that are not made: SOLOv2's kernels and mask features, for the ops on chosen cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MaskFactors:
    """The mask logits of K cells as a product, ``kernels[k] . features[images[k]]``: SOLOv2's.

    `mask_bits`, `dice_loss` and `paste_masks` take it in the place of coarse logits [K, h, w].

    Attributes:
        kernels: [K, E], each cell's own; a float dtype.
        features: [B, E, h, w], which the cells of an image share; dtype of ``kernels``.
        images: int64 [K], in 0..B-1, the image that a cell belongs to.

    Raises:
        TypeError, ValueError: raised by the op it is given to, where a part has the wrong type, shape, dtype
            or device.

    Example:
        >>> factors = MaskFactors(torch.eye(2), torch.arange(4.0).reshape(1, 2, 1, 2), torch.tensor([0, 0]))
        >>> factors.logits().tolist()
        [[[0.0, 1.0]], [[2.0, 3.0]]]
    """

    kernels: Tensor
    features: Tensor
    images: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.features.shape[2], self.features.shape[3]

    def __len__(self) -> int:
        """K."""
        return len(self.kernels)

    def __getitem__(self, index: Tensor | slice) -> MaskFactors:
        """The cells at ``index`` (int64 or bool [...], or a slice), of the same features."""
        return MaskFactors(self.kernels[index], self.features, self.images[index])

    def logits(self) -> Tensor:
        """The product, [K, h, w], in the dtype of its factors and differentiable in both.

        Of several images it asks the device how many cells each has, and waits for the answer; compiled by
        torch.compile, it makes every cell's product with every image instead.

        Raises:
            RuntimeError: a number in ``images`` is not one of the batch (on a GPU a failed assertion there).
        """
        batch = len(self.features)
        inside = ((self.images >= 0) & (self.images < batch)).all()
        if inside.device.type in ("cpu", "cuda", "meta"):  # no other device has it
            torch._assert_async(inside, f"MaskFactors: expected images in 0..{batch - 1}")
        # An op computes in the dtype of its inputs, and so does what stands in for it.
        with torch.autocast(self.kernels.device.type, enabled=False):
            if batch == 1:
                return (self.kernels @ self.features[0].flatten(1)).unflatten(1, self.size)
            if torch.compiler.is_compiling():  # a graph has no lengths that only the device knows
                return self._of_every_image().unflatten(1, self.size)
            order = self.images.argsort(stable=True)
            counts = self.images.bincount(minlength=batch).tolist()
            parts = zip(self.kernels[order].split(counts), self.features.flatten(2).unbind(), strict=True)
            rows = torch.cat([kernels @ features for kernels, features in parts])
            return rows[order.argsort()].unflatten(1, self.size)

    def _of_every_image(self) -> Tensor:
        maps = self.features.flatten(2)
        out = self.kernels @ maps[0]
        for image in range(1, len(maps)):
            out = torch.where((self.images == image)[:, None], self.kernels @ maps[image], out)
        return out
