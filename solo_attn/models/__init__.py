"""Backbone, head, detector and their checkpoints."""

from .backbone import resnet_fpn
from .checkpoint import CheckpointError, ModelInfo, export_safetensors, load_model, save_model
from .head import SOLOHead
from .inference import InferenceOptions
from .solo import SOLO, build_solo, solo, solo_with_attention, solo_without_coords

__all__ = [
    "SOLO",
    "CheckpointError",
    "InferenceOptions",
    "ModelInfo",
    "SOLOHead",
    "build_solo",
    "export_safetensors",
    "load_model",
    "resnet_fpn",
    "save_model",
    "solo",
    "solo_with_attention",
    "solo_without_coords",
]
