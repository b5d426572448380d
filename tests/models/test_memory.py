"""The S^2 mask channels never exist at once: every tensor that training and inference make is looked at."""

import importlib

import pytest
import torch
from small_solo import SYSTEMS, batch, confident, small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from solo_attn.ops import grid_attention

# S * S exceeds the channels that the backbone has on maps of the same size, so that only masks can match.
GRIDS = (40, 36, 24, 24, 24)
SIZE = (64, 96)
STRIDES = (8, 8, 16, 32, 32)


class DenseMasksError(AssertionError):
    pass


class NoDenseMasks(TorchDispatchMode):
    """Refuses results with S * S channels of a level's h x w, 2h x 2w (or, of attention, S x S) values."""

    def __init__(self):
        super().__init__()
        self.looked_at = set()
        self.forbidden = []
        for side, stride in zip(GRIDS, STRIDES, strict=True):
            height, width = (n // stride for n in SIZE)
            for size in ((height, width), (2 * height, 2 * width), (side, side)):
                self.forbidden.append((side * side, size))

    def check(self, func, out):
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            for channels, (height, width) in self.forbidden:
                spatial = tuple(x.shape[-2:]) == (height, width) and x.dim() >= 3
                # Not of transposed views: [S * S, chosen cells] may look alike.
                flat = x.dim() >= 2 and x.is_contiguous() and x.shape[-1] == height * width
                if (spatial and x.shape[-3] >= channels) or (flat and x.shape[-2] >= channels):
                    raise DenseMasksError(f"{func} made {list(x.shape)}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.looked_at.add(func.name())
        if func.namespace.startswith("solo_attn"):
            # What runs inside is hidden from this mode: run the reference once more, in its sight.
            name = func.name().partition("::")[2]
            module = importlib.import_module(f"solo_attn.reference.{name.removesuffix('_bwd')}")
            with self:
                getattr(module, name)(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.check(func, out)
        return out


def watched_model(system, **settings):
    return confident(small(system, num_grids=GRIDS, **settings), category_bias=-11.0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_never_makes_them(system):
    model = watched_model(system).train()
    images, targets = batch(sizes=(SIZE, SIZE))
    with NoDenseMasks() as watch:
        losses = model(images, targets)
        sum(losses.values()).backward()
    assert losses["loss_mask"] > 0
    seen = {name.partition("::")[2] for name in watch.looked_at}
    assert {"convolution", "convolution_backward", "dice_loss", "dice_loss_bwd"} <= seen
    assert ("grid_attention_bwd" in seen) == (system == "attention")


@pytest.mark.parametrize("system", SYSTEMS)
def test_inference_never_makes_them(system):
    model = watched_model(system)
    images, _ = batch(sizes=(SIZE, SIZE))
    with NoDenseMasks() as watch:
        found = model(images)
    assert all(len(x["scores"]) for x in found)
    seen = {name.partition("::")[2] for name in watch.looked_at}
    assert {"mask_bits", "matrix_nms", "paste_masks"} <= seen
    assert ("grid_attention" in seen) == (system == "attention")


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("level", range(5))
def test_the_watch_sees_them(level, attention):
    model = watched_model("attention" if attention else "solo")
    images, _ = batch(sizes=(SIZE, SIZE))
    with torch.no_grad():
        result = model.features(model.transform(images)[0].tensors)
        with NoDenseMasks(), pytest.raises(DenseMasksError):
            model.head.dense_mask_logits(level, result.features[level], result.grids[level])
        side = GRIDS[level]
        cells = torch.cartesian_prod(torch.arange(1), torch.arange(side * side))
        with NoDenseMasks(), pytest.raises(DenseMasksError):  # at h x w already
            model.head.cell_masks(result, level, cells)
        with NoDenseMasks():
            grid_attention(result.grids[level], 1.0, cells[:1])
            with pytest.raises(DenseMasksError):  # S^2 maps of S x S
                grid_attention(result.grids[level])
