"""Running an exported file in Python: what `Predictor` needs of a model."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import fail
from .._utils.errors import extra_needed
from .._utils.limits import refuse_pixels
from .._utils.readers import one_line
from ..models import CheckpointError, ModelInfo, ModelSettings
from ..models.checkpoint import KEY, info_of
from ..models.inference import boxes_of, boxes_of_runs
from ..models.layers import bilinear
from ..models.solo import SIZE_DIVISIBLE, normalisation, resized_size
from ..models.tiling import Crop, assemble, cropping, find_pieces
from ..ops import paste_masks
from .files import ENDINGS, METADATA_FILE
from .program import Found

Run = Callable[[Tensor], Sequence[Tensor]]


class ExportedModel(nn.Module):
    """An exported file in the place of a `SOLO` in evaluation mode; it runs on the CPU.

    Images are resized and padded as the model does it, and masks are brought to the images' size.

    Args:
        run: from images [B, 3, H, W] to the parts of `Found`.
        settings: of the model. But for ``tile`` and ``tile_overlap`` they are part of the program.
        candidates: K of the program.
        digest: of the file, by which a run that goes on knows it.
    """

    settings: ModelSettings
    candidates: int
    digest: Tensor

    def __init__(self, run: Run, settings: ModelSettings, candidates: int, digest: bytes) -> None:
        super().__init__()
        self._run, self.settings, self.candidates = run, settings, candidates
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self._colour = normalisation(settings)[0]  # what the model pads with
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where images are taken from."""
        return torch.device("cpu")

    def predict(self, images: Sequence[Tensor], *, rle: bool = False) -> list[dict[str, Any]]:
        """Instances of each image; see `SOLO.predict`.

        Raises:
            ValueError: an image too thin to be resized.
        """
        if self.settings.tile is None:
            return self._predict(images, rle)
        return [self.predict_windows((x.shape[1], x.shape[2]), cropping(x), rle=rle) for x in images]

    def predict_windows(self, size: tuple[int, int], crop: Crop, *, rle: bool = False) -> dict[str, Any]:
        """Instances of a picture that is read tile by tile; see `SOLO.predict_windows`.

        Raises:
            ValueError: ``settings.tile`` is None.
        """
        tile, overlap = self.settings.tile, self.settings.tile_overlap
        if tile is None:
            fail("ExportedModel.predict_windows", "settings.tile", "to be an integer", "None")
        pieces = find_pieces(lambda x: self._predict(x, False), size, crop, tile, overlap, self._colour)
        return assemble(pieces, size, rle)

    def _predict(self, images: Sequence[Tensor], rle: bool) -> list[dict[str, Any]]:
        resized = [self._resized(image) for image in images]
        height, width = (
            -(-max(image.shape[axis] for image in resized) // SIZE_DIVISIBLE) * SIZE_DIVISIBLE
            for axis in (1, 2)
        )
        # The mean, which is 0 once it is normalised.
        batch = torch.tensor(self._colour)[:, None, None].repeat(len(images), 1, height, width)
        for place, image in zip(batch, resized, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        try:
            found = Found(*self._run(batch))
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's have no type in common but this
            raise RuntimeError(f"export: the program failed: {one_line(error)}") from error
        if int(found.left_out.max()):
            warnings.warn(
                f"export: expected at most {self.candidates} candidates on each level of an image, got "
                f"{int(found.left_out.max())} more, which were left out; export with a higher --candidates",
                stacklevel=2,
            )
        sizes = [
            ((x.shape[1], x.shape[2]), (y.shape[1], y.shape[2])) for x, y in zip(resized, images, strict=True)
        ]
        return [self._pasted(found, k, *pair, rle) for k, pair in enumerate(sizes)]

    def _resized(self, image: Tensor) -> Tensor:
        settings = self.settings
        size = resized_size((image.shape[1], image.shape[2]), settings.sizes[-1], settings.max_size)
        if min(size) == 0:
            got = f"{list(image.shape)}, which would become {[3, *size]}"
            fail("export", "an image", f"to keep a pixel on each side at max_size {settings.max_size}", got)
        return bilinear(image[None], size)[0]

    def _pasted(
        self, found: Found, k: int, image_size: tuple[int, int], original: tuple[int, int], rle: bool
    ) -> dict[str, Any]:
        count = int(found.count[k])
        size = (found.masks.shape[2], found.masks.shape[3])
        logits = found.masks[k, :count].logit(eps=1e-6)
        arguments = (logits, None, size, size, image_size, original, self.settings.mask_threshold)
        instances = {"labels": found.labels[k, :count], "scores": found.scores[k, :count]}
        if rle:
            runs = list(paste_masks(*arguments, rle=True)) if count else []
            return {"boxes": boxes_of_runs(runs), **instances, "masks": runs}
        refuse_pixels("predict", count, original)
        masks = paste_masks(*arguments) if count else torch.zeros(0, *original, dtype=torch.bool)
        return {"boxes": boxes_of(masks), **instances, "masks": masks}


def load_exported(path: str | Path) -> tuple[ExportedModel, ModelInfo]:
    """The program of a file of `export_model`, and its classes.

    ONNX is run by onnxruntime. A ``.pt2`` is a program, a compiled one machine code: take it from those whom
    you trust.

    Raises:
        CheckpointError: no such file, or one that `export_model` has not written.
        MissingExtraError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"export: expected a {' or '.join(ENDINGS)} file, got {path}, which is not there"
        )
    try:
        run, told = (_onnx if path.suffix == ".onnx" else _pt2)(path)
        settings = ModelSettings.parse(
            {name: json.loads(told[name]) for name in ModelSettings.model_fields if name in told}, "export"
        )
        classes = {name: json.loads(told[name]) for name in ("class_names", "category_ids")}
        model = {"num_classes": len(classes["class_names"]), **settings.as_dict()}
        info = info_of({KEY: {"model": model, **classes, "config": {}}}, path)
        candidates = int(told["candidates"])
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"export: expected {path} to be written by solo-attn export: {one_line(error)}"
        ) from error
    return ExportedModel(run, settings, candidates, hashlib.sha256(path.read_bytes()).digest()), info


def _onnx(path: Path) -> tuple[Run, dict[str, str]]:
    with extra_needed("export"):
        import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(list(Found._fields), {"images": images.numpy()})]

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _pt2(path: Path) -> tuple[Run, dict[str, str]]:
    with zipfile.ZipFile(path) as archive:
        compiled = any("/aotinductor/" in name for name in archive.namelist())
    if compiled:
        from torch._inductor import aoti_load_package

        package = aoti_load_package(str(path))
        return lambda images: package(images), dict(package.get_metadata())
    files = {METADATA_FILE: ""}
    # The guards want P6 to be larger than one pixel, as it was in the trace; the program does not.
    module = torch.export.load(path, extra_files=files).module(check_guards=False)
    # A function, since a module inside another would have to follow its train() and eval(), and refuses.
    return lambda images: module(images), json.loads(files[METADATA_FILE])
