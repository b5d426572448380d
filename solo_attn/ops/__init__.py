"""The ops, for any PyTorch project: each checks its arguments, then runs on the backend that fits."""

from .attention_residual import attention_residual
from .bit_masks import BitMasks
from .dice_loss import dice_loss, dice_loss_levels
from .grid_attention import cell_logits, grid_attention, grid_attention_levels, levels_in_one_launch
from .mask_bits import mask_bits, mask_bits_levels
from .mask_factors import MaskFactors
from .mask_iou import mask_iou
from .matrix_nms import matrix_nms
from .paste_masks import paste_masks, paste_masks_levels
from .upsample_add import upsample_add

__all__ = [
    "BitMasks",
    "MaskFactors",
    "attention_residual",
    "cell_logits",
    "dice_loss",
    "dice_loss_levels",
    "grid_attention",
    "grid_attention_levels",
    "levels_in_one_launch",
    "mask_bits",
    "mask_bits_levels",
    "mask_iou",
    "matrix_nms",
    "paste_masks",
    "paste_masks_levels",
    "upsample_add",
]
