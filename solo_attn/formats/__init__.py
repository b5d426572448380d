"""Other layouts of instance data, made into COCO's format: one function a layout."""

from .cityscapes import PAPER_CLASSES, convert_cityscapes
from .id_masks import convert_id_masks
from .labelme import convert_labelme

__all__ = ["PAPER_CLASSES", "convert_cityscapes", "convert_id_masks", "convert_labelme"]
