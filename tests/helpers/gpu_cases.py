"""Every op on small inputs and on the paper's: what the tests on a GPU run, and compute-sanitizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import solo_attn
from solo_attn.backends import explain


@dataclass(frozen=True)
class Sizes:
    """Of a level: K cells, S, channels, its features and the image."""

    count: int
    side: int
    channels: int
    level: tuple[int, int]
    image: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return 2 * self.level[0], 2 * self.level[1]


SMALL = Sizes(count=5, side=5, channels=19, level=(7, 9), image=(53, 61))
PAPER = Sizes(count=50, side=40, channels=256, level=(84, 168), image=(1024, 2048))


@dataclass(frozen=True)
class Case:
    """``call(backend, *inputs)``; of its inputs the first ``differentiable`` have a gradient."""

    op: str
    inputs: Callable[[Sizes, torch.dtype], list[Tensor]]
    call: Callable[..., Any]
    differentiable: int = 0


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def grid(s: Sizes, dtype: torch.dtype) -> Tensor:
    return randn(2, s.channels, s.side, s.side, dtype=dtype) / s.channels**0.5


def chosen(s: Sizes) -> Tensor:
    """Of both images, unsorted, and one twice."""
    cells = torch.randint(s.side**2, (s.count,), generator=torch.Generator().manual_seed(0))
    cells[-1] = cells[0]
    return torch.stack([torch.arange(s.count) % 2 * (torch.arange(s.count) < s.count - 1), cells], dim=1)


def coarse(s: Sizes, dtype: torch.dtype) -> list[Tensor]:
    return [randn(s.count, *s.level, dtype=dtype), randn(s.count, s.side, s.side, dtype=dtype)]


def masks(s: Sizes) -> Tensor:
    return randn(s.count, *s.size, dtype=torch.float32) > 0


def sizes_of(coarse_logits: Tensor) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """The mask logits' size, the padded input's, and the original image's."""
    h, w = coarse_logits.shape[1:]
    return (2 * h, 2 * w), (8 * h - 3, 8 * w - 5), (9 * h, 7 * w)


def _paste(backend: str, c: Tensor, a: Tensor) -> Tensor:
    size, image, original = sizes_of(c)
    return solo_attn.paste_masks(c, a, size, size, image, original, backend=backend)


def _bits(backend: str, c: Tensor, a: Tensor) -> Any:
    size, _, _ = sizes_of(c)
    return solo_attn.mask_bits(c, a, size, size, backend=backend)[:3]


CASES = {
    "grid_attention": Case(
        "grid_attention",
        lambda s, dtype: [grid(s, dtype)],
        lambda backend, x: solo_attn.grid_attention(x, 0.7, backend=backend),
        1,
    ),
    "grid_attention_cells": Case(
        "grid_attention",
        lambda s, dtype: [grid(s, dtype), chosen(s)],
        lambda backend, x, cells: solo_attn.grid_attention(x, 0.7, cells, backend=backend),
        1,
    ),
    "attention_residual": Case(
        "attention_residual",
        lambda s, dtype: [randn(2, s.side**2, *s.size, dtype=dtype), grid(s, dtype)],
        lambda backend, x, g: solo_attn.attention_residual(x, g, 0.7, backend=backend),
        2,
    ),
    "attention_residual_in_place": Case(
        "attention_residual",
        lambda s, dtype: [randn(2, s.side**2, *s.size, dtype=dtype), grid(s, dtype)],
        lambda backend, x, g: solo_attn.attention_residual(x, g, 0.7, inplace=True, backend=backend),
    ),
    "upsample_add": Case(
        "upsample_add",
        coarse,
        lambda backend, c, a: solo_attn.upsample_add(c, a, sizes_of(c)[0], backend=backend),
        2,
    ),
    "dice_loss": Case(
        "dice_loss",
        lambda s, dtype: [*coarse(s, dtype), masks(s)],
        lambda backend, c, a, t: solo_attn.dice_loss(c, a, t, backend=backend),
        2,
    ),
    "mask_bits": Case("mask_bits", coarse, _bits),
    "matrix_nms": Case(
        "matrix_nms",
        lambda s, dtype: [randn(s.count, dtype=dtype).sigmoid(), masks(s), torch.arange(s.count) % 2],
        lambda backend, x, m, labels: solo_attn.matrix_nms(m, labels, x, backend=backend),
        1,
    ),
    "paste_masks": Case("paste_masks", coarse, _paste),
}


def backends(op: str, device: str) -> list[str]:
    """Those that run there, but the reference, which is plain PyTorch, and the C++ of the CPU."""
    able = [choice for choice in explain(op, device=device).choices if choice.reason is None]
    return [choice.backend for choice in able if choice.backend not in ("reference", "cpu")]


def gradients(case: Case, backend: str, inputs: list[Tensor]) -> list[Tensor]:
    """Results, and the gradients for an upstream gradient that repeats for equal shapes."""
    leaves = [x.detach().requires_grad_(k < case.differentiable) for k, x in enumerate(inputs)]
    out = case.call(backend, *leaves)
    if not case.differentiable:
        return list(out) if isinstance(out, tuple) else [out]
    upstream = randn(*out.shape, dtype=torch.float32).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves[: case.differentiable], upstream)]


def main() -> None:
    """Run everything once, on the GPU, by all backends or those that are named: for compute-sanitizer."""
    for name, case in CASES.items():
        able = backends(case.op, "cuda")
        for backend in [one for one in able if one in (sys.argv[1:] or able)]:
            inputs = [x.cuda() for x in case.inputs(SMALL, torch.float32)]
            gradients(case, backend, inputs)
            torch.cuda.synchronize()
            print(name, backend, flush=True)


if __name__ == "__main__":
    main()
