"""A folder of images and one of id images, whose pixels say which object they belong to, as COCO's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.validate import DatasetError, DatasetSummary
from .coco import Advance, Item, Record, annotation, convert_images, image_files, read_ids


def convert_id_masks(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    *,
    class_name: str = "object",
    mask_suffix: str = "",
    void: int | None = None,
    advance: Advance | None = None,
) -> DatasetSummary:
    """Write ``out`` with one object for each id above 0, of one class, as in Penn-Fudan's pedestrians.

    Goes on where a killed call with the same arguments stopped.

    Args:
        images: folder of the images.
        masks: folder of their PNGs, of 8 or 16 bits, grey or with a palette; gaps between the ids do not
            matter.
        out: the JSON; file names are relative to ``images``.
        class_name: of all objects.
        mask_suffix: what the masks' names have more than the images': "_mask" for a.jpg and a_mask.png.
        void: an id that is no object, such as the 255 of PASCAL VOC's outlines.
        advance: called with 1 after each image.

    Raises:
        DatasetError: an image without mask, other sizes, masks that are no id images, each with its name.
    """
    images, masks = Path(images), Path(masks)
    items = [Item(image.name, image, _mask_of(image, masks, mask_suffix)) for image in image_files(images)]
    no_object = (0,) if void is None else (0, void)

    def read(item: Item, size: tuple[int, int]) -> list[Record]:
        ids = read_ids(item.annotation, size)
        columns = np.ascontiguousarray(ids.T)  # run lengths go down columns
        found = [value for value in np.unique(ids) if value not in no_object]
        return [annotation(class_name, (columns == value).T) for value in found]

    return convert_images(
        Path(out),
        images,
        items,
        read,
        settings={"layout": "id-masks", "class": class_name, "void": void},
        categories={class_name: 1},
        advance=advance,
    )


def _mask_of(image: Path, masks: Path, suffix: str) -> Path:
    path = masks / f"{image.stem}{suffix}.png"
    if path.exists():
        return path
    close = sorted(p.stem for p in masks.glob("*.png") if p.stem.startswith(image.stem))
    hint = f"; is it {close[0]}.png, by mask_suffix {close[0].removeprefix(image.stem)!r}?" if close else ""
    raise DatasetError(f"{image}: expected its mask in {path}, found none{hint}")
