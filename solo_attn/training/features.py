"""The maps of a frozen backbone, made once for each image and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models import SOLO
from .config import Config, ConfigError

_GIB = 2**30
_OF_EACH_IMAGE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # not so in training


class FeatureCache:
    """A backbone's body with a cache.

    The key of an image is a hash of the pixels that the body gets, resized, normalised and padded: an
    augmented image is another one, and no image gets the maps of another. Maps are computed one image at a
    time, so that they depend neither on the rest of a batch nor on what was computed before a run was
    resumed. Maps that do not fit are computed at each step; cached ones are never evicted, since images come
    in turn and the oldest would be needed next.

    Args:
        forward: from [B, 3, H, W] to maps [B, C, h, w], a dict or a list of them.
        limit: bytes of maps to keep.

    Attributes:
        bytes: of the maps that are kept.
        found: images whose maps were there.
        made: images whose maps were not.
    """

    forward: Callable[[Tensor], Any]
    limit: float
    bytes: int
    found: int
    made: int

    def __init__(self, forward: Callable[[Tensor], Any], limit: float) -> None:
        self.forward, self.limit = forward, limit
        self.bytes = self.found = self.made = 0
        self._kept: dict[tuple[Any, ...], Any] = {}

    def __call__(self, images: Tensor) -> Any:
        """The maps of a batch; they have no gradient."""
        # Putting them together copies them: a training step could not use a validation's own tensors, which
        # are of inference mode.
        each = [self._maps(image) for image in images]
        if isinstance(each[0], dict):
            return {name: torch.cat([maps[name] for maps in each]) for name in each[0]}
        return [torch.cat(level) for level in zip(*each, strict=True)]

    def _maps(self, image: Tensor) -> Any:
        device = image.device.type
        lowered = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        pixels: Any = image.detach().contiguous().cpu().view(torch.uint8).numpy()
        key = (hashlib.blake2b(pixels, digest_size=16).digest(), image.shape, image.dtype, device, lowered)
        maps = self._kept.get(key)
        if maps is not None:
            self.found += 1
            return maps
        self.made += 1
        with torch.no_grad():
            maps = self.forward(image[None])
        size = sum(x.nbytes for x in (maps.values() if isinstance(maps, dict) else maps))
        if self.bytes + size <= self.limit:
            self._kept[key] = maps
            self.bytes += size
        return maps


def cache_features(model: SOLO, gibibytes: float) -> FeatureCache:
    """Let the model's backbone cache the maps of each image, in training and in evaluation.

    The body stays part of the model, with the same names of weights.

    Raises:
        ConfigError: the body is not frozen, or depends on more than the image in training.
    """
    body = model.backbone.body
    assert isinstance(body, nn.Module)
    model.train()
    learned = sum(parameter.requires_grad for parameter in body.parameters())
    if learned:
        raise ConfigError(
            "config: expected train.cache_features only with a backbone whose body is frozen "
            f"(model.freeze: all), got {learned} of its parameters that are trained"
        )
    if any(module.training and isinstance(module, _OF_EACH_IMAGE) for module in body.modules()):
        raise ConfigError(
            "config: expected train.cache_features only with a backbone whose norms are frozen, got batch "
            "norm or dropout that is not"
        )
    cache = FeatureCache(body.forward, gibibytes * _GIB)
    body.forward = cache
    return cache


def refuse_varied(config: Config) -> None:
    """Refuse augmentation that makes each image a new one: its maps would be cached and never found again.

    Flips and quarter turns give a few variants of an image.

    Raises:
        ConfigError: names them.
    """
    data, model = config.data, config.model
    low, high = data.scale_jitter or (1, 1)
    varied = {
        "data.shortest_size": data.shortest_size is not None and len(set(data.shortest_size)) > 1,
        "data.scale_jitter": low != high,
        "data.crop_size": data.crop_size is not None,
        "data.canvas": data.canvas is not None,
        "data.colour": data.colour > 0,
        "data.copy_paste": data.copy_paste > 0,
        "model.min_size": model.resize_in_training and len(set(model.sizes)) > 1,
    }
    if any(varied.values()):
        names = ", ".join(name for name, found in varied.items() if found)
        raise ConfigError(
            "config: expected train.cache_features only with images that come again as they were, flipped or "
            f"turned at most; got {names}"
        )
