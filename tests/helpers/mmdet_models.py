"""mmdetection's own SOLO detectors, with weights that find something, and checkpoints of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from benchmarks.peers.loading import peer

SIZE = (150, 210)  # not a multiple of 32
CLASSES = ("person", "rider", "car", "truck", "bus")
SMALL = {"feat_channels": 64, "stacked_convs": 2, "num_grids": [20, 16, 12, 8, 6]}


BASE = {"type": "DiceLoss", "use_sigmoid": True, "loss_weight": 3.0}
DCN = {"type": "DCNv2"}
FEATURES = {
    "feat_channels": 32,
    "start_level": 0,
    "end_level": 3,
    "out_channels": 64,
    "mask_stride": 4,
    "norm_cfg": {"type": "GN", "num_groups": 32, "requires_grad": True},
}
HEADS: dict[str, dict[str, Any]] = {
    "solo": {},
    "decoupled": {"type": "DecoupledSOLOHead", "loss_mask": {**BASE, "activate": False}},
    "decoupled_light": {"type": "DecoupledSOLOLightHead", "loss_mask": {**BASE, "activate": False}},
    "solov2": {"type": "SOLOV2Head", "mask_feature_head": FEATURES, "stacked_convs": 4},
    "solov2_light": {"type": "SOLOV2Head", "mask_feature_head": FEATURES, "stacked_convs": 2},
}


def config(depth: int = 18, classes: int = 5, fpn: int = 64, kind: str = "solo", **head: Any) -> Any:
    """What configs/solo/solo_r50_fpn_1x_coco.py, or that of another head, says, of other sizes."""
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
        **{**head, **HEADS[kind]},
    }
    model = {
        "type": "SOLOv2" if kind.startswith("solov2") else "SOLO",
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
        for name in ("mask_convs", "cls_convs", "mask_convs_x", "mask_convs_y", "kernel_convs"):
            for group in getattr(head, name, ()):
                group.gn.weight.uniform_(0.7, 1.3)
                group.gn.bias.normal_(0, 0.2)
        head.conv_cls.weight.normal_(0, 3 / head.feat_channels**0.5 / 3)
        head.conv_cls.bias.normal_(-3.5, 0.3)
        for output in getattr(head, "conv_mask_list", ()):
            output.weight.normal_(0, 2 / head.feat_channels**0.5)
            output.bias.normal_(-0.5, 0.5)
        for axis in ("x", "y"):
            for output in getattr(head, f"conv_mask_list_{axis}", ()):
                output.weight.normal_(0, 1 / head.feat_channels**0.5)
                output.bias.normal_(1.0, 0.5)
        if hasattr(head, "conv_kernel"):
            head.conv_kernel.weight.normal_(0, 0.5 / head.feat_channels**0.5)
            head.conv_kernel.bias.normal_(0, 0.1)
        for name, parameter in model.named_parameters():
            if "conv_offset" in name:
                parameter.normal_(0, 0.3 if name.endswith("bias") else 0.02)
        # Blocks of a deformable backbone add little to their input. With activations that grow from block to
        # block offsets grow too, and taps ten pixels off magnify a rounding of the image, 5e-8, up to tenfold
        # at each block: the last maps of two equal backbones then differ by half.
        for block in model.backbone.modules():
            if hasattr(block, "conv2") and hasattr(block.conv2, "conv_offset"):
                block.norm3.weight *= 0.2
    return model.eval()


def deform_by_torchvision(monkeypatch: Any) -> None:
    """Give mmcv-lite, which has no compiled operators, torchvision's deformable convolution."""

    def deform(x: Any, offset: Any, mask: Any, weight: Any, bias: Any, *rest: Any) -> Tensor:
        stride, padding, dilation = rest[:3]
        assert rest[3:] == (1, 1), "groups"
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    monkeypatch.setattr(
        peer("mmdet") and peer("mmcv.ops.modulated_deform_conv"), "modulated_deform_conv2d", deform
    )


# In float64: in float32 a pixel within rounding of the threshold falls to either side, and takes the score of
# a small mask along by more than 1e-4.
@torch.no_grad()
def theirs(model: Any, *images: Tensor) -> list[Any]:
    """Their whole prediction from the bytes of RGB images."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    data = {"inputs": [image.flip(0) for image in images], "data_samples": [sample(s, s) for s in sizes]}
    data = model.data_preprocessor(data, False)
    found = copy.deepcopy(model).double().predict(data["inputs"].double(), data["data_samples"])
    return [result.pred_instances for result in found]


def ours_of(model: Any, *images: Tensor) -> list[dict[str, Tensor]]:
    """The same by our model."""
    found: list[dict[str, Tensor]] = copy.deepcopy(model).double()([image.double() / 255 for image in images])
    return found


def agree(found: dict[str, Tensor], expected: Any, least: int = 10, score: float = 1e-4) -> None:
    """Two predictions of one image, of masks that differ from each other."""
    assert len(expected.scores) >= least, "random weights that find nothing compare nothing"
    assert len(expected.scores) == len(found["scores"])
    assert torch.equal(found["labels"], expected.labels)
    torch.testing.assert_close(found["scores"].double(), expected.scores.double(), rtol=0, atol=score)
    differing = (found["masks"] != expected.masks).flatten(1).sum(1)
    assert int(differing.max()) <= 0.001 * found["masks"][0].numel()
    share = expected.masks.flatten(1).float().mean(1)
    assert len(share.unique()) > 5
    assert bool(((share > 0.01) & (share < 0.9)).any()), "masks worth comparing"


def training_losses(model: Any, image: Tensor, target: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Their losses on the bytes of an RGB image."""
    size = (image.shape[1], image.shape[2])
    data_sample = sample(size, size)
    data_sample.gt_instances = peer("mmengine.structures").InstanceData(
        bboxes=target["boxes"],
        labels=target["labels"],
        masks=peer("mmdet.structures.mask").BitmapMasks(target["masks"].numpy(), *size),
    )
    data = model.data_preprocessor({"inputs": [image.flip(0)], "data_samples": [data_sample]}, training=True)
    return model.loss(data["inputs"].to(dtype), data["data_samples"])


def same_pixels(model: Any, ours: Any, image: Tensor) -> Tensor:
    """The image that our float64 normalisation makes just what mmdetection's makes of the bytes, in float32.

    A difference of 1e-7 takes some of the millions of activations to the other side of a ReLU's bend, or of a
    pixel that a tap lies on: losses agree nevertheless, gradients need not.
    """
    size = (image.shape[1], image.shape[2])
    data = {"inputs": [image.flip(0)], "data_samples": [sample(size, size)]}
    normalised = model.data_preprocessor(data, False)["inputs"][0, :, : size[0], : size[1]].double()
    mean, std = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in (ours.transform.image_mean, ours.transform.image_std)
    )
    pixels: Tensor = normalised * std + mean
    torch.testing.assert_close(pixels, image.double() / 255, rtol=0, atol=1e-6)
    return pixels


def compare_gradients(model: Any, ours: Any, names: dict[str, str]) -> None:
    """Of parameters by their and our name, after both have gone backward in float64."""
    theirs_by_name, ours_by_name = dict(model.named_parameters()), dict(ours.named_parameters())
    for their_name, name in names.items():
        gradient = theirs_by_name[their_name].grad
        scale = float(gradient.abs().max())
        assert scale > 1e-4, their_name
        torch.testing.assert_close(
            ours_by_name[name].grad, gradient, rtol=0, atol=1e-5 * scale, msg=their_name
        )


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
