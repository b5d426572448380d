"""Id images, whose pixels are the ids of objects: datasets of them to COCO's format, instances to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .._utils.checks import Prediction, check_prediction, fail
from .._utils.files import replacing
from .._utils.readers import one_line
from .._utils.run_lengths import decode_window
from ..data.images import UNREADABLE, image_files
from ..data.pictures import open_picture
from ..data.validate import DatasetError, DatasetSummary
from .coco import Advance, Item, Record, annotation, convert_images

MOST_IDS = 2**16 - 1


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

    Continues where a killed call with the same arguments stopped.

    Args:
        images: folder of the images.
        masks: folder of their PNGs, of 8 or 16 bits, grey or with a palette; gaps between the ids do not
            matter.
        out: the JSON; file names are relative to ``images``.
        class_name: of all objects.
        mask_suffix: suffix of the masks' names: "_mask" for a.jpg and a_mask.png.
        void: an id that is no object, such as the 255 of PASCAL VOC's outlines.
        advance: called with 1 after each image.

    Raises:
        DatasetError: an image without mask, other sizes, masks that are no id images, each with its name.
    """
    images, masks = Path(images), Path(masks)
    found = image_files(images)
    if not found:
        raise DatasetError(f"{images}: expected a folder with images, found none")
    items = [Item(image.name, image, _mask_of(image, masks, mask_suffix)) for image in found]
    no_object = (0,) if void is None else (0, void)

    def read(item: Item, size: tuple[int, int]) -> list[Record]:
        ids = read_ids(item.annotation, size)
        columns = np.ascontiguousarray(ids.T)  # run lengths go down columns
        values = [value for value in np.unique(ids) if value not in no_object]
        return [annotation(class_name, (columns == value).T) for value in values]

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


def read_ids(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """An image file whose pixels are numbers, int32 [H, W]; a palette's colours do not matter.

    Raises:
        DatasetError: it cannot be read, is a colour image or is not of ``size`` (height, width).
    """
    try:
        with open_picture(path) as image:
            mode, ids = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    if ids.ndim != 2 or ids.dtype.kind not in "bui":
        raise DatasetError(f"{path}: expected one channel of whole numbers, got PIL's mode {mode!r}")
    if ids.shape != size:
        raise DatasetError(
            f"{path}: expected {size[1]} x {size[0]} pixels as the image has, got {ids.shape[1]} x "
            f"{ids.shape[0]}"
        )
    return ids.astype(np.int32)


def to_id_map(found: Prediction, *, score_threshold: float = 0.0) -> NDArray[np.uint16]:
    """Which instance each pixel belongs to: uint16 [H, W], 0 for none.

    An instance's id is its place in ``found``, from 1. Where masks overlap the higher score wins; of equal
    scores the earlier. The id of an instance that others cover completely does not occur.

    Args:
        found: what the model returns for an image: ``boxes``, ``labels``, ``scores``, ``masks``, as bool or
            run lengths (of one instance at least).
        score_threshold: scores from which instances are drawn, inclusive.

    Raises:
        TypeError, ValueError: a tensor is missing or of another shape, or there are more than 65,535.
    """
    labels = found["labels"].tolist() if "labels" in found else []
    check_prediction("to_id_map", found, max(labels, default=0) + 1, rle=True)
    scores, masks = found["scores"].detach().cpu(), found["masks"]
    if len(masks) > MOST_IDS:
        fail("to_id_map", "prediction", f"of at most {MOST_IDS} instances", str(len(masks)))
    if isinstance(masks, list) and not masks:
        fail("to_id_map", "prediction['masks']", "a tensor where there are none", "an empty list")
    size = masks.shape[1:] if isinstance(masks, Tensor) else masks[0]["size"]
    ids = np.zeros(size, dtype=np.uint16)
    for k in reversed(scores.argsort(descending=True, stable=True).tolist()):  # the best one last, on top
        if scores[k] < score_threshold:
            continue
        if isinstance(masks, Tensor):
            ids[masks[k].detach().cpu().ne(0).numpy()] = k + 1
        else:
            window, top, left = decode_window(masks[k])
            ids[top : top + window.shape[0], left : left + window.shape[1]][window] = k + 1
    return ids


def write_id_map(path: str | Path, found: Prediction, *, score_threshold: float = 0.0) -> None:
    """Write `to_id_map` as a 16-bit grey PNG, which is either left as it was or complete.

    Raises:
        TypeError, ValueError: see `to_id_map`.
        OSError: ``path`` cannot be written.
    """
    ids = to_id_map(found, score_threshold=score_threshold)
    with replacing(path, "write_id_map") as temporary:
        Image.fromarray(ids).save(temporary, format="PNG")
