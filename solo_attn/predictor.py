"""Prediction: load a file of weights, pass images of any kind, get instances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ._utils.checks import fail
from ._utils.environment import device_named
from ._utils.errors import UsageError, extra_needed
from ._utils.files import replacing
from ._utils.limits import refuse_pixels
from ._utils.text import quantity
from .data.images import Percentiles, open_image, read_image
from .data.windows import Windows
from .export import ExportedModel, load_exported
from .export.files import ENDINGS
from .models import SOLO, InferenceSettings, ModelInfo, load_model

with extra_needed("solo_attn.predictor"):
    from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from supervision import Detections

DRAWN_FROM = 0.3  # the score from which `Result.save` draws


@dataclass(frozen=True)
class Result:
    """The instances of one picture, best first.

    Attributes:
        picture: where its pixels are read; `image` is all of them.
        boxes: float32 [N, 4], xyxy in pixels, x2 = last column + 1.
        labels: int64 [N], from 0.
        scores: float32 [N], descending.
        runs: the masks as N COCO run lengths, {"size": [H, W], "counts": bytes}.
        class_names: of each label.
        category_ids: COCO's category of each label.
    """

    picture: Windows
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    runs: list[Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.picture.size
        counted = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        inside = ", ".join(f"{count} {name}" for name, count in counted.items()) or "nothing"
        return f"Result({width} x {height} pixels: {inside})"

    @property
    def image(self) -> Tensor:
        """The picture, uint8 [3, H, W]; read at each call where it was predicted by windows."""
        return self.picture.whole()

    @property
    def masks(self) -> Tensor:
        """Bool [N, H, W], made at each call.

        Raises:
            UsageError: they take more than ``solo_attn.limits.mask_bytes``; `runs` are the same masks.
        """
        refuse_pixels("Result.masks", len(self.runs), self.picture.size)
        if not self.runs:
            return torch.zeros(0, *self.picture.size, dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(self.runs)).permute(2, 0, 1).bool()

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def above(self, score: float) -> Result:
        """The instances of that score or more."""
        keep = int((self.scores >= score).sum())
        return replace(
            self,
            boxes=self.boxes[:keep],
            labels=self.labels[:keep],
            scores=self.scores[:keep],
            runs=self.runs[:keep],
        )

    def as_dict(self, *, rle: bool = False) -> dict[str, Any]:
        """``boxes``, ``labels``, ``scores`` and ``masks`` (bool, or `runs`), as of the model itself."""
        found = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        return {**found, "masks": self.runs if rle and self.runs else self.masks}

    def draw(self, score: float = DRAWN_FROM) -> Tensor:
        """The picture with its instances from ``score`` on, uint8 [3, H, W]; see `draw_instances`."""
        from .evaluation import draw_instances

        chosen = self.above(score)
        return draw_instances(self.image, chosen.as_dict(rle=True), self.class_names, score_threshold=0.0)

    def save(self, path: str | Path, score: float = DRAWN_FROM) -> None:
        """Write `draw` as a picture file; ``path`` is either left as it was or complete.

        Raises:
            OSError, ValueError: ``path`` cannot be written, or its ending names no format.
        """
        picture = Image.fromarray(self.draw(score).permute(1, 2, 0).numpy())
        with replacing(path, "save") as temporary:
            endings = Image.registered_extensions()
            picture.save(temporary, format=endings.get(Path(path).suffix.lower(), "PNG"))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results, ready for `json`; see `solo_attn.formats.coco_results`."""
        from .formats import coco_results

        return coco_results(image_id, self.as_dict(rle=True), self.category_ids)

    def to_geojson(self, score: float = 0.0) -> dict[str, Any]:
        """Polygons as a FeatureCollection; see `solo_attn.formats.to_geojson`."""
        from .formats import to_geojson

        return to_geojson(self.above(score).as_dict(rle=True), self.class_names)

    def to_supervision(self) -> Detections:
        """``supervision.Detections``; needs ``pip install supervision``."""
        from .interop.supervision import to_detections

        return to_detections(self.as_dict(), self.class_names)


