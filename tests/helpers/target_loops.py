"""Spec 2, "Targets", in plain loops, sharing nothing with the library."""

import math

import numpy as np

NEAR = 1e-3  # of a cell: this close to a boundary float32 may fall to either side


def reduced_by_loops(mask, stride, size):
    """1 iff at least 2 of the 4 centre pixels of the block are set; what is beyond the mask is 0."""
    padded = np.zeros((size[0] * stride, size[1] * stride), dtype=np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    out = np.zeros(size, dtype=bool)
    low = stride // 2 - 1
    for i in range(size[0]):
        for j in range(size[1]):
            block = padded[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            out[i, j] = block[low : low + 2, low : low + 2].sum() >= 2
    return out


def assigned_by_loops(targets, input_size, grids, ranges):
    """Spec 2, "Targets", rules 1 to 6: for each level {(image, row, column): (label, mask)}.

    None if an object is near the boundary of a cell or the end of a range.
    """
    levels = []
    for side, (low, high), stride in zip(grids, ranges, (4, 4, 8, 16, 16), strict=True):
        found = {}
        for image, target in enumerate(targets):
            for box, label, mask in zip(
                *(target[k].tolist() for k in ("boxes", "labels")), target["masks"], strict=True
            ):
                pixels = mask.nonzero().tolist()
                width, height = box[2] - box[0], box[3] - box[1]
                size = math.sqrt(width * height)
                if min(abs(size - low), abs(size - high)) < NEAR:
                    return None
                if not pixels or size < low or size > high:
                    continue
                region = []
                for axis, extent in ((0, height), (1, width)):
                    centre = sum(p[axis] for p in pixels) / len(pixels)
                    half = 0.5 * 0.2 * extent
                    exact = [
                        v / input_size[axis] / (1 / side) for v in (centre - half, centre, centre + half)
                    ]
                    if any(abs(v - round(v)) < NEAR for v in exact):
                        return None
                    first, middle, last = (math.trunc(v) for v in exact)
                    first, last = max(0, first), min(side - 1, last)
                    region.append(range(max(first, middle - 1), min(last, middle + 1) + 1))
                reduced = reduced_by_loops(mask.numpy() != 0, stride, tuple(n // stride for n in input_size))
                for row in region[0]:
                    for column in region[1]:
                        found[image, row, column] = (label, reduced)
        levels.append(found)
    return levels
