"""Grid attention (paper section 3.3): the dot products of every pair of grid cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.checks import check_cells
from ._common import widen


def grid_attention(grid_features: Tensor, scale: float, cells: Tensor | None, tf32: bool = False) -> Tensor:
    """F_new(c, i, j) = scale * V_c . V_(i*S+j) (eq. 3), for all cells c or for the chosen ones.

    ``tf32`` says what PyTorch's own matmuls, which these are, know themselves.
    """
    batch, _, side, _ = grid_features.shape
    vectors = widen(grid_features).flatten(2)  # [B, C, N]
    if cells is None:
        rows = scale * torch.einsum("bcn,bcm->bnm", vectors, vectors)
        return rows.reshape(batch, side * side, side, side).to(grid_features.dtype)
    check_cells(cells, batch, side * side)
    rows = vectors.new_empty(len(cells), side * side)
    for image in range(batch):
        mine = cells[:, 0] == image
        rows[mine] = scale * vectors[image][:, cells[mine, 1]].T @ vectors[image]
    return rows.reshape(len(cells), side, side).to(grid_features.dtype)


def grid_attention_bwd(
    grad: Tensor, grid_features: Tensor, scale: float, cells: Tensor | None, tf32: bool = False
) -> Tensor:
    """DV = scale * V (dG + dG^T); with chosen cells only their rows of dG are not zero."""
    vectors = widen(grid_features).flatten(2)
    if cells is None:
        rows = widen(grad).flatten(2)  # dG: [B, N, N]
        out = torch.einsum("bcm,bnm->bcn", vectors, rows) + torch.einsum("bcn,bnm->bcm", vectors, rows)
        return (scale * out).reshape(grid_features.shape).to(grid_features.dtype)
    out = vectors.new_zeros(vectors.shape)
    rows = widen(grad).flatten(1)  # dG: [K, N]
    for image in range(len(vectors)):
        mine = cells[:, 0] == image
        chosen = cells[mine, 1]
        out[image] += vectors[image][:, chosen] @ rows[mine]
        out[image].index_add_(1, chosen, vectors[image] @ rows[mine].T)
    return (scale * out).reshape(grid_features.shape).to(grid_features.dtype)


def grid_attention_levels(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    cells: Sequence[Tensor],
    scale: float,
    tf32: bool = False,
) -> list[Tensor]:
    """Of each level the rows of chosen cells, or, where there are weights and biases, `cell_logits`."""
    if not weights:
        return [grid_attention(x, scale, chosen) for x, chosen in zip(maps, cells, strict=True)]
    out = []
    for x, weight, bias, chosen in zip(maps, weights, biases, cells, strict=True):
        check_cells(chosen, len(x), len(weight))
        out.append(cell_logits(widen(x), widen(weight), widen(bias), chosen).to(x.dtype))
    return out


def cell_logits(maps: Tensor, weights: Tensor, biases: Tensor, cells: Tensor) -> Tensor:
    """``weights[n] . maps[b] + biases[n]`` of each (b, n) of ``cells``: [K, h, w]. Differentiable."""
    images = cells[:, 0]
    rows = []
    for image, of_image in enumerate(maps.flatten(2)):
        chosen = cells[images == image, 1] if len(maps) > 1 else cells[:, 1]
        rows.append(torch.addmm(biases[chosen, None], weights[chosen], of_image))
    if len(rows) == 1:
        return rows[0].unflatten(1, maps.shape[2:])
    order = images.argsort(stable=True).argsort()  # from grouped by image back to the cells' order
    return torch.cat(rows)[order].unflatten(1, maps.shape[2:])
