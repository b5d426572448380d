"""Training, comparison and checkpoints; needs the extra "train"."""

from ..inspection.advice import grid_setting, with_proposal
from ..models.checkpoint import CheckpointError, ModelInfo, export_safetensors, load_model, save_model
from .callbacks import UnfinishedError
from .compare import Comparison, compare, system_config, systems_of
from .config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TrainConfig,
    changes,
    differences,
    load_config,
    override,
)
from .datamodule import SOLODataModule
from .demo import demo, demo_config
from .evaluate import evaluate_model
from .module import SOLOModule, TrainingError
from .train import TrainResult, train

__all__ = [
    "CheckpointError",
    "Comparison",
    "Config",
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "ModelInfo",
    "SOLODataModule",
    "SOLOModule",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "UnfinishedError",
    "changes",
    "compare",
    "demo",
    "demo_config",
    "differences",
    "evaluate_model",
    "export_safetensors",
    "grid_setting",
    "load_config",
    "load_model",
    "override",
    "save_model",
    "system_config",
    "systems_of",
    "train",
    "with_proposal",
]
