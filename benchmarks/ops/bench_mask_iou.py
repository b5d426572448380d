"""How fast mask_iou is: python -m pytest benchmarks/ops/bench_mask_iou.py"""

import dataclasses

import numpy as np
import pycocotools.mask as coco_mask
import torch

from solo_attn import mask_iou as kernel
from solo_attn.bench import agree, plain
from solo_attn.bench.cases import mask_iou


def test_mask_iou(measure, device):
    case = mask_iou(device)
    (masks,) = case.inputs

    def pycocotools():
        """As one has to with masks in a tensor: a copy in columns, run lengths, IoU."""
        runs = plain.encode(masks)
        return torch.from_numpy(coco_mask.iou(runs, runs, np.zeros(len(runs), dtype=np.uint8)))

    agree(kernel(masks), pycocotools().to(device))
    measure(dataclasses.replace(case, others={"pycocotools": pycocotools}), "forward")
