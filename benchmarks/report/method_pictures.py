"""The pictures of docs/method.md: the grid, one cell's attention and the residual, on a photograph of coins.

    python -m benchmarks.report.method_pictures

scikit-image (in the extra ``docs``) brings the photograph and finds the coins. A small model, on ImageNet
features, learns this one image, so that its attention is one that was learned; it is an illustration and
measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from solo_attn.evaluation import draw_instances
from solo_attn.models import SOLO, solo_with_attention
from solo_attn.models.heads import SOLOHead
from solo_attn.models.targets import BACKGROUND, assign

from .stored import IMAGES

LEVEL = 0
STEPS = 100
SMALLEST = 400  # pixels; what is smaller is no coin
CELL = "#ff8c00"


def coins() -> tuple[Tensor, Tensor]:
    """The photograph, float [3, H, W] in 0..1, and the coins' masks, bool [N, H, W]."""
    from scipy import ndimage
    from skimage import data, filters, segmentation

    photo = data.coins()
    markers = np.where(photo < 30, 1, np.where(photo > 150, 2, 0))
    solid = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(photo), markers) == 2)
    parts, count = ndimage.label(ndimage.binary_opening(solid, iterations=3))
    masks = torch.from_numpy(np.stack([parts == k + 1 for k in range(count)]))
    masks = masks[masks.flatten(1).sum(1) >= SMALLEST]
    return torch.from_numpy(photo).float().div(255).expand(3, -1, -1).contiguous(), masks


