"""A detector small enough for tests, and scenes of rectangles for it."""

import torch

from solo_attn.models import solo, solo_with_attention, solo_without_coords

SYSTEMS = {"without_coords": solo_without_coords, "solo": solo, "attention": solo_with_attention}

# Images are taken at their own size: min_size is their shorter side.
SETTINGS = {
    "backbone": "resnet18",
    "norm": "gn",
    "fpn_channels": 32,
    "head_channels": 32,
    "num_convs": 1,
    "num_grids": (8, 6, 4, 3, 2),
    "scale_ranges": ((1, 16), (8, 32), (16, 64), (32, 128), (64, 2048)),
    "min_size": 64,
    "max_size": 96,
}


def small(system="attention", num_classes=3, seed=0, **settings):
    torch.manual_seed(seed)
    return SYSTEMS[system](num_classes, **{**SETTINGS, **settings})


def confident(model, seed=0, category_bias=-1.0):
    """Random weights whose scores and masks vary enough to be found."""
    generator = torch.Generator().manual_seed(seed)
    head = model.head
    with torch.no_grad():
        for output, std in [(head.category_output, 0.3), *((m, 1.0) for m in head.mask_outputs)]:
            output.weight.copy_(torch.randn(output.weight.shape, generator=generator) * std)
            output.bias.fill_(0.0)
        head.category_output.bias.fill_(category_bias)
    return model.eval()


def rectangles(boxes, labels, size):
    """A target of filled rectangles (x1, y1, x2, y2), pixels x1..x2-1."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def batch(seed=0, sizes=((64, 96), (64, 80))):
    """Noise images with a few objects of different sizes each: images, targets of labels 0..2."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator) for size in sizes]
    boxes = [(3, 5, 13, 14), (20, 9, 49, 40), (50, 30, 75, 61), (1, 1, 78, 63), (60, 3, 71, 20)]
    targets = [
        rectangles(boxes[k % 2 :], [(k + j) % 3 for j in range(len(boxes) - k % 2)], size)
        for k, size in enumerate(sizes)
    ]
    return images, targets
