"""Writing a model as ONNX or .pt2, with all that its user must know as metadata."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from .. import __version__
from .._utils.checks import is_integer
from .._utils.errors import UsageError, extra_needed
from .._utils.files import replacing
from .._utils.readers import one_line
from ..models import SOLO, ModelInfo, load_model
from ..models.layers import DeformConv
from ..models.solo import SIZE_DIVISIBLE
from .program import FixedProgram, Found

ENDINGS = (".onnx", ".pt2")
OPSET = 18
CANDIDATES = 100  # of a level
METADATA_FILE = "solo_attn.json"  # in a .pt2
_TRACING = threading.Lock()  # one at a time: timm's function is replaced meanwhile


def export_model(
    checkpoint: str | Path, out: str | Path, *, candidates: int = CANDIDATES, compiled: bool = False
) -> Path:
    """Write a trained model as one file for runtimes without this library.

    Args:
        checkpoint: a ``.ckpt`` or ``.safetensors`` of this library.
        out: ``.onnx`` for ONNX of standard operators at opset 18 (needs the extra "export"), or ``.pt2`` for
            a program that `torch.export.load` reads.
        candidates: K, the (cell, class) pairs of a level that go on, the best ones. Where more of an image
            are above ``score_threshold`` the result ``left_out`` says how many were not looked at.
        compiled: a ``.pt2`` that AOTInductor compiles for this machine's CPU, for C++ without Python too.
            It takes minutes and a C++ compiler (`CXX`).

    Returns:
        ``out``, which is there whole or as it was before.

    Raises:
        CheckpointError: see `solo_attn.models.load_model`.
        ValueError: another ending, ``candidates`` is no integer >= 1, the model has deformable convolutions,
            or AOTInductor cannot compile it.
        MissingExtraError: onnx or onnxscript is not installed.

    Example:
        >>> export_model("solo.safetensors", "solo.onnx")  # doctest: +SKIP
    """
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise UsageError(f"export: expected OUT to end with {' or '.join(ENDINGS)}, got {out}")
    if compiled and out.suffix != ".pt2":
        raise UsageError(f"export: expected OUT to end with .pt2 where it is compiled, got {out}")
    if not is_integer(candidates, 1):
        raise UsageError(f"export: expected candidates to be an integer >= 1, got {candidates!r}")
    if out.suffix == ".onnx":
        _need_onnx()
    model, info = load_model(checkpoint)
    if any(isinstance(module, DeformConv) for module in model.modules()):
        raise UsageError(
            f"export: expected {checkpoint} to be a model without deformable convolutions, which are no "
            "standard operator of ONNX, got one with them"
        )
    program = traced(model, candidates)
    told = metadata(model, info, candidates)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, durable=True) as temporary:
        if out.suffix == ".onnx":
            _write_onnx(program, told, temporary)
        elif compiled:
            _compile(program, told, temporary)
        else:
            torch.export.save(program, temporary, extra_files={METADATA_FILE: json.dumps(told)})
    return out


def traced(model: SOLO, candidates: int = CANDIDATES) -> ExportedProgram:
    """`FixedProgram` of a model by `torch.export`, for batches and images of any size.

    Args:
        model: is not changed.
        candidates: see `export_model`.
    """
    program = FixedProgram(model, candidates)
    height, width = (SIZE_DIVISIBLE * Dim(name, min=1) for name in ("rows", "columns"))
    # Traced with sizes of which none is 1 on any level: such a size would have to be 1 in every image.
    example = torch.zeros(2, 3, 3 * SIZE_DIVISIBLE, 5 * SIZE_DIVISIBLE)
    sizes = ({0: Dim("batch", min=1), 2: height, 3: width},)
    with _TRACING, _padding_in_integers():
        return torch.export.export(program, (example,), dynamic_shapes=sizes)


@contextmanager
def _padding_in_integers() -> Iterator[None]:
    """In this block timm computes the padding "same", as TensorFlow has it, in integers.

    It rounds quotients of floats, of which torch.export would keep every step in expressions that grow with
    each convolution, until it takes hours. Of sides that are visibly multiples of 32, as in `FixedProgram`,
    integers give constants.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    theirs = getattr(padding, "get_same_padding", None)
    if theirs is None:
        yield
        return

    def get_same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
        return max((-(-x // stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - x, 0)

    padding.get_same_padding = get_same_padding
    try:
        yield
    finally:
        padding.get_same_padding = theirs


def metadata(model: SOLO, info: ModelInfo, candidates: int) -> dict[str, str]:
    """What the file says beside the program; every value is JSON.

    ``version``, ``class_names`` and ``category_ids`` by label, ``candidates``, and all settings of the model:
    ``image_mean``, ``image_std``, ``min_size``, ``max_size``, ``tile``, ``percentiles``, thresholds, others.
    """
    told: dict[str, Any] = {
        "version": __version__,
        "class_names": info.class_names,
        "category_ids": info.category_ids,
        "candidates": candidates,
        **model.settings.as_dict(),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in told.items()}


def _need_onnx() -> None:
    """Before a model is traced, which takes much longer than to find out."""
    with extra_needed("export"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx wants it, and would say so less clearly


def _write_onnx(program: ExportedProgram, told: dict[str, str], path: Path) -> None:
    import onnx

    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=list(Found._fields),
        verbose=False,
    )
    assert made is not None, "of dynamo=True"
    content = made.model_proto
    # torch.export calls a height 32*s30, and says so of every intermediate result.
    del content.graph.value_info[:]
    names = {"images": ("batch", None, "height", "width"), "masks": ("batch", None, "height/4", "width/4")}
    for value in (*content.graph.input, *content.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, names.get(value.name, ("batch",)), strict=False
        ):
            if name is not None:
                dimension.dim_param = name
    onnx.helper.set_model_props(content, told)
    onnx.save(content, path)


def _compile(program: ExportedProgram, told: dict[str, str], path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    settings = {"aot_inductor.metadata": told}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except RuntimeError as error:
        raise UsageError(
            "export: AOTInductor could not compile the program (it needs a C++ compiler, CXX): "
            f"{one_line(error)}"
        ) from error
