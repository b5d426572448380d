import math

import pytest
import torch
from dense_step import dense_losses
from small_solo import SETTINGS, SYSTEMS, batch, rectangles, small
from target_loops import assigned_by_loops

from solo_attn.models.losses import category_loss, mask_loss
from solo_attn.models.targets import LevelTargets, assign

# The second object and the last are on two levels each, the third and fourth contend for cells.
BOXES = [(3, 5, 13, 14), (20, 9, 49, 40), (50, 30, 75, 61), (52, 27, 79, 60), (1, 1, 78, 63), (60, 3, 71, 20)]
SIZES = ((64, 80), (64, 64), (64, 96))


def scenes():
    """Three images of different sizes, the one in the middle without objects."""
    images, _ = batch(sizes=SIZES)
    numbers = ([0, 1, 2, 3, 5], [], [0, 2, 4, 5])
    targets = [
        rectangles([BOXES[k] for k in chosen], [(k + image) % 3 for k in chosen], size)
        for image, (chosen, size) in enumerate(zip(numbers, SIZES, strict=True))
    ]
    return [image.double() for image in images], targets


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def test_the_scenes_hold_what_is_difficult():
    _, targets = scenes()
    grids, ranges = SETTINGS["num_grids"], SETTINGS["scale_ranges"]
    found = assigned_by_loops(targets, (64, 96), grids, ranges)
    assert len({len(level) for level in found}) > 2  # else a mean of the levels' means would do as well
    assert all(found)
    both, contended = 0, 0
    alone = [
        assigned_by_loops([{k: v[n : n + 1] for k, v in targets[0].items()}], (64, 96), grids, ranges)
        for n in range(len(targets[0]["labels"]))
    ]
    both = sum(sum(map(bool, levels)) > 1 for levels in alone)
    for k, level in enumerate(found):
        cells = [cell for levels in alone for cell in levels[k]]
        contended += len(cells) - len({cell for cell in level if cell[0] == 0})
    assert both > 0
    assert contended > 0


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("without_coords", {}),
        ("solo", {}),
        ("solo", {"coords": "inclusive"}),
        ("attention", {}),
        ("attention", {"masks": "dense"}),
        ("attention", {"attention_vectors": "projection"}),
        ("attention", {"attention_vectors": "position", "attention_gain": 2.0}),
        ("attention", {"attention": "cosine", "attention_vectors": "position", "masks": "dense"}),
        ("attention", {"attention": "rsqrt"}),
        ("attention", {"attention": "rsqrt", "attention_vectors": "projection"}),
        ("attention", {"attention": "literal"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_training_step_is_that_of_the_dense_formulation(system, settings):
    """Both losses and each one's gradient of every parameter."""
    model = small(system, **settings).double().train()
    for output in model.head.mask_outputs:  # as they are after some training: masks that are not all alike
        torch.nn.init.normal_(output.weight, std=0.3)
        torch.nn.init.zeros_(output.bias)
    images, targets = scenes()
    losses = model(images, targets)
    expected, _ = dense_losses(model, images, targets)
    assert set(losses) == set(expected)
    touched = set()
    for name, loss in losses.items():
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-10)
        found, wanted = gradients(model, loss), gradients(model, expected[name])
        assert set(found) >= set(wanted)
        touched |= {key for key, grad in wanted.items() if grad.any()}
        for key, grad in found.items():
            if key not in wanted:
                assert not grad.any(), key
                continue
            worst = (grad - wanted[key]).abs().max().item()
            assert worst <= 1e-9 * max(1e-3, wanted[key].abs().max().item()), (name, key)
    assert touched == {name for name, _ in model.named_parameters()}


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
    model.settings.mask_loss_weight = 1.0
    images, _ = batch(sizes=((64, 96),))
    target = rectangles([(8, 8, 9, 9)], [0], (64, 96))  # no centre pixel of its 4 x 4 block
    assert not assign([target], (64, 96), model.head.num_grids, model.settings.scale_ranges)[0].masks.any()
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
    assert model.settings.mask_loss_weight == 3
    assert small(mask_loss_weight=2.0).settings.mask_loss_weight == 2
    images, targets = batch()
    transformed, resized = model.transform(images, targets)
    with torch.no_grad():
        result = model.features(transformed.tensors)
        assigned = assign(
            resized, tuple(transformed.tensors.shape[-2:]), model.head.num_grids, model.settings.scale_ranges
        )
        once, thrice = (mask_loss(model.head, result, assigned, weight).item() for weight in (1, 3))
        model.train()
        assert model(images, targets)["loss_mask"].item() == pytest.approx(thrice)
    assert thrice == pytest.approx(3 * once)
    assert 0 < once <= 1  # a mean of dice losses
