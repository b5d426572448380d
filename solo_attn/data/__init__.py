"""COCO-format datasets, augmentation and synthetic scenes."""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.data"):
    from .coco import CocoInstances, classes_differ, collate
    from .copy_paste import CopyPaste, paste_objects
    from .images import ImageError, read_image
    from .synthetic import StreetScenes, write_street_scenes
    from .transforms import eval_transforms, train_transforms
    from .validate import DatasetError, DatasetSummary, check_dataset

__all__ = [
    "CocoInstances",
    "CopyPaste",
    "DatasetError",
    "DatasetSummary",
    "ImageError",
    "StreetScenes",
    "check_dataset",
    "classes_differ",
    "collate",
    "eval_transforms",
    "paste_objects",
    "read_image",
    "train_transforms",
    "write_street_scenes",
]