class Predictor:
    """A model with what it was trained for: ``predictor(picture)`` gives a `Result`.

    Args:
        model: a trained model, which is put into evaluation mode, or an exported one.
        info: its classes.

    Attributes:
        model: its ``settings`` hold thresholds and limits that may be changed.
        info: classes, and the configuration of the training.
    """

    model: SOLO | ExportedModel
    info: ModelInfo

    def __init__(self, model: SOLO | ExportedModel, info: ModelInfo) -> None:
        self.model, self.info = model.eval(), info

    def __repr__(self) -> str:
        settings, names = self.model.settings, self.info.class_names
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"Predictor({settings.backbone}, {quantity(len(names), 'class', 'classes')}: {shown})"

    @overload
    def __call__(self, images: str | Path | Image.Image | NDArray[Any] | Tensor) -> Result: ...
    @overload
    def __call__(self, images: Sequence[Any], batch_size: int = 1) -> list[Result]: ...
    def __call__(self, images: Any, batch_size: int = 1) -> Result | list[Result]:
        """The instances of a picture, or of each of a list.

        Args:
            images: a file, a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]; uint8, or floats
                in 0..1, or of any numbers where the model has ``percentiles``. Files and PIL images are
                turned as their EXIF orientation says. Or a list of these. With ``settings.tile``, TIFFs and
                memory maps are read by windows.
            batch_size: pictures that go through the model at a time, padded to one size.

        Raises:
            ImageError: a file that is missing or no image.
            TypeError, ValueError: none of the above, or a picture too thin to be resized.
        """
        if not isinstance(images, (list, tuple)):
            return next(self.stream([images]))
        return list(self.stream(images, batch_size))

    def stream(self, images: Iterable[Any], batch_size: int = 1) -> Iterator[Result]:
        """`__call__` for any number of pictures, one result after the other."""
        pictures = iter(images)
        while batch := [self.open(picture) for picture in islice(pictures, batch_size)]:
            yield from self.find(batch)

    def open(self, picture: Any) -> Windows:
        """An image of any kind, ready for `find`: this needs no model, and may be called from any thread.

        Raises:
            ImageError, TypeError, ValueError: see `__call__`.
        """
        settings = self.model.settings
        return as_windows(picture, settings.percentiles, settings.tile is not None)

    def find(self, batch: Sequence[Windows]) -> list[Result]:
        """The instances of images from `open`, which go through the model as one batch, or in tiles."""
        device, settings = self.model.device, self.model.settings
        if settings.tile is None:
            images = [picture.whole().to(device).float() / 255 for picture in batch]
            found = self.model.predict(images, rle=True)
        else:
            found = [
                self.model.predict_windows(picture.size, partial(_crop, picture, device), rle=True)
                for picture in batch
            ]
        return [
            Result(
                picture,
                instances["boxes"].cpu(),
                instances["labels"].cpu(),
                instances["scores"].cpu(),
                instances["masks"],
                tuple(self.info.class_names),
                tuple(self.info.category_ids),
            )
            for picture, instances in zip(batch, found, strict=True)
        ]


