"""Prediction heads, and what they have in common."""

from ..settings import HeadSettings
from .decoupled import DecoupledHead, DecoupledLightHead
from .interface import STRIDES, CellMasks, Head, HeadResult
from .solo import SOLOHead
from .solov2 import SOLOv2Head

_KINDS: dict[str, type[Head]] = {
    kind: head for head in (SOLOHead, DecoupledHead, DecoupledLightHead, SOLOv2Head) for kind in head.kinds
}


def build_head(num_classes: int, in_channels: int, settings: HeadSettings) -> Head:
    """The head that ``settings.head`` names; arguments as those of `Head`."""
    return _KINDS[settings.head](num_classes, in_channels, settings)


__all__ = [
    "STRIDES",
    "CellMasks",
    "DecoupledHead",
    "DecoupledLightHead",
    "Head",
    "HeadResult",
    "SOLOHead",
    "SOLOv2Head",
    "build_head",
]
