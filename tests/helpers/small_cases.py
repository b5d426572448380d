"""Sizes of the benchmarks' cases that take no time."""

SMALL = {
    "grid_attention": {"channels": 8, "side": 5},
    "attention_residual": {"channels": 8, "side": 4, "size": (10, 14)},
    "upsample_add": {"count": 3, "level": (9, 14), "side": 4},
    "dice_loss": {"count": 3, "level": (9, 14), "side": 4},
    "mask_bits": {"count": 4, "level": (20, 30), "side": 4},
    "mask_iou": {"count": 9, "size": (20, 30)},
    "matrix_nms": {"count": 9, "size": (20, 30)},
    "paste_masks": {"count": 3, "level": (20, 30), "side": 4, "original": (50, 70)},
}
