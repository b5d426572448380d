"""New memory on a CPU in huge pages, as the C++ kernels take it (csrc/common/fresh.h)."""

from __future__ import annotations

import ctypes
import functools
import mmap
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PAGE = 2 << 20  # bytes of a huge page
_WORTHWHILE = 2 * _PAGE
_EVERY = 8 * _PAGE
_SLOW, _PAUSE = 1e-3, 1.0  # seconds
_WORD = 8
_resume = 0.0


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``, faster where the result is large, on a CPU and has no gradient.

    Args:
        x: [n, ...].
        index: int64 [k], in 0..n-1.
    """
    row = x[0].numel() * x.element_size() if len(x) else 0
    large = row * len(index) >= _WORTHWHILE
    if not large or x.device.type != "cpu" or x.requires_grad or not x.is_contiguous():
        return x[index]
    if torch.compiler.is_compiling():
        return x[index]
    out = torch.empty((len(index), *x.shape[1:]), dtype=x.dtype)
    _ask_for_huge_pages(out)
    source, target = x.flatten(1), out.flatten(1)
    if row % _WORD == 0 and x.data_ptr() % _WORD == 0:
        source, target = source.view(torch.int64), target.view(torch.int64)
    torch.index_select(source, 0, index, out=target)
    return out


def _ask_for_huge_pages(x: Tensor) -> None:
    """Of uninitialised memory; what takes long is left to small pages, as there."""
    global _resume
    madvise = _madvise()
    before = time.monotonic()
    if madvise is None or before < _resume:
        return
    begin = -(-x.data_ptr() // _PAGE) * _PAGE
    end = (x.data_ptr() + x.numel() * x.element_size()) // _PAGE * _PAGE
    if end <= begin or madvise(begin, end - begin, mmap.MADV_HUGEPAGE) != 0:
        return
    for page in range(begin, end, _EVERY):
        ctypes.memset(page, 0, 1)
        now = time.monotonic()
        if now - before > _SLOW:
            if page + _PAGE < end:
                madvise(page + _PAGE, end - page - _PAGE, mmap.MADV_NOHUGEPAGE)
            _resume = now + _PAUSE
            return
        before = now


@functools.cache
def _madvise() -> Callable[..., int] | None:
    """The system's function of (address, bytes, advice); None where there is none, or no huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found: Any = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise: Callable[..., int] | None = found
    return madvise
