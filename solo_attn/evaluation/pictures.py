"""Instances drawn over images, and the paper's Figure 5."""

from __future__ import annotations

import colorsys
import functools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from .._utils.checks import Prediction, check_prediction, check_tensor, fail
from .._utils.files import replacing
from .._utils.run_lengths import decode_window
from ..data import CocoInstances
from .fonts import OWN, font_for, legible

GOLDEN_RATIO = 0.618033988749895
MOST_COLUMNS = 6  # of side_by_side
STRIP = 1024  # rows that are painted at a time
TEXT_FROM = 200  # pixels of the shorter side from which names are written


def instance_colours(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """``count`` distinct RGB colours, each hue a golden section of the circle away from the previous one.

    Hues k and k + 8 (or 13, 21, ...) are close to each other; alternating brightness separates them.
    """
    colours = []
    for index in range(count):
        hue = (index + seed) * GOLDEN_RATIO % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.65, 0.9)[index % 3], (1.0, 1.0, 0.7)[index % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def draw_instances(
    image: Tensor,
    prediction: Prediction,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.3,
    alpha: float = 0.45,
    seed: int = 0,
) -> Tensor:
    """``image`` with its instances, each in its own colour and outlined, with name and score where they fit.

    Colours belong to instances, best first, not to classes, so that neighbours of one class can be told
    apart. Where masks overlap the higher score is on top. In images whose shorter side is at least 200 pixels
    the name (where there is more than one class) and the score are written where they cover at most a third
    of the box and no better instance's text.

    Args:
        image: uint8 [3, H, W], or float [3, H, W] in 0..1.
        prediction: ``boxes``, ``labels``, ``masks`` [N, H, W] or N run lengths, and ``scores``; without
            ``scores`` (ground truth) everything is drawn and only names are written.
        class_names: the name of each label.
        score_threshold: scores from which instances are drawn, inclusive.
        alpha: opacity of the colour inside the outline.
        seed: where on the circle of hues the colours begin.

    Returns:
        uint8 [3, H, W], on the CPU.

    Raises:
        TypeError, ValueError: an argument is of another shape or dtype, or the masks of another size.
    """
    picture = _as_bytes(image)
    scored = "scores" in prediction
    check_prediction("draw_instances", prediction, len(class_names), scores=scored, rle=True)
    masks, size = prediction["masks"], list(picture.shape[1:])
    sizes = [list(masks.shape[1:])] if isinstance(masks, Tensor) else [list(rle["size"]) for rle in masks]
    if any(other != size for other in sizes):
        other = next(other for other in sizes if other != size)
        fail("draw_instances", "prediction['masks']", f"of the image's size {size}", str(other))
    order = torch.arange(len(masks))
    if scored:
        scores = prediction["scores"].detach().cpu()
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= score_threshold]
    if len(order) == 0:
        return picture
    colours = instance_colours(len(order), seed)
    picture = paint(picture, [masks[k] for k in order.tolist()], colours, alpha)
    if min(picture.shape[1:]) < TEXT_FROM:
        return picture
    # With one class the name is not needed.
    labels = prediction["labels"][order].tolist()
    names = [legible(class_names[label], label) if len(class_names) > 1 else "" for label in labels]
    numbers = [f"{score:.2f}" for score in scores[order].tolist()] if scored else [""] * len(order)
    texts = [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]
    return _write(picture, prediction["boxes"].detach().cpu()[order].tolist(), texts, colours)


