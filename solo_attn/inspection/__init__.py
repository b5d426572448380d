"""Statistics of a dataset, the objects that a grid setting loses, and a proposal; needs the extra "train"."""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.inspection"):
    from .advice import grid_setting, with_proposal
    from .dataset import Inspection, inspect_dataset
    from .grids import GridCount, GridSetting, LevelCount, count_cells
    from .objects import ObjectTable, measure_objects
    from .proposal import propose
    from .sheet import contact_sheet
    from .values import ImageValues, image_values

__all__ = [
    "GridCount",
    "GridSetting",
    "ImageValues",
    "Inspection",
    "LevelCount",
    "ObjectTable",
    "contact_sheet",
    "count_cells",
    "grid_setting",
    "image_values",
    "inspect_dataset",
    "measure_objects",
    "propose",
    "with_proposal",
]
