"""mmdetection: its Matrix NMS, and its SOLO checkpoints. Neither needs mmdetection to be installed."""

from .checkpoint import Conversion, convert_checkpoint
from .nms import mask_matrix_nms

__all__ = ["Conversion", "convert_checkpoint", "mask_matrix_nms"]
