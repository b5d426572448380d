"""mmdetection's own SOLO detectors, with weights that find something, and checkpoints of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.loading import peer

SIZE = (150, 210)  # not a multiple of 32
CLASSES = ("person", "rider", "car", "truck", "bus")
SMALL = {"feat_channels": 64, "stacked_convs": 2, "num_grids": [20, 16, 12, 8, 6]}


def config(depth: int = 18, classes: int = 5, fpn: int = 64, **head: Any) -> Any:
    """What configs/solo/solo_r50_fpn_1x_coco.py says, of other sizes."""
    stages = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    mask_head = {
        "type": "SOLOHead",
        "num_classes": classes,
        "in_channels": fpn,
        "stacked_convs": 7,
        "feat_channels": 256,
        "strides": [8, 8, 16, 32, 32],
        "scale_ranges": ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
        "pos_scale": 0.2,
        "num_grids": [40, 36, 24, 16, 12],
        "cls_down_index": 0,
        "loss_mask": {"type": "DiceLoss", "use_sigmoid": True, "loss_weight": 3.0},
        "loss_cls": {
            "type": "FocalLoss",
            "use_sigmoid": True,
            "gamma": 2.0,
            "alpha": 0.25,
            "loss_weight": 1.0,
        },
        "norm_cfg": {"type": "GN", "num_groups": 32, "requires_grad": True},
        **head,
    }
    model = {
        "type": "SOLO",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "ResNet",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "frozen_stages": 1,
            "style": "pytorch",
        },
        "neck": {"type": "FPN", "in_channels": stages, "out_channels": fpn, "start_level": 0, "num_outs": 5},
        "mask_head": mask_head,
        "test_cfg": {
            "nms_pre": 500,
            "score_thr": 0.1,
            "mask_thr": 0.5,
            "filter_thr": 0.05,
            "kernel": "gaussian",
            "sigma": 2.0,
            "max_per_img": 100,
        },
    }
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (max(SIZE), min(SIZE)), "keep_ratio": True},
    ]
    return peer("mmengine").Config({"model": model, "test_dataloader": {"dataset": {"pipeline": pipeline}}})


def detector(settings: Any, seed: int = 0) -> Any:
    """mmdetection's detector in evaluation mode; its features vary and its scores reach the threshold."""
    peer("mmdet.utils").register_all_modules()
    torch.manual_seed(seed)
    model = peer("mmdet.registry").MODELS.build(settings.model)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model.extract_feat(torch.randn(2, 3, 128, 128))  # the statistics of these weights
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.7 + 0.6 * torch.rand_like(norm.running_var)
            norm.weight.uniform_(0.7, 1.3)
            norm.bias.normal_(0, 0.1)
        head = model.mask_head
        for tower in (head.mask_convs, head.cls_convs):
            for group in tower:
                group.gn.weight.uniform_(0.7, 1.3)
                group.gn.bias.normal_(0, 0.2)
        head.conv_cls.weight.normal_(0, 3 / head.feat_channels**0.5 / 3)
        head.conv_cls.bias.normal_(-3.5, 0.3)
        for output in head.conv_mask_list:
            output.weight.normal_(0, 2 / head.feat_channels**0.5)
            output.bias.normal_(-0.5, 0.5)
    return model.eval()


def save(model: Any, settings: Any, path: Path, **changes: Any) -> Path:
    """A checkpoint as mmengine's runner writes it; ``changes`` replace entries, None takes them out."""
    hub = peer("mmengine.logging").MessageHub.get_instance("converted")
    for step in range(3):
        hub.update_scalar("train/loss", 1.0 / (step + 1))
    hub.update_info("epoch", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    content = {
        "meta": {
            "epoch": 3,
            "iter": 3,
            "cfg": settings.pretty_text,
            "seed": 0,
            "experiment_name": "solo",
            "dataset_meta": {"classes": CLASSES, "palette": [(220, 20, 60)] * len(CLASSES)},
        },
        "state_dict": model.state_dict(),
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
        **changes,
    }
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """A uint8 RGB image [3, H, W] of smooth blobs."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 12, 16, generator=generator)
    image = torch.nn.functional.interpolate(small, size=size, mode="bicubic")[0].clamp(0, 1)
    return (image * 255).round().to(torch.uint8)


def sample(size: tuple[int, int], original: tuple[int, int]) -> Any:
    return peer("mmdet.structures").DetDataSample(
        metainfo={"img_shape": size, "ori_shape": original, "scale_factor": (1.0, 1.0)}
    )


def objects(seed: int = 0, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    """Ellipses of many sizes."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    masks, boxes = [], []
    for radius in (5, 9, 16, 30, 55, 90):
        cy, cx = generator.uniform(10, size[0] - 10), generator.uniform(10, size[1] - 10)
        mask = ((y - cy) / radius) ** 2 + ((x - cx) / radius / generator.uniform(0.6, 1.4)) ** 2 < 1
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        masks.append(mask)
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    labels = torch.from_numpy(generator.integers(0, len(CLASSES), len(masks)))
    return {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "labels": labels,
        "masks": torch.from_numpy(np.stack(masks)).byte(),
    }
