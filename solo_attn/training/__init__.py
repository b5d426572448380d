"""Training, comparison and checkpoints; needs the extra "train"."""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.training"):
    from .callbacks import UnfinishedError
    from .compare import Comparison, compare, read_systems, system_config, systems_of
    from .config import (
        Config,
        ConfigError,
        DataConfig,
        TrainConfig,
        changes,
        differences,
        load_config,
        override,
        settled,
    )
    from .datamodule import SOLODataModule
    from .demo import demo, demo_config
    from .module import SOLOModule, TrainingError
    from .train import TrainResult, train

__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "DataConfig",
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
    "load_config",
    "override",
    "read_systems",
    "settled",
    "system_config",
    "systems_of",
    "train",
]
