"""Backbone, head, detector and their checkpoints."""

from .backbone import build_backbone
from .checkpoint import CheckpointError, ModelInfo, export_safetensors, load_model, save_model
from .heads import SOLOHead
from .settings import HeadSettings, InferenceSettings, ModelSettings
from .solo import SOLO, build_solo, solo, solo_with_attention, solo_without_coords
from .transfer import Transfer, take_weights

__all__ = [
    "SOLO",
    "CheckpointError",
    "HeadSettings",
    "InferenceSettings",
    "ModelInfo",
    "ModelSettings",
    "SOLOHead",
    "Transfer",
    "build_backbone",
    "build_solo",
    "export_safetensors",
    "load_model",
    "save_model",
    "solo",
    "solo_with_attention",
    "solo_without_coords",
    "take_weights",
]
