"""Instance segmentation by locations (SOLO) with grid attention."""

__version__ = "0.1.0"

from .backends import explain
from .ops import (
    BitMasks,
    attention_residual,
    dice_loss,
    grid_attention,
    mask_bits,
    mask_iou,
    matrix_nms,
    paste_masks,
    upsample_add,
)

__all__ = [
    "BitMasks",
    "__version__",
    "attention_residual",
    "dice_loss",
    "explain",
    "grid_attention",
    "mask_bits",
    "mask_iou",
    "matrix_nms",
    "paste_masks",
    "upsample_add",
]