def side_by_side(
    images: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Prediction]],
    path: str | Path,
    *,
    class_names: Sequence[str],
    ground_truth: Sequence[Prediction] | None = None,
    score_threshold: float = 0.3,
    column_width: float = 4.0,
) -> None:
    """The paper's Figure 5: a row for each image, a column for the ground truth and for each system.

    Where there would be more than `MOST_COLUMNS`, rows and columns change places, so that images stay large.

    Args:
        images: uint8 or float [3, H, W] each; sizes may differ.
        predictions: a system's name -> its prediction for each image, as `draw_instances` takes them.
        path: an image file; its suffix (.png, .svg, .pdf) says the format.
        class_names: the name of each label.
        ground_truth: the first column, where given.
        score_threshold: scores from which instances are drawn, inclusive.
        column_width: inches, at 200 pixels an inch.

    Raises:
        TypeError, ValueError: as `draw_instances`; no image; or as many images and predictions are not there.
        OSError: ``path`` cannot be written.
    """
    columns = {} if ground_truth is None else {"Ground truth": ground_truth}
    columns.update(predictions)
    if not images or not columns:
        fail("side_by_side", "images and predictions", "not empty", f"{len(images)} and {len(columns)}")
    for name, column in columns.items():
        if len(column) != len(images):
            fail("side_by_side", f"{name!r}", f"of {len(images)} images' instances", str(len(column)))
    ratios = [image.shape[1] / image.shape[2] for image in images]
    turned = len(columns) > MOST_COLUMNS
    heights = [column_width * ratio for ratio in ([max(ratios)] * len(columns) if turned else ratios)]
    across = len(images) if turned else len(columns)
    names = [textwrap.fill(name, max(8, int(13 * heights[0])) if turned else 24) for name in columns]
    titles = 0.0 if turned else 0.4 * max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(column_width * across, sum(heights) + titles), layout="constrained")
    grid = figure.subplots(len(heights), across, squeeze=False, height_ratios=heights)
    grid = grid if turned else grid.T  # a row of it for each name
    for axes, name, column in zip(grid, names, columns.values(), strict=True):
        name_it = axes[0].set_ylabel if turned else axes[0].set_title
        name_it(name, fontsize=(2.5 if turned else 4) * column_width)
        for place, image, prediction in zip(axes, images, column, strict=True):
            drawn = draw_instances(image, prediction, class_names, score_threshold=score_threshold)
            place.imshow(drawn.permute(1, 2, 0).numpy())
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
    with replacing(path, "side_by_side") as temporary:
        figure.savefig(temporary, dpi=200)


def found_beside_truth(
    dataset: CocoInstances,
    results: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    rows: int = 4,
    score_threshold: float = 0.3,
) -> None:
    """Images of a dataset with the ground truth, and beside them with the predictions.

    Args:
        dataset: the images, with `eval_transforms`.
        results: COCO results with run lengths, as `evaluate_model` gives them.
        path: an image file; see `side_by_side`.
        rows: images at most, evenly spread from the one with the fewest objects to the one with the most.
        score_threshold: scores from which instances are drawn, inclusive.

    Raises:
        OSError: ``path`` cannot be written.
    """
    images, truth, found = [], [], []
    for index in spread(dataset, rows):
        image, target = dataset[index]
        mine = [result for result in results if result["image_id"] == int(target["image_id"])]
        images.append(image)
        truth.append({key: target[key] for key in ("boxes", "labels", "masks")})
        found.append(found_in(mine, dataset.category_ids, image.shape[1:]))
    side_by_side(
        images, {f"Found, scores from {score_threshold:g}": found}, path, class_names=dataset.class_names,
        ground_truth=truth, score_threshold=score_threshold,
    )  # fmt: skip


