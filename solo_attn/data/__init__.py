"""COCO-format data sets, augmentation and synthetic scenes."""

try:
    import PIL  # noqa: F401  only to see that it is there
    import pycocotools  # noqa: F401
except ImportError as error:
    raise ImportError(f'solo_attn.data needs {error.name}: pip install "solo-attn[train]"') from error

from .coco import CocoInstances, collate
from .images import ImageError, read_image
from .synthetic import StreetScenes, write_street_scenes
from .transforms import eval_transforms, train_transforms
from .validate import DatasetError, DatasetSummary, check_dataset

__all__ = [
    "CocoInstances",
    "DatasetError",
    "DatasetSummary",
    "ImageError",
    "StreetScenes",
    "check_dataset",
    "collate",
    "eval_transforms",
    "read_image",
    "train_transforms",
    "write_street_scenes",
]
