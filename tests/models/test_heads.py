"""The heads of the SOLO family: masks of chosen cells beside those of all, settings, checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from dense_step import attention_map
from small_solo import SETTINGS, batch
from torch import nn

from solo_attn import dice_loss, dice_loss_levels, upsample_add
from solo_attn.models import (
    HeadSettings,
    ModelInfo,
    ModelSettings,
    build_solo,
    load_model,
    losses,
    save_model,
)
from solo_attn.models.heads import DecoupledHead, SOLOHead, SOLOv2Head, build_head
from solo_attn.models.heads.decoupled import product_logit
from solo_attn.models.layers import DeformConv
from solo_attn.models.settings import OF_HEADS
from solo_attn.models.targets import LevelTargets

NEW = [kind for kind in OF_HEADS if kind != "solo"]
SIZES = ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
CELLS = torch.tensor([[1, 7], [0, 0], [1, 2], [1, 7], [0, 5]])  # of both images, out of order, one twice


def small_head(kind, seed=0, **settings):
    """In float64, with output weights that are large enough to matter."""
    torch.manual_seed(seed)
    sizes = {"head_channels": 32, "num_convs": 1, "num_grids": (5, 4, 3, 3, 3)}
    sizes |= {"kernel_channels": 32, "feature_channels": 32}
    head = build_head(3, 6, HeadSettings(head=kind, **{**sizes, **settings})).double()
    for name, parameter in head.named_parameters():
        if "output" in name and not name.startswith("mask_features"):
            nn.init.normal_(parameter, std=0.3)
    return head


def pyramid_of(seed=1):
    torch.manual_seed(seed)
    return [torch.randn(2, 6, *size, dtype=torch.float64) for size in SIZES]


def enlarge(x, size):
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def every_probability(head, result, level, compared_at=None):
    """Decoupled SOLO as it is written down: all columns, all rows, all S^2 products."""
    features = result.features[level]
    size = [2 * side for side in features.shape[2:]]
    x = [m(enlarge(t, size)) for m, t in zip(*axes_of(head, features, level), strict=True)]
    columns, rows = (v.sigmoid() if compared_at is None else enlarge(v.sigmoid(), compared_at) for v in x)
    return (rows[:, :, None] * columns[:, None]).flatten(1, 2)


def axes_of(head, features, level):
    width, height = features.shape[3], features.shape[2]
    x = torch.linspace(-1, 1, width).double().expand(2, 1, height, width)
    y = torch.linspace(-1, 1, height).double()[:, None].expand(2, 1, height, width)
    outputs = [head.column_outputs[level], head.row_outputs[level]]
    if "mask_tower" in dict(head.named_children()):
        return outputs, [head.mask_tower(torch.cat([features, x, y], dim=1))] * 2
    return outputs, [
        head.column_tower(torch.cat([features, x], dim=1)),
        head.row_tower(torch.cat([features, y], dim=1)),
    ]


def gradients(head, loss):
    wanted = head.mask_parameters()
    return torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("kind", ["decoupled", "decoupled_light"])
@pytest.mark.parametrize("level", [0, 2])
def test_decoupled_masks_of_chosen_cells_are_those_of_all(kind, level):
    head = small_head(kind)
    result = head(pyramid_of())
    dense = every_probability(head, result, level)[CELLS[:, 0], CELLS[:, 1]]
    coarse, attention, size = head.cell_masks(result, level, CELLS)
    assert attention is None
    assert coarse.shape[1:] == size == tuple(2 * side for side in result.features[level].shape[2:])
    torch.testing.assert_close(coarse.sigmoid(), dense)
    truth = torch.rand_like(dense) > 0.5
    top = 2 * (dense * truth).sum((1, 2))
    expected = 1 - top / (dense.square().sum((1, 2)) + 1e-3 + truth.sum((1, 2)) + 1e-3)
    found = dice_loss(coarse, None, truth, 1e-3)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(head, found.sum()), gradients(head, expected.sum()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["decoupled", "decoupled_light"])
def test_decoupled_probabilities_are_enlarged_before_they_are_multiplied(kind):
    head = small_head(kind)
    result = head(pyramid_of())
    for level in (1, 2, 4):
        dense = every_probability(head, result, level, (16, 24))[CELLS[:, 0], CELLS[:, 1]]
        coarse, _, size = head.cell_masks(result, level, CELLS, (16, 24))
        assert size == (16, 24)
        torch.testing.assert_close(coarse.sigmoid(), dense)
    after = enlarge(every_probability(head, result, 4), (16, 24))[CELLS[:, 0], CELLS[:, 1]]
    assert float((after - dense).abs().max()) > 1e-4, "the order matters"


def test_the_logit_of_a_product():
    x, y = torch.tensor([[0.0, 3, -2, 60, 1000, -1000, 90]]), torch.tensor([[0.0, -1, -2, 60, 1000, 5, -90]])
    exact = (x.double().sigmoid() * y.double().sigmoid())[:, :3].logit()
    torch.testing.assert_close(product_logit(x, y)[:, :3], exact.float())
    torch.testing.assert_close(
        product_logit(x, y)[0, 3:], torch.tensor([59.3069, 999.3069, -1000.0067, -90.0])
    )


FORMS = [
    {"attention": None},
    {"attention": "literal", "attention_vectors": "features"},
    {"attention": "rsqrt", "attention_vectors": "projection"},
    {"attention": "cosine", "attention_vectors": "features"},
    {"attention": "gated", "attention_vectors": "position"},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form["attention"]))
def test_solov2_masks_of_chosen_cells_are_those_of_all(form):
    head = small_head("solov2", coords="inclusive", **form)
    pyramid = pyramid_of()
    result, level = head(pyramid), 2
    features = head.mask_features(pyramid)
    assert features.shape == (2, 32, 16, 24)  # stride 4
    kernels = head.kernels(result.features[level], result.grids[level])
    dense = torch.stack(
        [
            F.conv2d(f[None], k.flatten(1).T[:, :, None, None])[0]
            for f, k in zip(features, kernels, strict=True)
        ]
    )
    if head.attention is not None:
        dense = dense + enlarge(attention_map(head.attention, level, result.grids[level]), (16, 24))
    dense = dense[CELLS[:, 0], CELLS[:, 1]]
    factors, rows, size = head.cell_masks(result, level, CELLS)
    found = upsample_add(factors.logits(), rows, size)
    torch.testing.assert_close(found, dense)
    weights = torch.rand_like(dense)
    for a, b in zip(
        gradients(head, (found * weights).sum()), gradients(head, (dense * weights).sum()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_solov2_makes_its_features_once_and_kernels_where_cells_are():
    head = small_head("solov2_light")
    made, kernels = [], []
    head.mask_features.register_forward_hook(lambda module, args, out: made.append(out))
    head.kernel_tower.register_forward_pre_hook(lambda module, args: kernels.append(tuple(args[0].shape)))
    result = head(pyramid_of())
    assert (made, kernels) == ([], [])
    for level in (1, 3):
        head.cell_masks(result, level, CELLS[CELLS[:, 0] == 1])
    assert len(made) == 1
    assert kernels == [(1, 8, 4, 4), (1, 8, 3, 3)]


def test_in_solov2_a_cell_learns_the_masks_of_both_objects():
    torch.manual_seed(0)
    images, targets = batch()
    model = build_solo(3, head="solov2_light", **SETTINGS, kernel_channels=32, feature_channels=32).train()
    seen = []
    cell_masks = model.head.cell_masks
    model.head.cell_masks = lambda result, level, cells: (
        seen.append((level, cells)) or cell_masks(result, level, cells)
    )
    for key in ("boxes", "labels", "masks"):  # each object twice, the second time of another class
        targets[0][key] = torch.cat([targets[0][key]] * 2)
    targets[0]["labels"][5:] = (targets[0]["labels"][5:] + 1) % 3
    model(images[:1], targets[:1])
    assert seen
    for _, cells in seen:
        assert len(cells) == 2 * len(cells.unique(dim=0))


@pytest.mark.parametrize("attention", [None, "gated"])
def test_solov2_levels_learn_by_one_dice_loss(attention, monkeypatch):
    """Features that all levels share are read once where no attention sets levels apart."""
    head = small_head("solov2", attention=attention)
    result = head(pyramid_of())
    empty = torch.empty(0, 2, dtype=torch.int64)
    targets = [
        LevelTargets(torch.full((2, side, side), -1), cells, torch.rand(len(cells), 16, 24) > 0.5)
        for side, cells in zip(head.num_grids, [CELLS, empty, CELLS[:3], CELLS[1:2], empty], strict=True)
    ]
    expected = sum(
        dice_loss(masks.coarse_logits, masks.attention, level.masks, 1e-3).sum()
        for k, level in enumerate(targets)
        if len(level.cells)
        for masks in [head.cell_masks(result, k, level.cells)]
    )
    expected = expected * 2.0 / 9
    counts = []

    def counted(levels, eps):
        counts.extend(len(truth) for _, _, truth in levels)
        return dice_loss_levels(levels, eps)

    monkeypatch.setattr(losses, "dice_loss_levels", counted)
    found = losses.mask_loss(head, result, targets, 2.0)
    assert counts == ([9] if attention is None else [5, 3, 1])
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(head, found), gradients(head, expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", OF_HEADS)
def test_a_head_of_each_kind_learns_predicts_and_is_kept(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"kernel_channels": 32, "feature_channels": 32, "deformable": "last"}
    model = build_solo(3, head=kind, **{**SETTINGS, **sizes})
    images, targets = batch()
    found = model.train()(images, targets)
    sum(found.values()).backward()
    assert all(bool(loss.isfinite()) for loss in found.values())
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()
    head = model.eval().head
    assert {id(p) for p in head.mask_parameters()} | {
        id(p) for p in [*head.category_tower.parameters(), *head.category_output.parameters()]
    } == {id(p) for p in head.parameters()}
    save_model(model, ModelInfo(model.config, list("abc"), [1, 2, 3], {}), tmp_path / "a.safetensors")
    again, info = load_model(tmp_path / "a.safetensors")
    assert info.model["head"] == again.config["head"] == kind
    found = []
    for one in (model, again):
        with torch.no_grad():
            for name, parameter in one.head.named_parameters():
                if name.endswith("output.bias") or name.endswith("outputs.0.bias"):
                    nn.init.constant_(parameter, -1.0 if name.startswith("category") else 2.0)
        one.settings.final_score_threshold = 0.0
        found.append(one(images))
    for a, b in zip(*found, strict=True):
        assert len(a["scores"]) > 0
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_not_set_is_as_the_head_was_published():
    light = ModelSettings(head="solov2_light")
    assert (light.num_convs, light.head_channels, light.kernel_channels, light.max_size) == (2, 256, 128, 768)
    assert ModelSettings(head="solov2").head_channels == 512
    assert ModelSettings(head="solov2", head_channels=64).head_channels == 64
    for kind in NEW:
        assert (ModelSettings(head=kind).attention, ModelSettings(head=kind).coords) == (None, "inclusive")
    assert ModelSettings(**ModelSettings(head="decoupled_light").as_dict()).scale_ranges[0] == (1, 64)
    assert ModelSettings().as_dict() == ModelSettings(head="solo").as_dict()


def test_parameters_of_the_published_sizes():
    """Of 80 classes; counted from the layers that docs/heads.md lists."""
    gn, conv = 512, 9 * 256 * 256
    tower = 7 * (conv + gn)
    category = tower + 9 * 256 * 80 + 80
    sides = 40 + 36 + 24 + 16 + 12
    outputs = 2 * (9 * 256 * sides + sides)
    for kind, masks in (
        ("decoupled", 2 * (tower + 9 * 256) + outputs),
        ("decoupled_light", 4 * (conv + gn) + 9 * 2 * 256 + outputs - 3 * (conv + gn)),
    ):
        head = build_head(80, 256, HeadSettings(head=kind))
        assert sum(p.numel() for p in head.parameters()) == category + masks, kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head": "decoupled", "attention": "gated"},
            "expected attention to be null with head 'decoupled', whose masks are products",
        ),
        ({"head": "solov2", "masks": "dense"}, "expected masks to be 'chosen' with a head other than 'solo'"),
        ({"head": "solov3"}, "expected head to be 'solo' or 'decoupled' or .*, got 'solov3'"),
        ({"kernel_channels": 48}, r"expected kernel_channels to be a multiple of 32 \(GroupNorm\), got 48"),
        ({"deformable": True}, "expected deformable to be 'last' or 'towers' or 'all' or null, got True"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=f"build_solo: {message}"):
        build_solo(3, **settings)


def test_a_class_takes_the_settings_of_its_own_kinds():
    with pytest.raises(ValueError, match="SOLOHead: expected head to be solo, got 'solov2'"):
        SOLOHead(3, settings=HeadSettings(head="solov2"))
    assert SOLOv2Head(3, 32).kernel_output.out_channels == 256
    assert DecoupledHead(3, 32).attention is None


def sampled(image, y, x):
    """Bilinear, 0 outside."""
    total = torch.zeros(image.shape[0], dtype=image.dtype)
    for row in (int(y // 1), int(y // 1) + 1):
        for column in (int(x // 1), int(x // 1) + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_deformable_convolution():
    """In loops: the taps' places (y, x) come first, then their weights."""
    torch.manual_seed(0)
    layer = DeformConv(2, 3, stride=2).double()
    image = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(image), 0.5 * F.conv2d(image, layer.weight, stride=2, padding=1))
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    offsets = layer.conv_offset(image)[0].detach()
    found = layer(image)[0]
    assert found.shape == (3, 3, 2)
    for i in range(3):
        for j in range(2):
            total = torch.zeros(3, dtype=torch.float64)
            for tap in range(9):
                y = 2 * i - 1 + tap // 3 + float(offsets[2 * tap, i, j])
                x = 2 * j - 1 + tap % 3 + float(offsets[2 * tap + 1, i, j])
                weight = offsets[18 + tap, i, j].sigmoid()
                total += weight * layer.weight[:, :, tap // 3, tap % 3] @ sampled(image[0], y, x)
            torch.testing.assert_close(found[:, i, j], total)


def test_a_deformable_backbone():
    torch.manual_seed(0)
    model = build_solo(2, head="solov2_light", backbone="resnet50", deformable_backbone=True, freeze=3)
    bent = [name for name, module in model.backbone.named_modules() if isinstance(module, DeformConv)]
    assert len(bent) == 4 + 6 + 3
    assert all(name.endswith("conv2") for name in bent)
    assert not model.backbone.body.layer2[0].conv2.conv_offset.weight.requires_grad
    assert model.backbone.body.layer3[0].conv2.stride == 2
    with pytest.raises(ValueError, match="expected deformable to be False with a backbone other"):
        build_solo(2, backbone="resnet18", deformable_backbone=True)


def test_the_stride_of_bottlenecks_in_the_other_place():
    body = build_solo(2, backbone="resnet50", stride_in_1x1=True).backbone.body
    strides = [(block.conv1.stride, block.conv2.stride) for block in body.layer3[:2]]
    assert strides == [((2, 2), (1, 1)), ((1, 1), (1, 1))]
    assert body(torch.zeros(1, 3, 64, 64))["3"].shape == (1, 2048, 2, 2)
