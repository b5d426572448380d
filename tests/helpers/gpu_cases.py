"""Every op on small inputs and on the paper's: what the tests on a GPU run, and compute-sanitizer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """``call(backend, *inputs)``; of its inputs the first ``differentiable`` have a gradient.

    The host waits on the backends ``waits``, which a CUDA graph cannot hold.
    """

    op: str
    inputs: Callable[[Sizes, torch.dtype], list[Tensor]]
    call: Callable[..., Any]
    differentiable: int = 0
    waits: tuple[str, ...] = ()


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def grid(s: Sizes, dtype: torch.dtype) -> Tensor:
    return randn(2, s.channels, s.side, s.side, dtype=dtype) / s.channels**0.5


def chosen(s: Sizes) -> Tensor:
    """Of both images, unsorted, and one twice."""
    cells = torch.randint(s.side**2, (s.count,), generator=torch.Generator().manual_seed(0))
    cells[-1:] = cells[:1]
    return torch.stack([torch.arange(s.count) % 2 * (torch.arange(s.count) < s.count - 1), cells], dim=1)


def coarse(s: Sizes, dtype: torch.dtype) -> list[Tensor]:
    return [randn(s.count, *s.level, dtype=dtype), randn(s.count, s.side, s.side, dtype=dtype)]


def three(s: Sizes) -> list[Sizes]:
    """Levels of other sizes each, of which one has no cells and one is as large as all are compared at."""
    (h, w), side = s.level, s.side
    return [
        s,
        replace(s, count=0, side=side // 2, level=(h // 2, w // 2)),
        replace(s, count=s.count // 2 + 1, side=side // 2 + 1, level=(h // 2 + 1, w // 2 + 1)),
    ]


def all_coarse(s: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """Coarse logits and attention rows by turns."""
    return [x for level in three(s) for x in coarse(level, dtype)]


def outputs(s: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """Each level's maps, weights and biases of all cells, and chosen cells."""
    return [
        x
        for level in three(s)
        for x in (
            randn(2, s.channels, *level.level, dtype=dtype) / s.channels**0.5,
            randn(level.side**2, s.channels, dtype=dtype),
            randn(level.side**2, dtype=dtype),
            chosen(level),
        )
    ]


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


def _with_sizes(x: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
    return [(c, a, sizes_of(c)[0]) for c, a in zip(x[::2], x[1::2], strict=True)]


def _bits_of_levels(backend: str, *x: Tensor) -> Any:
    size, _, _ = sizes_of(x[0])
    return solo_attn.mask_bits_levels(_with_sizes(x), size, backend=backend)[:3]


def _dice_of_levels(backend: str, *x: Tensor) -> Tensor:
    levels = list(zip(x[0:6:2], x[1:6:2], x[6:], strict=True))
    return solo_attn.dice_loss_levels(levels, backend=backend)


def _paste_of_levels(backend: str, *x: Tensor) -> Tensor:
    size, image, original = sizes_of(x[0])
    return solo_attn.paste_masks_levels(_with_sizes(x[:6]), x[6], size, image, original, backend=backend)


def _logits_of_levels(backend: str, *x: Tensor) -> Any:
    return tuple(solo_attn.cell_logits(x[::4], x[1::4], x[2::4], x[3::4], backend=backend))


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
    # Gradients are those of the ops above, or PyTorch's own.
    "grid_attention_levels": Case(
        "grid_attention",
        lambda s, dtype: [x for level in three(s) for x in (grid(level, dtype), chosen(level))],
        lambda backend, *x: tuple(solo_attn.grid_attention_levels(x[::2], 0.7, x[1::2], backend=backend)),
    ),
    "cell_logits": Case("grid_attention", outputs, _logits_of_levels, waits=("triton",)),
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
    "dice_loss_levels": Case(
        "dice_loss",
        lambda s, dtype: [*all_coarse(s, dtype), *map(masks, three(s))],
        _dice_of_levels,
        6,
    ),
    "mask_bits": Case("mask_bits", coarse, _bits),
    "mask_bits_levels": Case("mask_bits", all_coarse, _bits_of_levels),
    "matrix_nms": Case(
        "matrix_nms",
        lambda s, dtype: [randn(s.count, dtype=dtype).sigmoid(), masks(s), torch.arange(s.count) % 2],
        lambda backend, x, m, labels: solo_attn.matrix_nms(m, labels, x, backend=backend),
        1,
    ),
    "paste_masks": Case("paste_masks", coarse, _paste),
    "paste_masks_levels": Case(
        "paste_masks",
        lambda s, dtype: [*all_coarse(s, dtype), torch.arange(s.count + s.count // 2, -1, -2)],
        _paste_of_levels,
        waits=("triton",),
    ),
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
