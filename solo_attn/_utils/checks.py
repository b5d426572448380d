"""Checks of arguments, with one form of message: the argument, what was expected, and what was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Prediction = Mapping[str, Any]
"""Instances of one image: ``boxes`` float32 [N, 4] xyxy in pixels, ``labels`` int64 [N] in 0..C-1, ``scores``
float32 [N] and ``masks`` bool [N, H, W] at the image's original size. Ground truth has no scores."""

_SHAPES = {"boxes": "[N, 4]", "labels": "[N]", "scores": "[N]", "masks": "[N, H, W]"}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def fail(op: str, argument: str, expected: str, got: str) -> NoReturn:
    """Raise ``op: expected argument expected, got got``."""
    raise ValueError(f"{op}: expected {argument} {expected}, got {got}")


def is_integer(value: object, least: int) -> TypeGuard[int]:
    """Whether it is an integer >= ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_size(value: object) -> bool:
    """Whether it is the length of a dimension: an integer of at least 0, or a symbol of one."""
    return is_integer(value, 0) or isinstance(value, torch.SymInt)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number, and neither infinite nor NaN."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer may be too large for a float
        return False


def check_number(op: str, argument: str, value: Any, *, finite: bool = True) -> None:
    """Refuse what is not a number (tensors, text and true are none), or not ``finite``."""
    if isinstance(value, torch.SymFloat):  # of a graph that is being traced
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{op}: expected {argument} to be a number, got {type(value).__name__}")
    huge = isinstance(value, int) and not is_finite(value)  # an integer too large for a float
    if huge or (finite and not is_finite(value)):
        fail(op, argument, "to be finite", "a huge integer" if huge else str(value))


def check_tensor(op: str, argument: str, x: Any, shape: str) -> None:
    """Refuse what is not a tensor with as many dims as ``shape``, such as "[B, C, S, S]", names."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {argument} to be a tensor of shape {shape}, got {type(x).__name__}")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        fail(op, argument, "to be a dense tensor", f"a {kind} one")
    if x.dim() != shape.count(",") + 1:
        fail(op, argument, f"of shape {shape}", f"{list(x.shape)} ({x.dim()} dims)")


def as_bool(masks: Tensor) -> Tensor:
    """Bool masks unchanged, others as "is not zero": on bool masks ``ne(0)`` makes int64 copies first."""
    return masks if masks.dtype == torch.bool else masks.ne(0)


def check_float(op: str, argument: str, x: Tensor) -> None:
    """Refuse dtypes other than float16, bfloat16, float32 and float64."""
    if x.dtype not in FLOAT_DTYPES:
        fail(op, argument, "of a float dtype (float16, bfloat16, float32, float64)", str(x.dtype))


def check_like(op: str, argument: str, x: Tensor, like: str, other: Tensor, *, dtype: bool = True) -> None:
    """Refuse a device (and dtype) other than that of another argument."""
    if x.device != other.device:
        fail(op, argument, f"on {like}'s device {other.device}", str(x.device))
    if dtype and x.dtype != other.dtype:
        fail(op, argument, f"of {like}'s dtype {other.dtype}", str(x.dtype))


_CELLS = "grid_attention: expected cells of (image < {}, cell < {})"
CELLS_IN_RANGE = _CELLS.format("B", "S*S")
"""The assertion of a GPU on chosen cells, whose values the host does not know; as in csrc/grid_attention."""


def check_cells(cells: Tensor, images: int, count: int) -> None:
    """Refuse chosen cells [K, 2] of `grid_attention` outside the batch or the grid, before anything is read.

    Args:
        cells: int64 [K, 2] of (image, cell).
        images: B.
        count: S * S.
    """
    if cells.shape[0] == 0:
        return
    low, high = cells.amin(0).tolist(), cells.amax(0).tolist()
    if low[0] < 0 or high[0] >= images or low[1] < 0 or high[1] >= count:
        got = f"images {low[0]}..{high[0]} and cells {low[1]}..{high[1]}"
        raise ValueError(f"{_CELLS.format(images, count)}, got {got}")


def check_prediction(
    function: str, prediction: Prediction, classes: int, *, scores: bool = True, rle: bool = False
) -> None:
    """Refuse missing tensors, other shapes, unequal N, and labels outside 0..classes-1.

    With ``rle``, masks may be a list of COCO's run lengths too.
    """
    keys = [key for key in _SHAPES if key != "scores" or scores]
    missing = [key for key in keys if key not in prediction]
    if missing:
        fail(function, "prediction", f"with the keys {keys}", f"no {missing} among {sorted(prediction)}")
    for key in keys:
        if not (rle and key == "masks" and isinstance(prediction[key], list)):
            check_tensor(function, f"prediction[{key!r}]", prediction[key], _SHAPES[key])
    count = len(prediction["labels"])
    for key in keys:
        if len(prediction[key]) != count:
            fail(function, f"prediction[{key!r}]", f"of N = {count} as labels has", str(len(prediction[key])))
    if prediction["boxes"].shape[1] != 4:
        fail(function, "prediction['boxes']", "of shape [N, 4]", str(list(prediction["boxes"].shape)))
    outside = [label for label in prediction["labels"].tolist() if not 0 <= label < classes]
    if outside:
        fail(function, "prediction['labels']", f"in 0..{classes - 1}", str(outside[0]))
