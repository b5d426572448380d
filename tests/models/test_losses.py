import math

import pytest
import torch
from small_solo import SYSTEMS, batch, rectangles, small

from solo_attn.models.losses import category_loss, mask_loss
from solo_attn.models.targets import LevelTargets, assign


def dense_losses(model, images, targets):
    """The two losses from the full S^2 x 2h x 2w logits, with nothing of the library's losses."""
    head = model.head
    batch, resized = model.transform(images, targets)
    levels = head.levels(list(model.backbone(batch.tensors).values()))
    grids = head.grids(levels)
    assigned = assign(resized, tuple(batch.tensors.shape[-2:]), head.num_grids, model.scale_ranges)
    dice, focal, positives = [], 0.0, []
    for k, (features, grid, level) in enumerate(zip(levels, grids, assigned, strict=True)):
        masks = head.dense_mask_logits(k, features, grid).sigmoid()
        for (image, cell), truth in zip(level.cells.tolist(), level.masks.to(masks.dtype), strict=True):
            p = masks[image, cell]
            union = ((p * p).sum() + 1e-3) + ((truth * truth).sum() + 1e-3)
            dice.append(1 - 2 * (p * truth).sum() / union)
        p = head.category_output(head.category_tower(grid)).sigmoid()
        truth = torch.stack([level.labels == c for c in range(p.shape[1])], dim=1)
        focal = focal - (0.25 * (1 - p) ** 2 * p.log())[truth].sum()
        focal = focal - (0.75 * p**2 * (1 - p).log())[~truth].sum()
        positives.append(len(level.cells))
    loss_mask = 3 * sum(dice) / len(dice)
    return {"loss_category": focal / (len(dice) + 1), "loss_mask": loss_mask}, positives


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


@pytest.mark.parametrize(
    ("system", "scale"),
    [
        ("without_coords", 1.0),
        ("solo", 1.0),
        ("attention", 0.5),
        ("attention", "rsqrt"),
        ("attention", "cosine"),
    ],
)
def test_a_training_step_is_that_of_the_dense_formulation(system, scale):
    model = small(system, attention_scale=scale).double().train()
    for output in model.head.mask_outputs:  # as they are after some training: masks that are not all alike
        torch.nn.init.normal_(output.weight, std=0.3)
        torch.nn.init.zeros_(output.bias)
    images, targets = batch()
    images = [image.double() for image in images]
    losses = model(images, targets)
    expected, positives = dense_losses(model, images, targets)
    assert len(set(positives)) > 2  # else a mean of the levels' means would do as well
    assert min(positives) > 0
    assert set(losses) == {"loss_category", "loss_mask"}
    # The focal loss is in float32, whatever the logits are.
    tolerance = {"loss_category": 1e-5, "loss_mask": 1e-9}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=tolerance[name])
        found, wanted = gradients(model, loss), gradients(model, expected[name])
        assert set(found) >= set(wanted)
        assert any(key.startswith("backbone.body") for key in wanted)
        for key, grad in found.items():
            if key not in wanted:
                assert not grad.any(), key
                continue
            worst = (grad - wanted[key]).abs().max().item()
            assert worst <= tolerance[name] * max(1e-3, wanted[key].abs().max().item()), (name, key)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_positive_cell_is_a_loss_of_zero_with_its_graph(system):
    model = small(system).train()
    images, _ = batch()
    losses = model(images, [rectangles([], [], image.shape[1:]) for image in images])
    assert losses["loss_mask"].item() == 0
    assert losses["loss_category"].item() > 0
    losses["loss_mask"].backward()
    for name, p in model.head.named_parameters():
        if name.startswith("mask"):
            assert p.grad is not None, name
            assert not p.grad.any(), name
    model.zero_grad()
    sum(model(images, [rectangles([], [], image.shape[1:]) for image in images]).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_mask_parameter_has_a_gradient_where_one_level_has_positives():
    """Processes that train together exchange the same gradients, whatever their images hold."""
    model = small().train()
    images, _ = batch(sizes=((64, 96),))
    calls = []
    model.head.mask_tower.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[2:]))
    model(images, [rectangles([(3, 3, 8, 8)], [0], (64, 96))])["loss_mask"].backward()
    assert calls == [(8, 12)]  # one level, one mask tower
    used = [bool(output.weight.grad.any()) for output in model.head.mask_outputs]
    assert used == [True, False, False, False, False]


def test_a_target_that_vanished_is_a_loss_of_one_without_a_gradient():
    model = small().train()
    model.mask_loss_weight = 1.0
    images, _ = batch(sizes=((64, 96),))
    target = rectangles([(8, 8, 9, 9)], [0], (64, 96))  # no centre pixel of its 4 x 4 block
    assert not assign([target], (64, 96), model.head.num_grids, model.scale_ranges)[0].masks.any()
    loss = model(images, [target])["loss_mask"]
    assert loss.item() == 1
    assert all(not grad.any() for grad in gradients(model, loss).values())


def level_targets(labels):
    labels = torch.tensor(labels)[None]
    count = int((labels >= 0).sum())
    cells = torch.zeros(count, 2, dtype=torch.int64)
    return LevelTargets(labels, cells, torch.zeros(count, 4, 4, dtype=torch.bool))


def test_focal_loss_by_hand():
    # p = 0.5 everywhere: a positive entry costs 0.25 * 0.25 * ln 2, a negative one 0.75 * 0.25 * ln 2.
    positive, negative = 0.0625 * math.log(2), 0.1875 * math.log(2)
    nothing, some = level_targets([[-1, -1], [-1, -1]]), level_targets([[2, -1], [-1, 0]])
    logits = torch.zeros(1, 3, 2, 2)
    assert category_loss([logits], [nothing]).item() == pytest.approx(12 * negative)
    found = category_loss([logits, logits], [some, nothing]).item()
    assert found == pytest.approx((2 * positive + 22 * negative) / 3)  # 2 positive cells, + 1
    # Which entries are positive: a confident one of class 2 in cell 0 costs nothing there and much elsewhere.
    sure = torch.full((1, 3, 2, 2), -20.0)
    sure[0, 2, 0, 0] = sure[0, 0, 1, 1] = 20
    assert category_loss([sure], [some]).item() < 1e-6
    sure[0, 2, 0, 0], sure[0, 1, 0, 0] = -20, 20
    assert category_loss([sure], [some]).item() == pytest.approx((0.25 * 20 + 0.75 * 20) / 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_focal_loss_of_half_precision_logits_is_summed_in_float32(dtype):
    logits = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = [level_targets([[-1] * 40] * 40)]
    loss = category_loss([logits], targets)
    assert loss.dtype == torch.float32
    assert loss.item() == category_loss([logits.float()], targets).item()


def test_weight_of_the_mask_loss():
    model = small()
    assert model.mask_loss_weight == 3
    assert small(mask_loss_weight=2.0).mask_loss_weight == 2
    images, targets = batch()
    transformed, resized = model.transform(images, targets)
    with torch.no_grad():
        levels, grids, _ = model._features(transformed.tensors)
        assigned = assign(
            resized, tuple(transformed.tensors.shape[-2:]), model.head.num_grids, model.scale_ranges
        )
        once, thrice = (mask_loss(model.head, levels, grids, assigned, weight).item() for weight in (1, 3))
        model.train()
        assert model(images, targets)["loss_mask"].item() == pytest.approx(thrice)
    assert thrice == pytest.approx(3 * once)
    assert 0 < once <= 1  # a mean of dice losses
