"""Formats of other tools: one per file, its reader and writer side by side.

``convert_<format>`` makes a dataset into COCO's format, ``to_<format>`` an image's instances into plain
objects, and ``write_<format>`` writes these. Needs the extra "train".
"""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.formats"):
    from .cityscapes import PAPER_CLASSES, convert_cityscapes
    from .coco import coco_annotations, coco_results, write_dataset, write_results
    from .geojson import to_geojson, write_geojson
    from .id_masks import convert_id_masks, to_id_map, write_id_map
    from .label_studio import label_studio_config, local_file, to_label_studio, write_label_studio
    from .labelme import convert_labelme
    from .parquet import read_parquet, to_parquet, write_parquet
    from .yolo import convert_yolo

__all__ = [
    "PAPER_CLASSES",
    "coco_annotations",
    "coco_results",
    "convert_cityscapes",
    "convert_id_masks",
    "convert_labelme",
    "convert_yolo",
    "label_studio_config",
    "local_file",
    "read_parquet",
    "to_geojson",
    "to_id_map",
    "to_label_studio",
    "to_parquet",
    "write_dataset",
    "write_geojson",
    "write_id_map",
    "write_label_studio",
    "write_parquet",
    "write_results",
]
