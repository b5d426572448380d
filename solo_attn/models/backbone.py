"""ResNet + FPN, from torchvision (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "gn": partial(nn.GroupNorm, 32),
}

_PRETRAINED_TRAINABLE = 3  # layer4, layer3, layer2: torchvision's own choice for fine-tuning


def default_norm(pretrained: bool) -> str:
    """Frozen statistics belong to weights: without these they would normalise nothing."""
    return "frozen_bn" if pretrained else "gn"


def resnet_fpn(
    name: str = "resnet50",
    *,
    norm: str | None = None,
    pretrained: bool = False,
    out_channels: int = 256,
) -> BackboneWithFPN:
    """ResNet with a feature pyramid P2..P6, P6 from P5 by max-pooling (docs/method.md, "Levels" step 2).

    Args:
        name: one of resnet18, resnet34, resnet50, resnet101.
        norm: "frozen_bn" for fine-tuning, "bn" for large batches, "gn" for training from scratch with
            small ones; None for `default_norm`.
        pretrained: load torchvision's ImageNet weights (downloads them), and freeze the stem and layer1.
        out_channels: channels of each level.

    Returns:
        A module from [B, 3, H, W] to a dict of five maps [B, out_channels, H / s, W / s], s = 4..64.

    Raises:
        ValueError: an unknown ``name`` or ``norm``, or ``pretrained`` with "gn": there are no such weights.
    """
    norm = norm or default_norm(pretrained)
    if name not in RESNETS:
        raise ValueError(f"resnet_fpn: expected backbone to be one of {', '.join(RESNETS)}, got {name!r}")
    if norm not in NORMS:
        raise ValueError(f"resnet_fpn: expected norm to be one of {', '.join(NORMS)}, got {norm!r}")
    if pretrained and norm == "gn":
        raise ValueError("resnet_fpn: expected norm 'frozen_bn' or 'bn' with pretrained=True, got 'gn'")
    body = getattr(resnet, name)(weights="DEFAULT" if pretrained else None, norm_layer=NORMS[norm])
    if pretrained:
        trainable = tuple(f"layer{4 - k}" for k in range(_PRETRAINED_TRAINABLE))
        for parameter_name, parameter in body.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(trainable))
    stage = body.inplanes // 8  # channels of layer1's output
    return BackboneWithFPN(
        body,
        return_layers={f"layer{k + 1}": str(k) for k in range(4)},
        in_channels_list=[stage, 2 * stage, 4 * stage, 8 * stage],
        out_channels=out_channels,
        extra_blocks=LastLevelMaxPool(),
    )