def load(file: str | Path, device: str = "auto", **settings: Any) -> Predictor:
    """A predictor of a trained model.

    Args:
        file: a ``.safetensors`` or ``.ckpt`` of this library, or what `solo_attn.export` has made of one.
        device: "cpu", "cuda", ...; "auto" takes the first accelerator, else the CPU. Exported files run on
            the CPU.
        settings: thresholds and limits that differ from the file's, such as ``score_threshold=0.2`` or
            ``tile=512`` (`solo_attn.models.InferenceSettings`); of an exported file the tiles alone.

    Raises:
        CheckpointError: the file is missing, no checkpoint, or does not fit its own settings.
        ValueError: a setting that is unknown, out of its range, or not one of inference.

    Example:
        >>> predictor = solo_attn.load("solo.safetensors")  # doctest: +SKIP
        >>> predictor("photo.jpg").save("found.png")  # doctest: +SKIP
    """
    model: SOLO | ExportedModel
    exported = Path(file).suffix in ENDINGS
    if exported:
        if device != "cpu" and not device.startswith("auto"):
            raise UsageError(f"load: expected device to be cpu with an exported file, got {device}")
        model, info = load_exported(file)
    else:
        model, info = load_model(file, device_named(device))
    if settings:
        names = ("tile", "tile_overlap") if exported else tuple(InferenceSettings.model_fields)
        others = [name for name in settings if name not in names]
        if others:
            known = ", ".join(names)
            raise UsageError(f"load: expected settings to be among {known}, got {', '.join(others)}")
        values = {**model.settings.as_dict(), **settings}
        model.settings = type(model.settings).parse(values, "load")
    return Predictor(model, info)


def _crop(picture: Windows, device: torch.device, *box: int) -> Tensor:
    return picture.window(*box).to(device).float() / 255


def as_windows(picture: Any, percentiles: Percentiles = None, tiled: bool = False) -> Windows:
    """A picture of any kind, its values of 8 bits once they are read.

    Args:
        picture: see `Predictor.__call__`.
        percentiles: of each channel, what becomes 0 and 255.
        tiled: leave a file or memory map on the disk if possible.

    Raises:
        ImageError: a file that is missing or no image.
        TypeError, ValueError: see `Predictor.__call__`.
    """
    if isinstance(picture, (str, Path)):
        if tiled:
            return open_image(picture, percentiles=percentiles)
        return Windows(read_image(picture, percentiles=percentiles).numpy(), "CYX")
    if isinstance(picture, np.ndarray) and not (tiled and isinstance(picture, np.memmap)):
        picture = picture.copy()  # it is read later, when the caller may have written the next frame into it
    elif isinstance(picture, Image.Image):
        deep = picture.mode[0] in "IF"
        if deep and percentiles is None:
            fail("Predictor", "a PIL image", "of 8 bits a channel", f"the mode {picture.mode}")
        turned = ImageOps.exif_transpose(picture)
        picture = np.array(turned if deep else turned.convert("RGB"))
    axes = "CYX"
    if isinstance(picture, np.ndarray):
        if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[2] != 3):
            fail("Predictor", "an array", "of shape [H, W, 3] or [H, W]", str(list(picture.shape)))
        axes = "YX" if picture.ndim == 2 else "YXC"
    elif isinstance(picture, Tensor):
        if picture.dim() != 3 or picture.shape[0] != 3:
            fail("Predictor", "a tensor", "of shape [3, H, W]", str(list(picture.shape)))
        picture = picture.detach().to("cpu", copy=True)  # for the same reason
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()
    else:
        kind = type(picture).__name__
        raise TypeError(
            f"Predictor: expected a file, a PIL image, an array, a tensor or a list of these, got {kind}"
        )
    if percentiles is not None:
        if picture.dtype.kind not in "uif":
            fail("Predictor", "a picture", "of integers or floats", str(picture.dtype))
        return Windows(picture, axes).scaled(percentiles)
    if picture.dtype == np.uint8:
        return Windows(picture, axes)
    if picture.dtype.kind != "f":
        fail("Predictor", "a picture", "of dtype uint8 or a float dtype", str(picture.dtype))
    low, high = (float(picture.min()), float(picture.max())) if picture.size else (0.0, 0.0)
    if not 0 <= low <= high <= 1:
        fail("Predictor", "floats", "in 0..1", f"{low:g}..{high:g}")
    channels = 1 if axes == "YX" else 3
    return Windows(picture, axes, np.stack([np.zeros(channels), np.ones(channels)]))
