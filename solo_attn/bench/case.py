"""One op on one set of inputs, and what is asked of its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops import BitMasks


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs.

    Attributes:
        op: its name.
        what: sizes, in words.
        inputs: tensors, those that a gradient is asked of first.
        kernel: ``(backend, *inputs)``, the public function.
        plain: ``(*inputs)``, what one would write in PyTorch.
        floor: what no implementation can do without: every input read once, every output written once, the
            matrix product. Into memory that is there already.
        floor_backward: the same of the gradient alone.
        limit: what ``floor`` does, in words.
        differentiable: how many of ``inputs`` have a gradient.
        others: more contenders, by name.
    """

    op: str
    what: str
    inputs: tuple[Any, ...]
    kernel: Callable[..., Any]
    plain: Callable[..., Any]
    floor: Callable[[], Any]
    limit: str
    differentiable: int = 0
    floor_backward: Callable[[], Any] | None = None
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)


def agree(out: Any, expected: Any) -> None:
    """Refuse results that differ by more than rounding; of masks, more than one pixel in 10,000.

    A pixel whose probability is the threshold up to rounding may fall on either side of it.

    Raises:
        AssertionError: they differ.
    """
    if isinstance(out, BitMasks):
        agree((out.to_bool(), out.areas, out.maskness), expected)
    elif isinstance(out, (tuple, list)):
        assert len(out) == len(expected)
        for a, b in zip(out, expected, strict=True):
            agree(a, b)
    elif isinstance(out, dict):
        agree(_decoded(out), _decoded(expected))
    elif out.dtype == torch.bool:
        assert out.shape == expected.shape
        wrong = int((out != expected).sum())
        assert wrong <= 1e-4 * out.numel() + 1, f"{wrong} of {out.numel()} pixels differ"
    else:
        largest = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-3 * largest, check_dtype=False)


def _decoded(rle: Any) -> Tensor:
    import pycocotools.mask as coco_mask

    return torch.from_numpy(coco_mask.decode(rle)).bool()


def read(*tensors: Tensor) -> None:
    """The fastest pass over memory that PyTorch has."""
    for x in tensors:
        flat = x.flatten().view(torch.uint8)
        flat[: flat.numel() // 4 * 4].view(torch.int32).amax()
