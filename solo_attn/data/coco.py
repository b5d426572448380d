"""Any COCO-format instance dataset."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .._utils.text import shown
from .images import ImageError, Percentiles, read_image, unreadable
from .validate import (
    DatasetError,
    DatasetSummary,
    OnDegenerate,
    check_content,
    drop_unusable,
    is_object,
    raise_faults,
    read_annotations,
)

Sample = tuple[Tensor, dict[str, Tensor]]


class CocoInstances(Dataset[Sample]):
    """Images with their instances, from COCO-format annotations: polygons, run-length encodings, crowds.

    ``self[i]`` is (image, target), after the transforms if there are any:

    - image: tv_tensors.Image uint8 [3, H, W];
    - target: ``boxes`` tv_tensors.BoundingBoxes float32 [N, 4] (xyxy, x2 = x1 + w), ``labels`` int64 [N] in
      0..num_classes-1, ``masks`` tv_tensors.Mask uint8 [N, H, W], ``image_id`` int64 scalar.

    Crowd regions are not learned and are left out; ``coco`` keeps them for the evaluation. Images without
    objects stay, with N = 0. An image is turned by its EXIF orientation where that gives it the size that the
    annotations say, and else read as stored.

    Args:
        images: folder that the annotations' file names are relative to.
        annotations: COCO-format JSON.
        transforms: (image, target) -> (image, target), such as `train_transforms`.
        on_degenerate: "error", or "skip" to leave out objects whose box has no width or height.
        percentiles: of each channel of an image, those that become 0 and 255; None takes images of 8 bits a
            channel as they are.

    Attributes:
        coco: the annotations as pycocotools holds them, all of them.
        summary: the counts of `check_dataset`.
        image_ids: in the order of this dataset.
        category_ids: COCO's category id of each label, ascending.
        class_names: name of each label.

    Raises:
        DatasetError: faults of the dataset (see `check_dataset`); later an image that cannot be decoded.
        ValueError: another ``on_degenerate``.
    """

    images: Path
    annotations: Path
    transforms: Callable[[Any, Any], Any] | None
    summary: DatasetSummary
    coco: COCO
    class_names: list[str]
    percentiles: Percentiles

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: Callable[[Any, Any], Any] | None = None,
        *,
        on_degenerate: OnDegenerate = "error",
        percentiles: Percentiles = None,
    ) -> None:
        self.images, self.annotations, self.transforms = Path(images), Path(annotations), transforms
        self.percentiles = percentiles
        content = read_annotations(annotations)
        self.summary = check_content(
            content, images, annotations, on_degenerate=on_degenerate, percentiles=percentiles
        )
        drop_unusable(content)
        self.coco = COCO()
        self.coco.dataset = cast(Any, content)  # not COCO(path): large files are read once
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        self.image_ids: list[int] = sorted(self.coco.imgs)
        self.category_ids: list[int] = sorted(self.coco.cats)
        self.class_names = [str(self.coco.cats[k]["name"]) for k in self.category_ids]
        self._labels = {category: label for label, category in enumerate(self.category_ids)}

    @property
    def categories(self) -> dict[int, str]:
        """COCO's category ids, ascending, and their names."""
        return dict(zip(self.category_ids, self.class_names, strict=True))

    @property
    def num_classes(self) -> int:
        """Number of categories."""
        return len(self.category_ids)

    def check_images(self, advance: Callable[[int], None] | None = None) -> None:
        """Decode every image once, on all cores, so that a truncated one is found before training.

        Args:
            advance: called with 1 after each of the ``len(self)`` images, from the calling thread.

        Raises:
            DatasetError: one message for all images that cannot be decoded; it lists the first ones.
        """
        paths = [self.path_of(image_id) for image_id in self.image_ids]
        raise_faults(
            self.annotations,
            [
                f"{paths[index]} (image id {self.image_ids[index]}): {error.reason}"
                for index, error in unreadable(paths, advance, self.percentiles)
            ],
        )

    def objects_of(self, image_id: int) -> list[Any]:
        """An image's annotations that training learns: no crowd regions and no degenerate boxes."""
        return [found for found in self.coco.imgToAnns.get(image_id, []) if is_object(found)]

    def path_of(self, image_id: int) -> Path:
        """An image's file."""
        return self.images / str(self.coco.imgs[image_id]["file_name"])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = self.image_ids[index]
        path, entry = self.path_of(image_id), self.coco.imgs[image_id]
        size = height, width = entry["height"], entry["width"]
        try:
            pixels = read_image(path, exif=False, percentiles=self.percentiles)
            if pixels.shape[1:] != size:  # annotated as viewers turn it
                pixels = read_image(path, percentiles=self.percentiles)
        except ImageError as error:
            raise DatasetError(f"{path} (image id {image_id}): {error.reason}") from error
        if pixels.shape[1:] != size:
            raise DatasetError(
                f"{path} (image id {image_id}): expected {width} x {height} pixels as annotated, got "
                f"{pixels.shape[2]} x {pixels.shape[1]}; it was changed since it was checked"
            )
        image = tv_tensors.Image(pixels)
        objects = self.objects_of(image_id)
        # Column by column, as run lengths are decoded: transposing 375 masks took half of the time.
        masks = np.zeros((len(objects), width, height), dtype=np.uint8)
        for mask, annotation in zip(masks, objects, strict=True):
            try:
                mask[:] = self.coco.annToMask(annotation).T
            except Exception as error:  # pycocotools raises anything that its C code fails with
                raise DatasetError(
                    f"{self.annotations}: annotation id {annotation['id']}: its segmentation cannot be "
                    f"decoded: {error}"
                ) from error
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in objects], dtype=torch.int64),
            "masks": tv_tensors.Mask(torch.from_numpy(masks).transpose(1, 2)),
            "image_id": torch.tensor(image_id),
        }
        return (image, target) if self.transforms is None else self.transforms(image, target)


def classes_differ(expected: Mapping[int, str], got: Mapping[int, str]) -> str | None:
    """How two lists of categories, id -> name, differ; None if they have the same ids and names."""
    told = [f"no id {k} ({shown(expected[k])})" for k in expected if k not in got]
    told += [f"another id {k} ({shown(got[k])})" for k in got if k not in expected]
    told += [
        f"id {k} as {shown(got[k])} in place of {shown(expected[k])}"
        for k in expected
        if k in got and got[k] != expected[k]
    ]
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "") or None


def collate(batch: Sequence[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Samples as the model takes them: a list of images and a list of targets."""
    return [image for image, _ in batch], [target for _, target in batch]