def target_of(masks: Tensor) -> dict[str, Tensor]:
    """One class; boxes around the masks."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append([float(end) for end in ends])
    labels = torch.zeros(len(masks), dtype=torch.int64)
    return {"boxes": torch.tensor(boxes), "labels": labels, "masks": masks}


def learned(photo: Tensor, target: dict[str, Tensor], steps: int) -> SOLO:
    """A small model of this one image."""
    torch.manual_seed(0)
    sides = sorted(photo.shape[1:])
    model = solo_with_attention(
        num_classes=1, backbone="timm/tf_efficientnet_lite0", pretrained="package", freeze="all",
        fpn_channels=64, head_channels=64, num_convs=2, num_grids=(24, 16, 12, 8, 4), min_size=sides[0],
        max_size=sides[1],
    )  # fmt: skip
    assert model.head.attention is not None
    gates = [model.head.attention.log_gain, model.head.attention.offset]
    rest = [p for p in model.parameters() if p.requires_grad and not any(p is gate for gate in gates)]
    groups = [{"params": rest, "lr": 3e-3}, {"params": gates, "lr": 0.02, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [3e-3, 0.02], total_steps=steps)
    for _ in range(steps):
        losses = model([photo], [target])
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def padded_size(photo: Tensor) -> tuple[int, int]:
    """(height, width) of the model's input."""
    height, width = (-(-side // 32) * 32 for side in photo.shape[1:])
    return height, width


def show(axes: Axes, photo: Tensor, title: str) -> None:
    axes.imshow(photo.permute(1, 2, 0).numpy())
    finish(axes, photo, title)


def finish(axes: Axes, photo: Tensor, title: str) -> None:
    """The photograph's frame, without the padding."""
    axes.set(xlim=(-0.5, photo.shape[2] - 0.5), ylim=(photo.shape[1] - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def mark(axes: Axes, cell: int, side: int, size: tuple[int, int]) -> None:
    """The outline of a cell."""
    height, width = size[0] / side, size[1] / side
    corner = (cell % side * width - 0.5, cell // side * height - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=CELL, linewidth=1.8))


def draw_grid(photo: Tensor, target: dict[str, Tensor], model: SOLO, path: Path) -> None:
    """The objects, the grid of the level, and the cells that answer for the objects."""
    size, side = padded_size(photo), model.head.num_grids[LEVEL]
    height, width = photo.shape[1:]
    padded = torch.zeros(len(target["masks"]), *size, dtype=torch.bool)
    padded[:, :height, :width] = target["masks"]
    levels = assign([{**target, "masks": padded}], size, model.head.num_grids, model.settings.scale_ranges)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(
        left,
        draw_instances(photo, target, ["coin"], alpha=0.5).float() / 255,
        f"{len(padded)} objects of one class",
    )
    show(right, photo, f"{side} x {side} cells; coloured ones are positive")
    for k in range(side + 1):
        right.axhline(k * size[0] / side - 0.5, color="white", linewidth=0.4, alpha=0.6)
        right.axvline(k * size[1] / side - 0.5, color="white", linewidth=0.4, alpha=0.6)
    positive = (levels[LEVEL].labels[0] != BACKGROUND).flatten().nonzero().flatten()
    for cell in positive.tolist():
        corner = (cell % side * size[1] / side - 0.5, cell // side * size[0] / side - 0.5)
        tint = Rectangle(corner, size[1] / side, size[0] / side, color=(*to_rgb(CELL), 0.5), linewidth=0)
        right.add_patch(tint)
    figure.savefig(path, dpi=110)


def maps_of(model: SOLO, photo: Tensor, cell: int) -> dict[str, Tensor]:
    """What the mask of a cell is made of, as it comes out of the model."""
    size = padded_size(photo)
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (model.settings.image_mean, model.settings.image_std)
    )
    image = torch.zeros(1, 3, *size)
    image[0, :, : photo.shape[1], : photo.shape[2]] = (photo - mean) / std
    head = model.head
    assert isinstance(head, SOLOHead)
    assert head.attention is not None
    with torch.no_grad():
        result = head(list(model.backbone(image).values()))
        masks = head.cell_masks(result, LEVEL, torch.tensor([[0, cell]]))
        offset, gain = head.attention.offset[LEVEL], head.attention.gain(LEVEL)
        bias = head.attention.bias(LEVEL)
        assert bias is not None
    assert masks.attention is not None
    attention = masks.attention[0]
    return {
        "cosine": attention / gain,
        "attention": enlarged(attention, size) + bias,
        "mask branch": enlarged(masks.coarse_logits[0] - bias, size),
        "gain": gain,
        "offset": offset,
    }


def enlarged(values: Tensor, size: Sequence[int]) -> Tensor:
    return torch.nn.functional.interpolate(values[None, None], tuple(size), mode="bilinear")[0, 0]


def field(axes: Axes, values: Tensor, photo: Tensor, title: str, limit: float) -> None:
    """A map of logits, red above 0 and blue below; cells are stretched over the padded image."""
    size = padded_size(photo)
    axes.imshow(
        values.detach().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest",
        extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5),
    )  # fmt: skip
    finish(axes, photo, title)


def draw_cell(photo: Tensor, model: SOLO, cell: int, attention: Path, residual: Path) -> None:
    """The attention of one cell, and the sum that its mask is."""
    maps, size, side = maps_of(model, photo, cell), padded_size(photo), model.head.num_grids[LEVEL]
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    panels = figure.subplots(1, 3)
    show(panels[0], photo, f"cell k, of {side} x {side}")
    field(panels[1], maps["cosine"], photo, "cos(V_k, V_n) of every cell n, -1 to 1", 1.0)
    limit = float(maps["attention"].abs().max())
    told = f"g (cos(V_k, V_n) - b), enlarged: g = {float(maps['gain']):.1f}, b = {float(maps['offset']):.2f}"
    field(panels[2], maps["attention"], photo, told, limit)
    for axes in panels:
        mark(axes, cell, side, size)
    figure.savefig(attention, dpi=110)

    logits = maps["mask branch"] + maps["attention"]
    limit = float(logits.abs().quantile(0.98))
    figure = Figure(figsize=(13, 2.9), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, values, title in zip(
        panels, (maps["mask branch"], maps["attention"], logits),
        ("mask branch", "+ attention branch", "= mask logits (red: above 0)"), strict=False,
    ):  # fmt: skip
        field(axes, values, photo, title, limit)
        mark(axes, cell, side, size)
    inside = (logits > 0)[: photo.shape[1], : photo.shape[2]]
    show(panels[3], torch.where(inside, photo, 0.35 * photo), "pixels with a probability > 0.5")
    mark(panels[3], cell, side, size)
    figure.savefig(residual, dpi=110)


def main(folder: Path = IMAGES, steps: int = STEPS) -> None:
    matplotlib.use("Agg")
    photo, masks = coins()
    target = target_of(masks)
    model = learned(photo, target, steps)
    size, side = padded_size(photo), model.head.num_grids[LEVEL]
    centre = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
    middle = int((centre - centre.mean(0)).norm(dim=1).argmin())
    column, row = (int(centre[middle, k] * side / size[1 - k]) for k in (0, 1))
    draw_grid(photo, target, model, folder / "method_grid.png")
    names = (folder / "method_attention.png", folder / "method_residual.png")
    draw_cell(photo, model, row * side + column, *names)


if __name__ == "__main__":
    main()
