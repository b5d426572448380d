"""Backbone, head and detector."""

from .backbone import resnet_fpn
from .head import SOLOHead
from .inference import InferenceOptions
from .solo import SOLO, build_solo, solo, solo_with_attention, solo_without_coords

__all__ = [
    "SOLO",
    "InferenceOptions",
    "SOLOHead",
    "build_solo",
    "resnet_fpn",
    "solo",
    "solo_with_attention",
    "solo_without_coords",
]
