"""Backbone, head and detector."""

from .backbone import build_backbone
from .head import SOLOHead
from .inference import InferenceOptions
from .solo import SOLO, build_solo, solo, solo_with_attention, solo_without_coords

__all__ = [
    "SOLO",
    "InferenceOptions",
    "SOLOHead",
    "build_backbone",
    "build_solo",
    "solo",
    "solo_with_attention",
    "solo_without_coords",
]
