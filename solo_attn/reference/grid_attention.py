"""Grid attention (paper section 3.3): the dot products of every pair of grid cells."""

from __future__ import annotations

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
