"""How the levels go through the model: those of one size as one batch, predictions with channels last."""

import pytest
import torch
from small_export import exportable
from small_solo import batch, confident, small

from solo_attn.models import HeadSettings
from solo_attn.models.heads import build_head
from solo_attn.models.layers import channels_last
from solo_attn.models.settings import OF_HEADS

SIZES = ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
# Of three images: some levels with cells of all, of some in any order, and none.
CELLS = {
    0: torch.tensor([[2, 7], [0, 0], [2, 2], [2, 7]]),
    1: torch.tensor([[1, 3], [0, 5], [2, 1]]),
    3: torch.tensor([[1, 4]]),
    4: torch.tensor([[0, 8], [1, 0]]),
}


@pytest.mark.parametrize("coords", ["paper", None])
@pytest.mark.parametrize("kind", ["solo", "decoupled", "decoupled_light"])
def test_levels_in_one_batch_are_those_one_at_a_time(kind, coords):
    torch.manual_seed(0)
    sizes = {"head_channels": 32, "num_convs": 1, "num_grids": (5, 4, 3, 3, 3), "coords": coords}
    head = build_head(3, 6, HeadSettings(head=kind, attention=None, **sizes)).double()
    pyramid = [torch.randn(3, 6, *size, dtype=torch.float64).requires_grad_() for size in SIZES]
    result = head(pyramid)
    runs = []
    tower = head.column_tower if kind == "decoupled" else head.mask_tower
    tower.register_forward_pre_hook(lambda module, args: runs.append(tuple(args[0].shape)))
    together = head.prepare(result, {level: cells[:, 0].unique() for level, cells in CELLS.items()})
    assert [(shape[0], shape[2:]) for shape in runs] == [(5, (8, 12)), (3, (2, 3))]
    everything = head.prepare(result, dict.fromkeys(CELLS))
    assert [shape[0] for shape in runs[2:]] == [6, 6]
    del runs[:]
    parameters = [*pyramid, *head.mask_parameters()]
    found = []
    for prepared in (result, together, everything):
        masks = [head.cell_masks(prepared, level, cells).coarse_logits for level, cells in CELLS.items()]
        upstream = [torch.linspace(-1, 1, mask.numel()).double().reshape(mask.shape) for mask in masks]
        grads = torch.autograd.grad(masks, parameters, upstream, retain_graph=True, allow_unused=True)
        found.append([*masks, *grads])
    assert len(runs) == len(CELLS), "a result that was not prepared: each level by itself"
    dense = result._replace(mask_logits=result.features)
    assert head.prepare(dense, dict.fromkeys(CELLS)) is dense, "all masks are made already"
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("head", OF_HEADS)
def test_predictions_are_channels_last_on_a_cpu(head):
    real = head == "solo"
    model, orders = confident(small()) if real else exportable(head), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_hook(
                lambda module, args, out, name=name: orders.update({name: (args[0], out)})
            )
    images, targets = batch()
    model(images)
    assert {".".join(name.split(".")[:2]) for name in orders} >= {
        *(("backbone.body", "backbone.fpn") if real else ("backbone.stem", "backbone.steps")),
        "head.category_tower",
        *(f"head.{name}" for name, _ in model.head.named_children() if "tower" in name),
    }
    assert [name for name, maps in orders.items() if not all(map(channels_last, maps))] == []
    # The backward pass of GroupNorm is slow in this order.
    model.train()(images, targets)
    assert [name for name, maps in orders.items() if any(map(channels_last, maps))] == []
