import math

import pytest
import torch
import torch.nn.functional as F
from dense_step import attention_map
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from solo_attn.models import SOLOHead
from solo_attn.models.heads import STRIDES, HeadResult
from solo_attn.models.layers import coordinates


def small_head(seed=0, **settings):
    """In float64, with output weights that are large enough to matter."""
    torch.manual_seed(seed)
    sizes = {"in_channels": 6, "head_channels": 32, "num_convs": 2, "num_grids": (5, 4, 3, 2, 2)}
    head = SOLOHead(3, **{**sizes, **settings}).double()
    for output in head.mask_outputs:
        nn.init.normal_(output.weight)
        nn.init.normal_(output.bias)
    return head


def level_input(head, level=0, size=(6, 8), seed=1):
    torch.manual_seed(seed)
    features = torch.randn(2, 6, *size, dtype=torch.float64)
    grid = torch.randn(2, 6, *[head.num_grids[level]] * 2, dtype=torch.float64)
    return features.requires_grad_(), grid.requires_grad_()


def result_of(level, features, grid):
    """What `forward` gives to `cell_masks`, of one level."""
    nothing = [None] * level
    return HeadResult((), (*nothing, features), (*nothing, grid))


def enlarge(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def every_cell(side, seed=0):
    """(image, cell) of two images, shuffled: the order of the rows is part of the promise."""
    torch.manual_seed(seed)
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(side * side))
    return cells[torch.randperm(len(cells))]


def pyramid_of(height, width, channels=256):
    with torch.device("meta"):
        sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64)]
        return [torch.empty(1, channels, *size) for size in sizes]


def test_effective_strides():
    levels = SOLOHead(1, head_channels=32, num_convs=1).levels(pyramid_of(672, 1344))
    assert [(672 // x.shape[2], 1344 // x.shape[3]) for x in levels] == [(s, s) for s in (8, 8, 16, 32, 32)]
    assert STRIDES == (8, 8, 16, 32, 32)


def test_levels_are_resized_bilinearly():
    p2, p6 = torch.rand(1, 2, 8, 12), torch.rand(1, 2, 1, 2)
    middle = [torch.rand(1, 2, 4 // s, 6 // s) for s in (1, 2)] + [torch.rand(1, 2, 2, 3)]
    levels = SOLOHead(1, in_channels=2, head_channels=32).levels([p2, *middle, p6])
    # Halving with align_corners=False takes the mean of each 2 x 2 block.
    torch.testing.assert_close(levels[0], F.avg_pool2d(p2, 2))
    assert all(a is b for a, b in zip(levels[1:4], middle, strict=True))
    left, right = p6[0, :, 0].T
    torch.testing.assert_close(levels[4][0, :, 1], torch.stack([left, (left + right) / 2, right], dim=1))


def test_grids_of_table_2():
    head = SOLOHead(80)
    assert head.num_grids == (40, 36, 24, 16, 12)
    assert sum(side**2 for side in head.num_grids) == 3872
    with torch.device("meta"):
        head = SOLOHead(80)
        logits, features, grids, nothing, *_ = head(pyramid_of(672, 1344))
        masks = head.dense_mask_logits(2, features[2], grids[2])
    assert nothing is None
    assert [tuple(x.shape) for x in grids] == [(1, 256, s, s) for s in head.num_grids]
    assert [tuple(x.shape) for x in logits] == [(1, 80, s, s) for s in head.num_grids]
    assert masks.shape == (1, 576, 84, 168)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"attention": None}, 0),
        ({"attention": "literal", "attention_vectors": "features"}, 0),
        ({"attention_vectors": "features"}, 5 + 5),  # a gain and an offset for each level
        ({"attention_vectors": "projection"}, 10 + 32 * 256 + 32),
        ({"attention_vectors": "position"}, 10 + 32 * (256 + 20) + 32),
    ],
)
def test_number_of_parameters(settings, more):
    head = SOLOHead(80, **settings)
    assert sum(p.numel() for p in head.parameters()) == 9_448_816 + more


