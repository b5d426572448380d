"""An overview picture of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvf
from torchvision.utils import make_grid

from .._utils.files import replacing
from ..data import CocoInstances
from ..evaluation import draw_instances

TILE = 320  # pixels of a picture's longer side


def contact_sheet(dataset: CocoInstances, path: str | Path, *, count: int = 12, columns: int = 4) -> None:
    """A picture of ``count`` images with their masks, in the order of their numbers of objects.

    Args:
        dataset: what to draw; its ``transforms`` must be None.
        path: a PNG.
        count: images, evenly spread over the order by number of objects.
        columns: images in a row.

    Raises:
        DatasetError: an image that cannot be read.
        OSError: ``path`` cannot be written.
    """
    # Without crowd regions and boxes without width or height, which are not drawn.
    numbers = [len(dataset.objects_of(image_id)) for image_id in dataset.image_ids]
    order = sorted(range(len(numbers)), key=lambda index: -numbers[index])
    chosen = [order[round(k)] for k in np.linspace(0, len(order) - 1, min(count, len(order)))]
    pictures = []
    for index in chosen:
        image, target = dataset[index]
        factor = TILE / max(image.shape[1:])
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        masks = tvf.resize(target["masks"], size).as_subclass(torch.Tensor)
        shown = {"boxes": target["boxes"].as_subclass(torch.Tensor) * factor, "labels": target["labels"]}
        picture = draw_instances(
            tvf.resize(image, size, antialias=True).as_subclass(torch.Tensor),
            {**shown, "masks": masks},
            dataset.class_names,
        )
        pictures.append(picture)
    height, width = (max(picture.shape[dim] for picture in pictures) for dim in (1, 2))
    tiles = [
        torch.nn.functional.pad(
            picture, (0, width - picture.shape[2], 0, height - picture.shape[1]), value=255
        )
        for picture in pictures
    ]
    sheet = make_grid(torch.stack(tiles), nrow=columns, padding=4, pad_value=255)
    with replacing(path, "contact_sheet") as temporary:
        tvf.to_pil_image(sheet).save(temporary)
