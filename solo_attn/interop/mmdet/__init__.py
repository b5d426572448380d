"""mmdetection: its Matrix NMS, and its SOLO checkpoints. Neither needs mmdetection to be installed."""

from .nms import mask_matrix_nms

__all__ = ["mask_matrix_nms"]
