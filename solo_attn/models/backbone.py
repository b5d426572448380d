"""Backbone + FPN: torchvision's ResNets (paper section 3.1), or any of timm's that gives strides 4 to 32."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from .._utils.checks import is_integer
from .._utils.errors import extra_needed
from .layers import DeformConv
from .pretrained import load_weights, package_weights, plain, read_weights

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BOTTLENECKS = ("resnet50", "resnet101")
TIMM = "timm/"
STRIDES = (4, 8, 16, 32)
STAGES = 5  # the stem, and what makes each of the four maps

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "gn": partial(nn.GroupNorm, 32),
}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRETRAINED_FREEZE = 2  # the stem and the first stage: torchvision's own choice for fine-tuning


def default_norm(name: str, pretrained: bool | str) -> str:
    """Frozen statistics come with pretrained weights; without these they would normalise nothing."""
    if pretrained:
        return "frozen_bn"
    return "bn" if name.startswith(TIMM) else "gn"


def image_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel that a backbone's published weights were trained with.

    Args:
        name: as in `build_backbone`.
    """
    config = _timm().get_pretrained_cfg(name.removeprefix(TIMM)) if name.startswith(TIMM) else None
    return (IMAGENET_MEAN, IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))


class Backbone(nn.Module):
    """Feature maps of strides 4 to 32 and the pyramid P2..P6 over them (docs/method.md, "Levels").

    From [B, 3, H, W] to a dict of five maps [B, out_channels, H / s, W / s], s = 4..64, ceilings where it
    does not divide. Frozen stages get no gradient, and their batch norms keep their statistics in training.

    Args:
        body: from an image to the four maps, a dict or a list of them.
        modules: names of the body's modules that make the four maps, in order.
        channels: of the four maps.
        freeze: stages that are not trained, of `STAGES`: 1 is the stem, all that comes before the first map's
            module; "all" is the whole body, of whose maps there is then no graph.
        out_channels: channels of each level.
    """

    body: nn.Module
    fpn: nn.Module

    def __init__(
        self,
        body: nn.Module,
        modules: Sequence[str],
        channels: Sequence[int],
        *,
        freeze: int | Literal["all"] = 0,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels
        count = STAGES if freeze == "all" else freeze
        self._frozen = [body] if count == STAGES else _first_stages(body, modules, count)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """`nn.Module.train`, but frozen stages keep their statistics and dropout as in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def features(self, images: Tensor) -> list[Tensor]:
        """The four maps: of a frozen body they depend on the images alone and can be kept."""
        maps = self.body(images)
        return list(maps.values()) if isinstance(maps, Mapping) else list(maps)

    def pyramid(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """P2..P6 of the four maps."""
        named = OrderedDict((str(k), feature) for k, feature in enumerate(features))
        levels: dict[str, Tensor] = self.fpn(named)
        return levels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """P2..P6 of the images."""
        return self.pyramid(self.features(images))


def build_backbone(
    name: str = "resnet50",
    *,
    norm: str | None = None,
    pretrained: bool | str = False,
    freeze: int | Literal["all"] | None = None,
    deformable: bool = False,
    stride_in_1x1: bool = False,
    out_channels: int = 256,
) -> Backbone:
    """A backbone with its feature pyramid; nothing is downloaded unless ``pretrained`` is True.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101 (torchvision's), or "timm/<name>" for one of timm's.
        norm: "frozen_bn" for fine-tuning, "bn" for large batches, "gn" (a ResNet's only) for training from
            scratch with small ones; None for `default_norm`. Of timm's, "bn" is what the architecture has.
        pretrained: False for none; True for the ImageNet weights of torchvision or timm, downloaded if they
            are not cached; "package" for those of an installed package (see `package_weights`); else the file
            of a state dict, of torch.save or safetensors, with torchvision's or timm's names.
        freeze: stages that are not trained, 0..5, or "all" (see `Backbone`); None for the stem and the first
            stage with weights and for none without.
        deformable: DCNv2 in place of the 3x3 convolutions of the last three stages of resnet50 or resnet101.
        stride_in_1x1: the stride of their bottlenecks is in the first convolution, as in Caffe's weights.
        out_channels: channels of each level.

    Raises:
        ValueError: an unknown ``name``, ``norm`` or ``freeze``; "gn" with weights, of which there are none,
            or with timm; an architecture whose maps are of other strides; another architecture's weights.
        FileNotFoundError: no file of weights.
        MissingExtraError: timm, or the package that carries the weights, is not installed.
    """
    if not isinstance(pretrained, (bool, str)):
        _fail("pretrained", "a bool, 'package' or a file", pretrained)
    norm = norm or default_norm(name, pretrained)
    if norm not in NORMS:
        _fail("norm", f"one of {', '.join(NORMS)}", norm)
    freeze = freeze if freeze is not None else (PRETRAINED_FREEZE if pretrained else 0)
    if freeze != "all" and not (is_integer(freeze, 0) and freeze <= STAGES):
        _fail("freeze", f"0..{STAGES} or 'all'", freeze)
    if norm == "gn" and (pretrained or name.startswith(TIMM)):
        which = f"pretrained={pretrained!r}" if pretrained else "a backbone of timm"
        _fail("norm", f"'frozen_bn' or 'bn' with {which}", norm)
    if name.startswith(TIMM):
        body, modules, channels = _timm_body(name.removeprefix(TIMM), norm, pretrained)
    elif name in RESNETS:
        body, modules, channels = _resnet_body(name, norm, pretrained)
    else:
        _fail("backbone", f"one of {', '.join(RESNETS)} or '{TIMM}<name>'", name)
    if deformable or stride_in_1x1:
        _change_bottlenecks(body, modules[1:], name, deformable, stride_in_1x1)
    return Backbone(body, modules, channels, freeze=freeze, out_channels=out_channels)


def _resnet_body(name: str, norm: str, pretrained: bool | str) -> tuple[nn.Module, list[str], list[int]]:
    weights = "DEFAULT" if pretrained is True else None
    network = getattr(resnet, name)(weights=weights, norm_layer=NORMS[norm])
    modules = [f"layer{k + 1}" for k in range(len(STRIDES))]
    body = IntermediateLayerGetter(network, {module: str(k) for k, module in enumerate(modules)})
    if pretrained == "package":
        _fail("pretrained", "False, True or a file with a ResNet", pretrained)
    if isinstance(pretrained, str):
        load_weights(body, read_weights(pretrained), pretrained)
    stage = network.inplanes // 8  # channels of layer1's output
    return body, modules, [stage, 2 * stage, 4 * stage, 8 * stage]


def _change_bottlenecks(
    body: nn.Module, stages: Sequence[str], name: str, deformable: bool, stride_in_1x1: bool
) -> None:
    """Deformable convolutions start with the weights of the ones that they replace."""
    if name not in BOTTLENECKS:
        argument = "deformable" if deformable else "stride_in_1x1"
        _fail(argument, f"False with a backbone other than {' and '.join(BOTTLENECKS)}", f"True and {name}")
    for stage in stages:
        for block in body.get_submodule(stage).children():
            assert isinstance(block, resnet.Bottleneck)
            first, second = block.conv1, block.conv2
            if stride_in_1x1:
                first.stride, second.stride = second.stride, first.stride
            if deformable:
                deformed = DeformConv(second.in_channels, second.out_channels, 3, second.stride[0])
                deformed.weight = second.weight
                block.conv2 = deformed


def _timm_body(name: str, norm: str, pretrained: bool | str) -> tuple[nn.Module, list[str], list[int]]:
    timm = _timm()
    if not timm.is_model(name):
        _fail("backbone", "one of timm.list_models() after 'timm/'", TIMM + name)
    try:
        every = timm.create_model(name, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            "build_backbone: expected backbone to be one that timm takes features of, "
            f"got {TIMM + name!r} ({error})"
        ) from error
    if any(stride not in every for stride in STRIDES):
        _fail("backbone", "one with maps of strides 4, 8, 16 and 32", f"{TIMM + name!r} with {every}")
    body = timm.create_model(
        name,
        features_only=True,
        pretrained=pretrained is True,
        out_indices=tuple(every.index(stride) for stride in STRIDES),
    )
    if str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        _fail("backbone", "one with maps [B, C, h, w]", f"{TIMM + name!r} with [B, h, w, C]")
    if pretrained == "package":
        with torch.device("meta"):
            like = timm.create_model(name).state_dict()
        load_weights(body, package_weights(name, like), "its package")
    elif isinstance(pretrained, str):
        load_weights(body, read_weights(pretrained), pretrained)
    if norm == "frozen_bn":
        from timm.layers import freeze_batch_norm_2d

        body = freeze_batch_norm_2d(body)
    return body, body.feature_info.module_name(), body.feature_info.channels()


def _timm() -> Any:
    with extra_needed("build_backbone"):
        import timm
    return timm


def _first_stages(body: nn.Module, modules: Sequence[str], count: int) -> list[nn.Module]:
    """What the first ``count`` stages consist of; parts are registered in the order of the computation."""
    ends = [plain(name) for name in modules]
    found: list[nn.Module] = []
    made = 0  # maps

    def visit(parent: nn.Module, prefix: str) -> None:
        nonlocal made
        for name, child in parent.named_children():
            path = plain(prefix + name)
            if any(end.startswith(path + "_") for end in ends):
                visit(child, prefix + name + ".")
                continue
            last = path in ends
            # The stem is all that comes before the first map's module; later stages end with theirs.
            stage = made + (2 if last or made else 1)
            made += last
            if stage <= count:
                found.append(child)

    visit(body, "")
    if count and made != len(ends):
        _fail("freeze", "0 or 'all' with a backbone whose stages are not parts of it", str(count))
    return found


def _fail(argument: str, expected: str, got: Any) -> NoReturn:
    shown = got if isinstance(got, str) and got.startswith("'") else repr(got)
    raise ValueError(f"build_backbone: expected {argument} to be {expected}, got {shown}")
