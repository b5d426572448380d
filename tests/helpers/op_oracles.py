"""Naive oracles: float64 loops straight from the spec, sharing no code with solo_attn.reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def taps(before: int, after: int) -> list[tuple[int, int, float]]:
    """Per output index its two source indices and the weight of the second (align_corners=False)."""
    result = []
    for index in range(after):
        place = max((index + 0.5) * before / after - 0.5, 0.0)
        low = min(int(place), before - 1)
        result.append((low, min(low + 1, before - 1), place - low))
    return result


def enlarge(x: Array, size: Sequence[int]) -> Array:
    """Bilinear [K, h, w] -> [K, H, W]."""
    out = np.full((x.shape[0], *size), np.nan)
    for row, (top, below, v) in enumerate(taps(x.shape[1], size[0])):
        for column, (left, right, u) in enumerate(taps(x.shape[2], size[1])):
            upper = (1 - u) * x[:, top, left] + u * x[:, top, right]
            lower = (1 - u) * x[:, below, left] + u * x[:, below, right]
            out[:, row, column] = (1 - v) * upper + v * lower
    return out


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def attention(features: Array, scale: float) -> Array:
    """F_new(c, i, j) = scale * V_c . V_(i*S+j): [B, C, S, S] -> [B, S*S, S, S]."""
    batch, _, side, _ = features.shape
    out = np.full((batch, side * side, side, side), np.nan)
    for b in range(batch):
        for cell in range(side * side):
            mine = features[b, :, cell // side, cell % side] if side else 0
            for i in range(side):
                for j in range(side):
                    out[b, cell, i, j] = scale * sum(mine * features[b, :, i, j])
    return out


def logits(coarse: Array, rows: Array | None, size: Sequence[int]) -> Array:
    return enlarge(coarse, size) + (0 if rows is None else enlarge(rows, size))


def dice(coarse: Array, rows: Array | None, targets: Array, eps: float) -> Array:
    probability = sigmoid(logits(coarse, rows, targets.shape[1:]))
    out = np.full(len(coarse), np.nan)
    for k in range(len(coarse)):
        overlap = squares = pixels = 0.0
        for p, t in zip(probability[k].flat, targets[k].flat, strict=True):
            truth = 1.0 if t else 0.0
            overlap, squares, pixels = overlap + p * truth, squares + p * p, pixels + truth
        out[k] = 1 - 2 * overlap / ((squares + eps) + (pixels + eps))
    return out


def probabilities(coarse: Array, rows: Array | None, size: Sequence[int], out_size: Sequence[int]) -> Array:
    """sigmoid at ``size``, then enlarged (docs/method.md, "Inference" step 3)."""
    return enlarge(sigmoid(logits(coarse, rows, size)), out_size)


def pasted(
    coarse: Array,
    rows: Array | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
) -> Array:
    """Probabilities at the original size (docs/method.md, "Inference" step 9)."""
    maps = probabilities(coarse, rows, size, out_size)
    padded = enlarge(maps, (4 * out_size[0], 4 * out_size[1]))
    return enlarge(padded[:, : image_size[0], : image_size[1]], original_size)


def words(mask: Array) -> list[int]:
    """Bit b of word w is pixel 64 w + b, row-major; as signed 64-bit integers."""
    flat = [bool(x) for x in mask.flat]
    result = [0] * -(-len(flat) // 64)
    for pixel, is_set in enumerate(flat):
        result[pixel // 64] |= int(is_set) << (pixel % 64)
    return [word - (1 << 64) if word >> 63 else word for word in result]


def iou(masks: Array) -> Array:
    """IoU of every pair; 0 where a union is empty."""
    count = len(masks)
    flat = [mask.ravel().astype(bool) for mask in masks]
    area = [int(m.sum()) for m in flat]
    out = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            both = int((flat[i] & flat[j]).sum())
            union = area[i] + area[j] - both
            out[i, j] = both / union if union else 0.0
    return out


def nms(overlap: Array, labels: Sequence[int], scores: Sequence[float], kernel: str, sigma: float) -> Array:
    """docs/method.md, "Matrix NMS": decay_j = min over i < j of f(d_ij) / f(c_i), in input order."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))

    def d(i: int, j: int) -> float:  # of places in the order
        a, b = order[i], order[j]
        return float(overlap[a, b]) if labels[a] == labels[b] else 0.0

    worst = [max((d(k, i) for k in range(i)), default=0.0) for i in range(len(order))]
    out = np.full(len(scores), np.nan)
    for j, index in enumerate(order):
        decay = 1.0
        for i in range(j):
            if kernel == "gaussian":
                decay = min(decay, np.exp(-sigma * d(i, j) ** 2) / np.exp(-sigma * worst[i] ** 2))
            elif worst[i] < 1:  # else a twin stands before i, and 0 / 0 says nothing
                decay = min(decay, (1 - d(i, j)) / (1 - worst[i]))
        out[index] = scores[index] * decay
    return out


def unpacked(words_of_mask: Sequence[int], size: Sequence[int]) -> Array:
    """The inverse of `words`; refuses bits beyond the last pixel."""
    pixels = size[0] * size[1]
    flat = [(word >> bit) & 1 for word in words_of_mask for bit in range(64)]
    assert len(flat) - pixels in range(64)
    assert not any(flat[pixels:]), "spare bits must be zero"
    return np.array(flat[:pixels], dtype=bool).reshape(*size)


def same_mask(mask: Array, probability: Array, threshold: float, band: float) -> None:
    """p > threshold, except where p is so near that rounding decides."""
    assert mask.shape == probability.shape
    certain = np.abs(probability - threshold) > band
    assert certain.mean() > 0.99 if certain.size > 500 else True
    np.testing.assert_array_equal(mask[certain], probability[certain] > threshold)