def test_towers_are_shared_and_mask_outputs_are_not():
    head = small_head()
    pyramid = [torch.randn(1, 6, 4, 6, dtype=torch.float64) for _ in range(5)]

    def outputs():
        result = head(pyramid)
        levels = enumerate(zip(result.features, result.grids, strict=True))
        return result.category_logits, [head.dense_mask_logits(k, x, grid) for k, (x, grid) in levels]

    def changed(module):
        categories, masks = outputs()
        with torch.no_grad():
            module.weight.mul_(1.5)
            moved = outputs()
            module.weight.div_(1.5)
        return [
            [not torch.equal(a, b) for a, b in zip(*pair, strict=True)]
            for pair in ((categories, moved[0]), (masks, moved[1]))
        ]

    every, none = [True] * 5, [False] * 5
    assert changed(head.category_tower[1]) == [every, none]
    assert changed(head.category_output) == [every, none]
    assert changed(head.mask_tower[4]) == [none, every]
    assert changed(head.mask_outputs[1]) == [none, [False, True, False, False, False]]


def test_towers_are_seven_groups_without_bias():
    head = SOLOHead(80)
    for tower, first in ((head.category_tower, 256), (head.mask_tower, 258)):
        for module, kind in zip(tower, [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 7, strict=True):
            assert isinstance(module, kind)
        convolutions, norms = list(tower[::3]), list(tower[1::3])
        assert [c.in_channels for c in convolutions] == [first] + [256] * 6
        assert all(c.bias is None and c.kernel_size == (3, 3) and c.padding == (1, 1) for c in convolutions)
        assert all(n.num_groups == 32 and n.num_channels == 256 for n in norms)


@pytest.mark.parametrize("training", [True, False])
def test_one_image_of_one_pixel_is_what_it_is_among_others(training):
    """PyTorch's own layer refuses groups of one value, but only of a batch of one."""
    head = small_head().train(training)
    features, _ = level_input(head, size=(1, 1))
    both = head.mask_features(features)
    torch.testing.assert_close(head.mask_features(features[:1]), both[:1])
    assert torch.isfinite(both).all()
    upstream = torch.randn_like(both)
    wanted = [features, *head.mask_tower.parameters()]
    for one, two in zip(
        torch.autograd.grad(head.mask_features(features[:1]), wanted, upstream[:1]),
        torch.autograd.grad(both, wanted, upstream * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_grids_of_one_cell_need_groups_of_several_channels():
    message = (
        r"SOLOHead: expected num_grids to be at least 2 with head_channels 32 \(GroupNorm makes the same of "
        r"any single value\), got \[4, 3, 2, 1, 1\]"
    )
    with pytest.raises(ValueError, match=message):
        SOLOHead(3, head_channels=32, num_grids=(4, 3, 2, 1, 1))
    head = small_head(head_channels=64, num_grids=(4, 3, 2, 1, 1))
    pyramid = [torch.randn(2, 6, 4, 6, dtype=torch.float64) for _ in range(5)]
    for image in range(2):
        alone = head([x[image : image + 1] for x in pyramid])
        assert alone.category_logits[3].shape == (1, 3, 1, 1)
    first, second = head(pyramid).category_logits[3]
    assert not torch.equal(first, second)


def test_initial_weights():
    torch.manual_seed(0)
    head = SOLOHead(80, attention_vectors="features")
    for output in [head.category_output, *head.mask_outputs]:
        assert torch.equal(output.bias, torch.full_like(output.bias, -4.595))
    assert math.isclose(1 / (1 + math.exp(4.595)), 0.01, rel_tol=1e-3)
    weights = [m.weight for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) == 7 + 7 + 1 + 5
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert abs(weight.mean().item()) < 5 * 0.01 / weight.numel() ** 0.5


def test_coordinates_of_equation_1():
    x, y = coordinates(torch.empty(1, 7, 2, 4), "paper")[0]
    assert x.tolist() == [[-1.0, -0.5, 0.0, 0.5]] * 2
    assert y.tolist() == [[-1.0] * 4, [0.0] * 4]


def test_coordinates_with_inclusive_ends():
    x, y = coordinates(torch.empty(1, 7, 3, 5), "inclusive")[0]
    assert x.tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3
    assert y.tolist() == [[-1.0] * 5, [0.0] * 5, [1.0] * 5]


@pytest.mark.parametrize("coords", ["paper", "inclusive", None])
def test_the_mask_tower_sees_features_then_x_then_y(coords):
    head = small_head(coords=coords)
    features, grid = level_input(head)
    seen = []
    head.mask_tower.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    head.dense_mask_logits(0, features, grid)
    expected = features if coords is None else torch.cat([features, coordinates(features, coords)], dim=1)
    assert torch.equal(seen[0], expected)


FORMS = [
    pytest.param({"attention": form, "attention_vectors": vectors}, id=f"{form}-{vectors}")
    for form in ("gated", "cosine", "rsqrt", "literal")
    for vectors in ("features", "projection", "position")
] + [pytest.param({"attention": None}, id="none")]


def learned(head):
    """Gains and offsets that differ between levels, and are not what they begin with."""
    branch = head.attention
    if branch is not None and branch.form == "gated":
        nn.init.normal_(branch.log_gain)
        nn.init.normal_(branch.offset)
    return head


def dense_by_hand(head, level, features, grid):
    """Figure 2 with nothing but PyTorch: convolve the enlarged map, add the enlarged dot products."""
    height, width = features.shape[2:]
    maps = head.mask_tower(torch.cat([features, coordinates(features, "paper")], dim=1))
    logits = head.mask_outputs[level](enlarge(maps, (2 * height, 2 * width)))
    if head.attention is None:
        return logits
    return logits + enlarge(attention_map(head.attention, level, grid), (2 * height, 2 * width))


def with_gradients(head, inputs, logits):
    """Logits and what flows back from an upstream gradient without symmetry."""
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=logits.dtype)
    wanted = [*inputs, *head.mask_parameters()]
    grads = torch.autograd.grad(logits, wanted, upstream, allow_unused=True)
    return [logits, *grads]


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("level", [0, 2])
def test_dense_logits_and_cells_are_figure_2(level, settings):
    """The 1x1 convolution and the enlarging commute, and cells may be made alone."""
    head = learned(small_head(**settings))
    inputs = level_input(head, level)
    side = head.num_grids[level]
    expected = with_gradients(head, inputs, dense_by_hand(head, level, *inputs))

    dense = head.dense_mask_logits(level, *inputs)
    assert dense.shape == (2, side * side, 12, 16)

    cells = every_cell(side)
    coarse, attention, size = head.cell_masks(result_of(level, *inputs), level, cells)
    assert coarse.shape == (2 * side * side, 6, 8)
    assert size == (12, 16)
    rows = enlarge(coarse[None], size)[0]
    if head.attention is None:
        assert attention is None
    else:
        assert attention.shape == (2 * side * side, side, side)
        rows = rows + enlarge(attention[None], size)[0]
    back = (cells[:, 0] * side * side + cells[:, 1]).argsort()
    for logits in (dense, rows[back].unflatten(0, (2, side * side))):
        for a, b in zip(with_gradients(head, inputs, logits), expected, strict=True):
            if a is None or b is None:  # the grid without attention, and the other levels' outputs
                assert a is b
            else:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ["gated", None])
def test_dense_masks_are_the_chosen_cells(attention):
    """What losses and inference take of either; the dense ones go through one fused op."""
    head = learned(small_head(attention=attention))
    dense = small_head(attention=attention, masks="dense")
    dense.load_state_dict(head.state_dict())
    pyramid = [
        torch.randn(2, 6, *s, dtype=torch.float64) for s in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
    ]
    every, chosen = dense(pyramid), head(pyramid)
    assert [x.shape[1:] for x in every.mask_logits] == [
        (side**2, 2 * x.shape[2], 2 * x.shape[3])
        for side, x in zip(head.num_grids, chosen.features, strict=True)
    ]
    for level, side in enumerate(head.num_grids):
        cells = every_cell(side)
        drawn = dense.cell_masks(every, level, cells)
        assert drawn.attention is None
        coarse, attention_rows, size = head.cell_masks(chosen, level, cells)
        assert drawn.size == size == tuple(drawn.coarse_logits.shape[1:])
        rows = enlarge(coarse[None], size)[0]
        if attention_rows is not None:
            rows = rows + enlarge(attention_rows[None], size)[0]
        torch.testing.assert_close(drawn.coarse_logits, rows)


def test_the_gate_is_a_gain_and_an_offset():
    """Of a cell with itself, whose cosine is 1, it is g (1 - b); of orthogonal cells -g b."""
    head = small_head(
        attention_vectors="features", attention_gain=3.0, attention_offset=0.25, num_grids=(2, 2, 2, 2, 2)
    )
    grid = torch.zeros(1, 6, 2, 2, dtype=torch.float64)
    grid[0, :4] = 7 * torch.eye(4, dtype=torch.float64).unflatten(1, (2, 2))  # four orthogonal cells
    rows = head.attention(1, grid, torch.tensor([[0, 0], [0, 3]])) + head.attention.bias(1)
    expected = torch.full((2, 4), -3.0 * 0.25, dtype=torch.float64)
    expected[0, 0] = expected[1, 3] = 3.0 * 0.75
    torch.testing.assert_close(rows.flatten(1), expected)


def test_the_head_is_a_module_that_tools_can_take():
    """Hooks see what it returns, FLOPs are counted, and torch.compile needs no break in its graph."""
    head = small_head(attention=None).float()
    pyramid = [torch.randn(1, 6, *s) for s in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]
    seen = []
    head.register_forward_hook(lambda module, args, output: seen.append(output))
    with FlopCounterMode(display=False) as counter:
        expected = head(pyramid)
    assert isinstance(seen[0], HeadResult)
    cells = sum(side**2 for side in head.num_grids)
    towers = 2 * 9 * cells * (6 * 32 + 32 * 32 + 32 * 3)
    assert counter.get_total_flops() == towers
    found = torch.compile(head, fullgraph=True, backend="aot_eager")(pyramid)
    for a, b in zip(found.category_logits, expected.category_logits, strict=True):
        torch.testing.assert_close(a, b)


def test_cells_of_some_images_in_any_order():
    head = small_head()
    torch.manual_seed(2)
    features = torch.randn(4, 6, 5, 7, dtype=torch.float64)
    grid = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    images = []
    head.mask_tower.register_forward_pre_hook(lambda module, args: images.append(len(args[0])))
    cells = torch.tensor([[3, 24], [1, 0], [3, 2], [1, 0], [1, 13]])
    coarse, attention, size = head.cell_masks(result_of(0, features, grid), 0, cells)
    assert images == [2]  # images 0 and 2 have no cell
    dense = head.dense_mask_logits(0, features, grid)
    rows = enlarge(coarse[None], size)[0] + enlarge(attention[None], size)[0]
    torch.testing.assert_close(rows, dense[cells[:, 0], cells[:, 1]])


@pytest.mark.parametrize("coords", ["paper", "inclusive", None])
def test_attention_is_of_features_before_coordinates(coords):
    head = small_head(coords=coords, attention="literal", attention_vectors="features")
    pyramid = [
        torch.randn(1, 6, *s, dtype=torch.float64) for s in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
    ]
    # The cells are what the category branch starts from.
    seen = []
    head.category_tower.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    result = head(pyramid)
    vectors = enlarge(pyramid[1], (4, 4))[0].flatten(1)  # [6, 16]: no coordinates in it
    assert torch.equal(seen[1][0].flatten(1), vectors)
    cells = torch.tensor([[0, 0], [0, 6], [0, 15]])
    attention = head.cell_masks(result, 1, cells).attention
    torch.testing.assert_close(attention, (vectors.T @ vectors)[cells[:, 1]].unflatten(1, (4, 4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "SOLOHead: expected num_classes to be an integer >= 1, got 0"),
        ({"num_classes": 3.0}, "SOLOHead: expected num_classes to be an integer >= 1, got 3.0"),
        ({"in_channels": "6"}, "SOLOHead: expected in_channels to be an integer >= 1, got '6'"),
        ({"head_channels": 64.0}, "SOLOHead: expected head_channels to be an integer >= 1, got 64.0"),
        (
            {"head_channels": 48},
            r"SOLOHead: expected head_channels to be a multiple of 32 \(GroupNorm\), got 48",
        ),
        ({"num_convs": 0}, "SOLOHead: expected num_convs to be an integer >= 1, got 0"),
        ({"num_grids": (4, 4)}, r"SOLOHead: expected num_grids to be 5 integers >= 1, got \(4, 4\)"),
        ({"num_grids": 40}, "SOLOHead: expected num_grids to be 5 integers >= 1, got 40"),
        ({"num_grids": (4, 4, 4, 4, 0)}, "SOLOHead: expected num_grids to be 5 integers >= 1, got"),
        ({"coords": "polar"}, "SOLOHead: expected coords to be 'paper' or 'inclusive' or null, got 'polar'"),
        ({"attention": True}, "SOLOHead: expected attention to be 'gated' or .* or null, got True"),
        ({"attention_gain": 0}, "SOLOHead: expected attention_gain to be a finite number > 0, got 0"),
        (
            {"attention_gain": math.nan},
            "SOLOHead: expected attention_gain to be a finite number > 0, got nan",
        ),
        ({"attention_offset": True}, "SOLOHead: expected attention_offset to be a finite number, got True"),
        ({"attention_scale": 1}, "SOLOHead: unknown key attention_scale; did you mean attention_"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        SOLOHead(**{"num_classes": 3, **settings})