def spread(dataset: CocoInstances, most: int, *, empty: bool = True) -> list[int]:
    """Places of at most so many images, evenly spread from few objects, or none if ``empty``, to many."""
    objects = [len(dataset.coco.imgToAnns.get(image, [])) for image in dataset.image_ids]
    order = sorted(range(len(dataset)), key=objects.__getitem__)
    order = [k for k in order if objects[k] or empty]
    count = min(most, len(order))
    return [order[(len(order) - 1) * row // max(1, count - 1)] for row in range(count)]


def found_in(
    results: Sequence[Mapping[str, Any]], category_ids: Sequence[int], size: Sequence[int]
) -> dict[str, Any]:
    """COCO results of one image as `draw_instances` takes them."""
    boxes = torch.tensor([result["bbox"] for result in results], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [category_ids.index(result["category_id"]) for result in results]
    masks: Any = [result["segmentation"] for result in results]
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor([result["score"] for result in results], dtype=torch.float32),
        "masks": masks or torch.zeros(0, *size, dtype=torch.bool),
    }


def _as_bytes(image: Tensor) -> Tensor:
    check_tensor("draw_instances", "image", image, "[3, H, W]")
    if image.shape[0] != 3:
        fail("draw_instances", "image", "of shape [3, H, W]", str(list(image.shape)))
    image = image.detach().cpu()
    if image.is_floating_point():
        return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        fail("draw_instances", "image", "of dtype uint8, or float in 0..1", str(image.dtype))
    return image.clone()


def paint(picture: Tensor, masks: Sequence[Any], colours: Sequence[tuple[int, ...]], alpha: float) -> Tensor:
    """Blend the masks in, the first on top, their own outermost pixels solid (two deep in large images).

    One map of owners serves all masks: torchvision's draw_segmentation_masks paints overlaps black, and took
    seconds for the 375 nuclei of one image.
    """
    owner = torch.zeros(picture.shape[1:], dtype=torch.int32)
    for index, mask in reversed(list(enumerate(masks, start=1))):
        if isinstance(mask, Tensor):
            owner[mask.detach().cpu().bool()] = index
        else:
            window, top, left = decode_window(mask)
            part = owner[top : top + window.shape[0], left : left + window.shape[1]]
            part[torch.from_numpy(window)] = index
    outline = torch.zeros_like(owner, dtype=torch.bool)
    for distance in (1,) if min(owner.shape) < 512 else (1, 2):
        for dim in (0, 1):
            kept = max(0, owner.shape[dim] - distance)
            differs = owner.narrow(dim, 0, kept) != owner.narrow(dim, owner.shape[dim] - kept, kept)
            outline.narrow(dim, 0, kept).logical_or_(differs)
            outline.narrow(dim, owner.shape[dim] - kept, kept).logical_or_(differs)
    palette = torch.tensor([(0, 0, 0), *colours], dtype=torch.float32)
    for rows in range(0, len(owner), STRIP):  # colours are floats, too many for a large picture at once
        strip, of = picture[:, rows : rows + STRIP], owner[rows : rows + STRIP]
        opacity = torch.where(outline[rows : rows + STRIP], 1.0, alpha) * (of > 0)
        colour = palette[of].permute(2, 0, 1)
        strip.copy_((strip * (1 - opacity) + colour * opacity).round())
    return picture


def _write(
    picture: Tensor,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    colours: Sequence[tuple[int, ...]],
) -> Tensor:
    """The texts at the boxes' upper left corners, best first, where they hide neither object nor text."""
    canvas: Image.Image = to_pil_image(picture)
    pen = ImageDraw.Draw(canvas)
    size = max(10, min(canvas.size) // 45)
    font_of = functools.cache(lambda file: ImageFont.truetype(file, size=size))  # hundreds of texts in one
    written: list[tuple[float, float, float, float]] = []
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        font = font_of(font_for(text) or OWN)
        width, height = (side + 2 for side in pen.textbbox((0, 0), text, font=font)[2:])
        if not text or width * height > (box[2] - box[0]) * (box[3] - box[1]) / 3:
            continue
        x = max(0, min(box[0], canvas.width - width))
        y = max(0, min(box[1], canvas.height - height))
        if any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in written):
            continue
        written.append((x, y, x + width, y + height))
        pen.rectangle(written[-1], fill=colour)
        # Rec. 601 luma: black on bright colours, white on dark ones.
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        pen.text((x + 1, y), text, font=font, fill="black" if bright else "white")
    return pil_to_tensor(canvas)
