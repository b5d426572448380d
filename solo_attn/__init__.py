"""Instance segmentation by locations (SOLO) with grid attention."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from .backends import explain
from .ops import (
    BitMasks,
    MaskFactors,
    attention_residual,
    cell_logits,
    dice_loss,
    dice_loss_levels,
    grid_attention,
    grid_attention_levels,
    mask_bits,
    mask_bits_levels,
    mask_iou,
    matrix_nms,
    paste_masks,
    paste_masks_levels,
    upsample_add,
)

if TYPE_CHECKING:
    from ._utils.limits import limits as limits
    from .predictor import load

__all__ = [
    "BitMasks",
    "MaskFactors",
    "__version__",
    "attention_residual",
    "cell_logits",
    "dice_loss",
    "dice_loss_levels",
    "explain",
    "grid_attention",
    "grid_attention_levels",
    "load",
    "mask_bits",
    "mask_bits_levels",
    "mask_iou",
    "matrix_nms",
    "paste_masks",
    "paste_masks_levels",
    "upsample_add",
]


def __getattr__(name: str) -> Any:
    # Images and checkpoints need more packages than the ops: imported on first use.
    if name == "load":
        from .predictor import load

        return load
    if name == "limits":
        from ._utils.limits import limits

        return limits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
