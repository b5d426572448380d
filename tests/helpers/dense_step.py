"""A training step in plain PyTorch (docs/method.md, "Losses"): every mask of every cell.

Of the library there are only the weights and the backbone (torchvision's). What is tested against this must
not call it, so resizing is a product with matrices made in loops, and attention the dot product of all pairs.
"""

import torch
import torch.nn.functional as F
from target_loops import assigned_by_loops

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAMBDA, EPS = 3, 1e-3


def resizing(old, new):
    """The matrix [new, old] of a linear resize, align_corners=False."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        position = max((i + 0.5) * old / new - 0.5, 0.0)
        first = min(int(position), old - 1)
        matrix[i, first] += 1 - (position - first)
        matrix[i, min(first + 1, old - 1)] += position - first
    return matrix


def resized(x, size):
    rows, columns = (resizing(old, new) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def padded_batch(images):
    """Normalised images [B, 3, H, W], zeros beyond their ends; H and W are multiples of 32."""
    height, width = (-(-max(side) // 32) * 32 for side in zip(*(x.shape[1:] for x in images), strict=True))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.float64)
    for place, image in zip(batch, images, strict=True):
        for channel in range(3):
            place[channel, : image.shape[1], : image.shape[2]] = (image[channel] - MEAN[channel]) / STD[
                channel
            ]
    return batch


def tower(layers, x):
    """[3x3 convolution, GroupNorm of 32 groups, ReLU], again and again."""
    for k in range(0, len(layers), 3):
        x = F.conv2d(x, layers[k].weight, padding=1)
        x = F.relu(F.group_norm(x, 32, layers[k + 1].weight, layers[k + 1].bias))
    return x


def with_coordinates(x, formula):
    height, width = x.shape[2:]
    if formula is None:
        return x
    channels = torch.zeros(len(x), 2, height, width, dtype=x.dtype)
    ends = (height, width) if formula == "paper" else (height - 1, width - 1)
    for j in range(height):
        for i in range(width):
            channels[:, 0, j, i] = -1 + 2 * i / ends[1]
            channels[:, 1, j, i] = -1 + 2 * j / ends[0]
    return torch.cat([x, channels], dim=1)


def unit(vectors):
    return vectors / (vectors * vectors).sum(1, keepdim=True).sqrt()


def attention_vectors(branch, grid):
    """V: the features, a projection of them, or one of features and position beside the position's code."""
    if branch.of == "features":
        return grid
    weight, bias = branch.projection.weight.flatten(1), branch.projection.bias[:, None, None]
    if branch.of == "projection":
        return torch.einsum("dc,bcij->bdij", weight, grid) + bias
    side = grid.shape[-1]
    code = torch.zeros(1, 20, side, side, dtype=grid.dtype)
    for row in range(side):
        for column in range(side):
            for axis, place in enumerate((column, row)):
                for octave in range(5):
                    angle = torch.tensor(torch.pi * 2**octave * (place + 0.5) / side, dtype=grid.dtype)
                    code[0, 10 * axis + octave, row, column] = angle.sin()
                    code[0, 10 * axis + 5 + octave, row, column] = angle.cos()
    code = code.expand(len(grid), -1, -1, -1)
    projected = torch.einsum("dc,bcij->bdij", weight, torch.cat([grid, code], dim=1)) + bias
    return torch.cat([unit(projected), unit(code)], dim=1)


def attention_map(branch, level, grid):
    """Eq. 2 and 3 in each of the forms that a model may have: [B, C, S, S] to [B, S * S, S, S]."""
    vectors = attention_vectors(branch, grid)
    dots = torch.einsum("bcn,bcij->bnij", vectors.flatten(2), vectors)
    if branch.form == "literal":
        return dots
    if branch.form == "rsqrt":
        return dots / vectors.shape[1] ** 0.5
    lengths = (vectors * vectors).sum(1).sqrt()
    cosines = dots / (lengths.flatten(1)[:, :, None, None] * lengths[:, None])
    if branch.form == "cosine":
        return cosines
    return branch.log_gain[level].exp() * (cosines - branch.offset[level])


def dense_losses(model, images, targets):
    """The two losses, and the targets of each level as {(image, row, column): (label, mask)}."""
    head = model.head
    batch = padded_batch(images)
    p2, p3, p4, p5, p6 = model.backbone(batch).values()
    halved = (p2[..., ::2, ::2] + p2[..., 1::2, ::2] + p2[..., ::2, 1::2] + p2[..., 1::2, 1::2]) / 4
    levels = [halved, p3, p4, p5, resized(p6, p5.shape[2:])]
    assigned = assigned_by_loops(targets, tuple(batch.shape[2:]), head.num_grids, model.settings.scale_ranges)
    assert assigned is not None, "an object lies at the boundary of a cell, where rounding decides"
    dice, focal = [], 0.0
    outputs = zip(levels, head.num_grids, head.mask_outputs, assigned, strict=True)
    for level, (features, side, output, found) in enumerate(outputs):
        size = (2 * features.shape[2], 2 * features.shape[3])
        grid = resized(features, (side, side))
        maps = resized(tower(head.mask_tower, with_coordinates(features, head.coords)), size)
        logits = F.conv2d(maps, output.weight, output.bias)  # [B, S * S, 2h, 2w]
        if head.attention is not None:
            logits = logits + resized(attention_map(head.attention, level, grid), size)
        masks = 1 / (1 + torch.exp(-logits))
        for (image, row, column), (_, mask) in found.items():
            p, t = masks[image, row * side + column], torch.from_numpy(mask).double()
            dice.append(1 - 2 * (p * t).sum() / ((p * p).sum() + EPS + (t * t).sum() + EPS))
        categories = tower(head.category_tower, grid)
        categories = F.conv2d(categories, head.category_output.weight, head.category_output.bias, padding=1)
        scores = 1 / (1 + torch.exp(-categories))
        for image, label, row, column in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
            p = scores[image, label, row, column]
            if found.get((image, row, column), (None,))[0] == label:
                focal = focal - 0.25 * (1 - p) ** 2 * torch.log(p)
            else:
                focal = focal - 0.75 * p**2 * torch.log(1 - p)
    losses = {"loss_category": focal / (len(dice) + 1), "loss_mask": LAMBDA * sum(dice) / len(dice)}
    return losses, assigned
