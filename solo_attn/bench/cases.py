"""What is measured of each op: its inputs, the same in plain PyTorch, and what no implementation can beat.

Sizes are those of the paper's Table 1 and 2 for a 2048 x 1024 image (672 x 1344 when resized and padded): the
finest level is 84 x 168, its grid S = 40, its mask logits 168 x 336.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import BitMasks
from . import inputs, plain

LEVEL = (84, 168)
SIDE = 40
CHANNELS = 256
MASKS = 500
MASK_SIZE = (200, 336)


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs.

    Attributes:
        op: its name.
        what: sizes, in words.
        inputs: tensors, those that a gradient is asked of first.
        kernel: ``(backend, *inputs)``, the public function.
        plain: ``(*inputs)``, what one would write in PyTorch.
        floor: what no implementation can do without: every input read once, every output written once, the
            matrix product. Into memory that is there already.
        floor_backward: the same of the gradient alone.
        limit: what ``floor`` does, in words.
        differentiable: how many of ``inputs`` have a gradient.
        others: more contenders, by name.
    """

    op: str
    what: str
    inputs: tuple[Any, ...]
    kernel: Callable[..., Any]
    plain: Callable[..., Any]
    floor: Callable[[], Any]
    limit: str
    differentiable: int = 0
    floor_backward: Callable[[], Any] | None = None
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)


def agree(out: Any, expected: Any) -> None:
    """Refuse results that differ by more than rounding; of masks, more than one pixel in 10,000.

    A pixel whose probability is the threshold up to rounding may fall on either side of it.

    Raises:
        AssertionError: they differ.
    """
    if isinstance(out, BitMasks):
        agree((out.to_bool(), out.areas, out.maskness), expected)
    elif isinstance(out, (tuple, list)):
        assert len(out) == len(expected)
        for a, b in zip(out, expected, strict=True):
            agree(a, b)
    elif isinstance(out, dict):
        agree(_decoded(out), _decoded(expected))
    elif out.dtype == torch.bool:
        assert out.shape == expected.shape
        wrong = int((out != expected).sum())
        assert wrong <= 1e-4 * out.numel() + 1, f"{wrong} of {out.numel()} pixels differ"
    else:
        largest = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-3 * largest, check_dtype=False)


def _decoded(rle: Any) -> Tensor:
    import pycocotools.mask as coco_mask

    return torch.from_numpy(coco_mask.decode(rle)).bool()


def read(*tensors: Tensor) -> None:
    """The fastest pass over memory that PyTorch has."""
    for x in tensors:
        flat = x.flatten().view(torch.uint8)
        flat[: flat.numel() // 4 * 4].view(torch.int32).amax()


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
    "dice_loss": (dice_loss,),
    "mask_bits": (mask_bits,),
    "mask_iou": (mask_iou,),
    "matrix_nms": (matrix_nms,),
    "paste_masks": (paste_masks, paste_masks_rle),
}
"""Of each op, what makes its cases: ``(device, **sizes)``."""
