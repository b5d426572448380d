"""What is measured of each op: its inputs, the same in plain PyTorch, and what no implementation can beat.

Sizes are those of the paper's Table 1 and 2 for a 2048 x 1024 image (672 x 1344 when resized and padded): the
finest level is 84 x 168, its grid S = 40, its mask logits 168 x 336.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import MaskFactors
from . import inputs, plain
from .case import Case, read

LEVEL = (84, 168)
SIDE = 40
CHANNELS = 256
MASKS = 500
MASK_SIZE = (200, 336)


def grid_attention(device: str, batch: int = 1, channels: int = CHANNELS, side: int = SIDE) -> Case:
    """All pairs of cells of the finest level."""
    features = inputs.grid_features(batch, channels, side).to(device)
    cells = side * side
    out = torch.empty(batch, cells, cells, device=device)
    vectors, back = features.flatten(2), torch.empty(batch, channels, cells, device=device)
    return Case(
        op="grid_attention",
        what=f"S {side}, {channels} channels",
        inputs=(features,),
        kernel=lambda backend, x: ops.grid_attention(x, backend=backend),
        plain=plain.grid_attention,
        floor=lambda: torch.bmm(vectors.mT, vectors, out=out),
        limit="the matrix product, all of it",
        differentiable=1,
        floor_backward=lambda: torch.bmm(vectors, out, out=back),
    )


def attention_residual(
    device: str,
    channels: int = CHANNELS,
    side: int = SIDE,
    size: tuple[int, int] = (2 * LEVEL[0], 2 * LEVEL[1]),
    inplace: bool = False,
) -> Case:
    """The dense mask logits of the finest level."""
    features = inputs.grid_features(1, channels, side).to(device)
    cells = side * side
    logits = torch.randn(1, cells, *size, generator=torch.Generator(device).manual_seed(0), device=device)
    vectors, dots = features.flatten(2)[0], torch.empty(cells, cells, device=device)
    back = torch.empty(channels, cells, device=device)

    def floor() -> None:
        torch.mm(vectors.T, vectors, out=dots)
        logits.mul_(1.0)

    def floor_backward() -> None:
        torch.mm(vectors, dots, out=back)
        read(logits)

    return Case(
        op="attention_residual",
        what=f"S {side}, {channels} channels, {size[0]} x {size[1]}" + ", in place" * inplace,
        inputs=(features, logits),
        kernel=lambda backend, f, x: ops.attention_residual(x, f, inplace=inplace, backend=backend),
        plain=lambda f, x: plain.attention_residual(x, f),
        floor=floor,
        limit="the matrix product, and the logits read and written in place",
        differentiable=0 if inplace else 1,
        floor_backward=floor_backward,
    )


def attention_residual_inplace(device: str, **sizes: Any) -> Case:
    """The same, over the logits themselves."""
    return attention_residual(device, inplace=True, **sizes)


def upsample_add(device: str, count: int = 100, level: tuple[int, int] = LEVEL, side: int = SIDE) -> Case:
    """Mask logits of chosen cells."""
    coarse, attention = inputs.cell_logits(count, level, side, device=device)
    size = (2 * level[0], 2 * level[1])
    out = torch.empty(count, *size, device=device)
    backs = torch.empty_like(coarse), torch.empty_like(attention)

    def floor() -> None:
        read(coarse, attention)
        out.fill_(0)

    def floor_backward() -> None:
        read(out)
        for back in backs:
            back.fill_(0)

    return Case(
        op="upsample_add",
        what=f"{count} cells, {level[0]} x {level[1]} to {size[0]} x {size[1]}",
        inputs=(coarse, attention),
        kernel=lambda backend, c, a: ops.upsample_add(c, a, size, backend=backend),
        plain=lambda c, a: plain.upsample_add(c, a, size),
        floor=floor,
        limit="inputs read, outputs written",
        differentiable=2,
        floor_backward=floor_backward,
    )


def dice_loss(device: str, count: int = 100, level: tuple[int, int] = LEVEL, side: int = SIDE) -> Case:
    """Losses of the positive cells of the finest level."""
    coarse, attention = inputs.cell_logits(count, level, side, device=device)
    targets = inputs.mask_logits(count, (2 * level[0], 2 * level[1]), seed=1, device=device) > 0
    backs = torch.empty_like(coarse), torch.empty_like(attention)

    def floor_backward() -> None:
        read(coarse, attention, targets)
        for back in backs:
            back.fill_(0)

    return Case(
        op="dice_loss",
        what=f"{count} cells, {level[0]} x {level[1]} to {2 * level[0]} x {2 * level[1]}",
        inputs=(coarse, attention, targets),
        kernel=lambda backend, c, a, t: ops.dice_loss(c, a, t, backend=backend),
        plain=plain.dice_loss,
        floor=lambda: read(coarse, attention, targets),
        limit="inputs read, outputs written",
        differentiable=2,
        floor_backward=floor_backward,
    )


def dice_loss_factors(
    device: str, count: int = 60, level: tuple[int, int] = LEVEL, channels: int = CHANNELS, side: int = 0
) -> Case:
    """SOLOv2's losses, of all levels' positive cells: from kernels and features at stride 4.

    Floor: a product of 2 K E h w flops and the features read; backward that of each factor's gradient, the
    features read and their gradient written.
    """
    size = (2 * level[0], 2 * level[1])
    kernels, features, images, rows = inputs.mask_factors(count, size, channels, side, device=device)
    targets = inputs.mask_logits(count, size, device=device) > 0
    flat, logits, backs = (
        features[0].flatten(1),
        torch.zeros(count, size[0] * size[1], device=device),
        (
            torch.empty_like(kernels),
            torch.empty_like(features[0]).flatten(1),
        ),
    )

    def floor_backward() -> None:
        torch.mm(logits, flat.T, out=backs[0])
        torch.mm(kernels.T, logits, out=backs[1])
        read(targets)

    def floor() -> None:
        torch.mm(kernels, flat, out=logits)
        read(targets)

    return Case(
        op="dice_loss",
        what=f"{count} kernels, features {channels} x {size[0]} x {size[1]}",
        inputs=(kernels, features, images, targets, *(() if rows is None else (rows,))),
        kernel=lambda backend, k, f, i, t, r=None: ops.dice_loss(MaskFactors(k, f, i), r, t, backend=backend),
        plain=lambda k, f, i, t, r=None: plain.dice_loss(plain.product(k, f, i), r, t),
        floor=floor,
        limit="the matrix products, targets read",
        differentiable=2,
        floor_backward=floor_backward,
    )


def mask_bits(device: str, count: int = 200, level: tuple[int, int] = LEVEL, side: int = SIDE) -> Case:
    """Candidates of the finest level."""
    coarse, attention = inputs.cell_logits(count, level, side, device=device)
    size = (2 * level[0], 2 * level[1])
    words = torch.empty(count, -(-size[0] * size[1] // 64), dtype=torch.int64, device=device)

    def floor() -> None:
        read(coarse, attention)
        words.fill_(0)

    return Case(
        op="mask_bits",
        what=f"{count} cells, {level[0]} x {level[1]} to {size[0]} x {size[1]}",
        inputs=(coarse, attention),
        kernel=lambda backend, c, a: ops.mask_bits(c, a, size, size, backend=backend),
        plain=lambda c, a: plain.mask_bits(c, a, size, size),
        floor=floor,
        limit="inputs read, outputs written",
    )


def mask_bits_factors(
    device: str, count: int = 200, level: tuple[int, int] = LEVEL, channels: int = CHANNELS, side: int = 0
) -> Case:
    """SOLOv2's candidates, of all levels: a product of 2 K E h w flops, the features read, bits written."""
    size = (2 * level[0], 2 * level[1])
    kernels, features, images, rows = inputs.mask_factors(count, size, channels, side, device=device)
    flat, logits = features[0].flatten(1), torch.empty(count, size[0] * size[1], device=device)
    words = torch.empty(count, -(-size[0] * size[1] // 64), dtype=torch.int64, device=device)

    def floor() -> None:
        torch.mm(kernels, flat, out=logits)
        words.fill_(0)

    return Case(
        op="mask_bits",
        what=f"{count} kernels, features {channels} x {size[0]} x {size[1]}",
        inputs=(kernels, features, images, *(() if rows is None else (rows,))),
        kernel=lambda backend, k, f, i, r=None: ops.mask_bits(
            MaskFactors(k, f, i), r, size, size, backend=backend
        ),
        plain=lambda k, f, i, r=None: plain.mask_bits(plain.product(k, f, i), r, size, size),
        floor=floor,
        limit="the matrix product, bits written",
    )


def mask_iou(device: str, count: int = MASKS, size: tuple[int, int] = MASK_SIZE) -> Case:
    """All pairs, whatever their labels."""
    masks = inputs.masks(count, size, device=device)[0]
    out = torch.empty(count, count, device=device)

    def floor() -> None:
        read(masks)
        out.fill_(0)

    return Case(
        op="mask_iou",
        what=f"{count} masks {size[0]} x {size[1]}, all pairs",
        inputs=(masks,),
        kernel=lambda backend, m: ops.mask_iou(m, backend=backend),
        plain=plain.mask_iou,
        floor=floor,
        limit="masks read, IoU written",
    )


def matrix_nms(device: str, count: int = MASKS, size: tuple[int, int] = MASK_SIZE) -> Case:
    """Masks as bool tensors."""
    masks, labels, scores = inputs.masks(count, size, device=device)
    return nms_case(masks, labels, scores, f"{count} masks {size[0]} x {size[1]}")


def nms_case(masks: Tensor, labels: Tensor, scores: Tensor, what: str) -> Case:
    """Matrix NMS of any masks."""
    return Case(
        op="matrix_nms",
        what=what,
        inputs=(scores, masks, labels),
        kernel=lambda backend, s, m, c: ops.matrix_nms(m, c, s, backend=backend),
        plain=lambda s, m, c: plain.matrix_nms(m, c, s),
        floor=lambda: read(masks),
        limit="masks read",
    )


def paste_masks(
    device: str,
    count: int = 100,
    level: tuple[int, int] = LEVEL,
    side: int = SIDE,
    original: tuple[int, int] = (1024, 2048),
    rle: bool = False,
) -> Case:
    """Kept masks at the size of a Cityscapes image, which was resized to 667 x 1333."""
    coarse, attention = inputs.cell_logits(count, level, side, device=device)
    size = (2 * level[0], 2 * level[1])
    scale = min(8 * level[0] / original[0], 8 * level[1] / original[1])
    image = (int(original[0] * scale), int(original[1] * scale))
    out = torch.empty(0 if rle else count, *original, dtype=torch.bool, device=device)

    def floor() -> None:
        read(coarse, attention)
        out.fill_(False)

    def kernel(backend: str | None, c: Tensor, a: Tensor) -> Any:
        if rle:
            return ops.paste_masks(c, a, size, size, image, original, rle=True, backend=backend)
        return ops.paste_masks(c, a, size, size, image, original, backend=backend)

    function = plain.paste_masks_rle if rle else plain.paste_masks
    return Case(
        op="paste_masks",
        what=f"{count} masks at {original[0]} x {original[1]}, " + ("COCO RLE" if rle else "bool"),
        inputs=(coarse, attention),
        kernel=kernel,
        plain=lambda c, a: function(c, a, size, size, image, original),
        floor=floor,
        limit="inputs read, outputs written" if not rle else "inputs read",
    )


def paste_masks_rle(device: str, **sizes: Any) -> Case:
    """The same, as COCO's run-length encoding."""
    return paste_masks(device, rle=True, **sizes)


CASES: dict[str, tuple[Callable[..., Case], ...]] = {
    "grid_attention": (grid_attention,),
    "attention_residual": (attention_residual, attention_residual_inplace),
    "upsample_add": (upsample_add,),
    "dice_loss": (dice_loss, dice_loss_factors),
    "mask_bits": (mask_bits, mask_bits_factors),
    "mask_iou": (mask_iou,),
    "matrix_nms": (matrix_nms,),
    "paste_masks": (paste_masks, paste_masks_rle),
}
"""Of each op, what makes its cases: ``(device, **sizes)``."""
