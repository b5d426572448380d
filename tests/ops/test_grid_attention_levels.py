"""`grid_attention_levels` and `cell_logits`: products of chosen cells of several levels, in one launch."""

import pytest
import shim
import torch
from op_cases import (
    DTYPES,
    Called,
    as_good_as_pytorch,
    check_any_order,
    check_message,
    check_opcheck,
    check_rounded_once,
    gradients,
    numpy64,
    rounded_to_tf32,
    same_bits,
    tf32,
)

from solo_attn import cell_logits, grid_attention_levels
from solo_attn.backends import BACKENDS
from solo_attn.bench import plain
from solo_attn.ops import levels_in_one_launch

OP = "grid_attention"
# Channels, h and w of maps: more than one block of 128 columns, rows that 16 bytes divide or not, one pixel.
SIZES = [(17, 3, 43), (5, 5, 7), (16, 1, 1), (20, 4, 8)]
SIDES = (12, 3, 2, 4)
# Of two images, in any order and one twice; a level without any, one with more than a block's 32.
CELLS = [
    [[1, 0], [0, 3], [0, 3], [1, 1], [0, 2]],
    [],
    [[1, 0]],
    [[k // 32, (k + k // 32) % 4] for k in range(35)],
]
OUTPUTS = 4  # cells that have weights


def lists(runner):
    return [torch.tensor(x, dtype=torch.int64, device=runner.device).reshape(-1, 2) for x in CELLS]


def square(runner, dtype=None):
    """Grids, whose cells are all those of CELLS."""
    return [
        runner.randn(2, c, side, side, dtype=dtype, seed=c)
        for (c, _, _), side in zip(SIZES, SIDES, strict=True)
    ]


def outputs(runner, dtype=None):
    """Maps, weights and biases of each level."""
    maps = [runner.randn(2, *size, dtype=dtype, seed=size[0]) for size in SIZES]
    weights = [runner.randn(OUTPUTS, c, dtype=dtype, seed=c + 100) for c, _, _ in SIZES]
    return maps, weights, [runner.randn(OUTPUTS, dtype=dtype, seed=c + 200) for c, _, _ in SIZES]


def per_cell(maps, weights, biases, cells):
    """The same, cell by cell."""
    rows = [torch.einsum("c,chw->hw", weights[n], maps[b]) + biases[n] for b, n in cells.tolist()]
    return torch.stack(rows) if rows else maps.new_empty(0, *maps.shape[2:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(runner, dtype):
    runner.needs(dtype)
    grids, cells = square(runner, dtype), lists(runner)
    found = grid_attention_levels(grids, 0.7, cells, backend=runner.backend)
    for out, x, chosen in zip(found, grids, cells, strict=True):
        exact = plain.grid_attention(x.double(), 0.7, chosen)
        as_good_as_pytorch(out, plain.grid_attention(x, 0.7, chosen), numpy64(exact))
    assert same_bits(found[0], runner(grids[0], 0.7, cells[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits(runner, dtype):
    runner.needs(dtype)
    given, cells = outputs(runner, dtype), lists(runner)
    levels = list(zip(*given, cells, strict=True))
    same = [per_cell(*level) for level in levels]
    exact = [per_cell(*(x.double() for x in level[:3]), level[3]) for level in levels]
    found = cell_logits(*given, cells, backend=runner.backend)
    assert [x.shape for x in found] == [x.shape for x in same]
    out, same, exact = (torch.cat([x.flatten() for x in parts]) for parts in (found, same, exact))
    as_good_as_pytorch(out, same, numpy64(exact))


def test_more_levels_than_a_launch_takes(runner):
    grids, cells = square(runner) * 3, lists(runner) * 3
    found = grid_attention_levels(grids, 1.0, cells, backend=runner.backend)
    assert all(same_bits(one, other) for one, other in zip(found[:4], found[8:], strict=True))


def test_all_levels_are_one_call(runner):
    grids, given, cells = square(runner), outputs(runner), lists(runner)
    with Called() as called:
        grid_attention_levels(grids, 0.7, cells, backend=runner.backend)
        cell_logits(*given, cells, backend=runner.backend)
    one_each = ["grid_attention"] * len(cells)  # PyTorch makes the others
    assert called.names == (["grid_attention_levels"] * 2 if runner.takes_levels else one_each)
    grids[1].requires_grad_()
    given[2][1].requires_grad_()
    with Called() as called:
        grid_attention_levels(grids, 0.7, cells, backend=runner.backend)
        cell_logits(*given, cells, backend=runner.backend)
    assert called.names == one_each


def test_a_gpu_takes_all_levels_at_once():
    """The backend itself, which the shim stands for."""
    forms = {backend.name: backend.forms for backend in BACKENDS}
    assert "levels" in forms["cuda"]
    assert forms["cuda"] == shim.BACKEND.forms


def test_no_cells_at_all(runner):
    cells = [x[:0] for x in lists(runner)]
    grids, given = square(runner), outputs(runner)
    rows = grid_attention_levels(grids, 0.7, cells, backend=runner.backend)
    assert [x.shape for x in rows] == [(0, side, side) for side in SIDES]
    logits = cell_logits(*given, cells, backend=runner.backend)
    assert [x.shape for x in logits] == [(0, *size[1:]) for size in SIZES]


def test_layouts(runner):
    maps, weights, biases = outputs(runner)
    cells = lists(runner)
    expected = cell_logits(maps, weights, biases, cells, backend=runner.backend)
    strided = [
        [x.contiguous(memory_format=torch.channels_last) for x in maps],
        [x.T.contiguous().T for x in weights],
        [x.repeat_interleave(2)[::2] for x in biases],
        [x.T.contiguous().T for x in cells],
    ]
    for out, same in zip(cell_logits(*strided, backend=runner.backend), expected, strict=True):
        torch.testing.assert_close(out, same)


def test_a_gradient_where_one_is_needed(runner):
    runner.needs(torch.float64)
    maps, weights, biases = outputs(runner, torch.float64)
    level = maps[0], weights[0], biases[0]
    cells = lists(runner)[0]
    _, found = gradients(lambda *x: cell_logits(*([y] for y in x), [cells], backend=runner.backend)[0], level)
    _, expected = gradients(lambda *x: per_cell(*x, cells), level)
    for grad, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, exact)
    x = square(runner)[0]
    rows, (grad,) = gradients(
        lambda x: grid_attention_levels([x], 0.7, [cells], backend=runner.backend)[0], [x]
    )
    same, (same_grad,) = gradients(lambda x: runner(x, 0.7, cells), [x])
    assert same_bits(rows, same)
    assert same_bits(grad, same_grad)


def test_half_precision_is_rounded_once(runner):
    if not runner.takes_levels:
        pytest.skip("the product of each level is PyTorch's own")
    cells = lists(runner)[0]
    check_rounded_once(
        runner,
        lambda *level: cell_logits(*([x] for x in level), [cells], backend=runner.backend)[0],
        [of_levels[0] for of_levels in outputs(runner)],
    )


def test_in_the_dtype_of_autocast(runner):
    runner.needs(torch.bfloat16)
    given, cells = outputs(runner, torch.float32), lists(runner)
    with torch.autocast(runner.device, torch.bfloat16):
        found = cell_logits(*given, cells, backend=runner.backend)
        mixed = cell_logits([x.bfloat16() for x in given[0]], *given[1:], cells, backend=runner.backend)
    expected = cell_logits(
        *([x.bfloat16() for x in of_levels] for of_levels in given), cells, backend=runner.backend
    )
    for out, other, same in zip(found, mixed, expected, strict=True):
        assert same_bits(out, same)
        assert same_bits(other, same)


def test_the_order_of_lanes_and_blocks_changes_nothing(runner):
    if runner.backend != "shim":
        pytest.skip("it is the shim that has another order each time")
    given, cells = outputs(runner, torch.bfloat16), lists(runner)
    check_any_order(runner, lambda: cell_logits(*given, cells, backend=runner.backend))


def test_tf32_where_pytorch_may(runner):
    if runner.backend not in ("shim", "cuda"):
        pytest.skip("the switch is of a GPU")
    given, cells = outputs(runner, torch.float32), lists(runner)
    with tf32():
        found = cell_logits(*given, cells, backend=runner.backend)
    maps, weights, biases = given
    rounded = [[rounded_to_tf32(x) for x in of_levels] for of_levels in (maps, weights)]
    for out, *level in zip(found, *rounded, biases, cells, strict=True):
        torch.testing.assert_close(out, per_cell(*level), atol=1e-4, rtol=1e-5)


def test_an_infinite_map_stays_in_its_image(runner):
    maps, weights, biases = outputs(runner, torch.float32)
    maps[0][1] = torch.inf
    out = cell_logits(maps, weights, biases, lists(runner), backend=runner.backend)[0]
    assert out.isfinite().flatten(1).all(1).tolist() == [b != 1 for b, _ in CELLS[0]]


def test_a_cell_out_of_range_has_no_part(runner):
    if runner.backend != "shim":
        pytest.skip("an error: test_cells_out_of_range, and tests/gpu")
    given, cells = outputs(runner, torch.float32), lists(runner)
    expected = cell_logits(*given, cells, backend=runner.backend)
    assert shim.asserted() == ""
    cells[0][0, 0], cells[0][2, 1], cells[3][1, 1], cells[3][34, 0] = 3, OUTPUTS, -1, -1
    found = cell_logits(*given, cells, backend=runner.backend)
    assert shim.asserted() == "grid_attention: expected cells of (image < B, cell < S*S)"
    for level, bad in ((0, [0, 2]), (1, []), (2, []), (3, [1, 34])):
        good = [k for k in range(len(CELLS[level])) if k not in bad]
        assert found[level][bad].isnan().all()
        assert same_bits(found[level][good], expected[level][good])


@pytest.mark.parametrize("grad", [False, True], ids=["no gradient", "gradient"])
def test_a_cell_out_of_range_is_refused(runner, grad):
    if runner.device != "cpu" or (runner.backend == "shim" and not grad):
        pytest.skip("an assertion on the device: the test above, and tests/gpu")
    maps, weights, biases = (runner.randn(*shape) for shape in ((2, 2, 3, 3), (4, 2), (4,)))
    weights.requires_grad_(grad)
    for wrong in ([7, -1], [0, 4], [2, 0], [-1, 0], [1, -1]):
        cells = torch.tensor([[1, 3], wrong])
        with pytest.raises(ValueError, match=r"expected cells of \(image < 2, cell < 4\), got images"):
            cell_logits([maps], [weights], [biases], [cells], backend=runner.backend)


def test_a_backend_that_cannot_run_is_refused_where_a_gradient_is_needed_too():
    level = [torch.ones(1, 2, 3, 3)], [torch.ones(4, 2, requires_grad=True)], [torch.zeros(4)]
    with pytest.raises(RuntimeError, match=r"^grid_attention: backend 'cuda' cannot run: it needs CUDA"):
        cell_logits(*level, [torch.tensor([[0, 1]])], backend="cuda")


def test_opcheck(runner):
    if not runner.takes_levels:
        pytest.skip("its op of this form is the reference")
    op, few = runner.overload("_levels"), slice(1, 3)
    cells = lists(runner)[few]
    check_opcheck(op, *(x[few] for x in outputs(runner)), cells, 1.0)
    grids = square(runner)[few]
    check_opcheck(op, grids, [], [], cells, 0.7)
    with pytest.raises(RuntimeError, match="grid_attention_levels is not differentiable"):
        op([x.requires_grad_() for x in grids], [], [], cells, 0.7)[0].sum().backward()


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public functions: nothing is read out of bounds."""
    if not runner.takes_levels or runner.backend == "reference":
        pytest.skip("PyTorch refuses it")
    op, (maps, weights, biases), cells = runner.overload("_levels"), outputs(runner), lists(runner)

    def refuses(message, *args):
        with pytest.raises(
            RuntimeError, match=f"^(grid_attention|grid_attention_levels): expected {message}"
        ):
            op(*args, 1.0)

    refuses("as many cells", maps, weights, biases, cells[1:])
    refuses("as many cells", maps, weights, biases[1:], cells)
    refuses("maps of shape", [maps[0], maps[1].half(), *maps[2:]], weights, biases, cells)
    refuses("grid_features of shape", maps[1:], [], [], cells[1:])
    refuses("weights", maps, [weights[1], *weights[1:]], biases, cells)
    refuses("weights", maps, weights, [biases[0][1:], *biases[1:]], cells)
    refuses("weights", maps, [weights[0].half(), *weights[1:]], biases, cells)
    refuses("cells int64", maps, weights, biases, [cells[0].int(), *cells[1:]])


def test_messages(runner):
    maps, weights, biases = outputs(runner)
    cells, grids = lists(runner), square(runner)
    kind, device = maps[0].dtype, maps[0].device

    def refuses(message, error=ValueError, **changed):
        given = {"maps": maps, "weights": weights, "biases": biases, "cells": cells, **changed}
        run = lambda: cell_logits(**given, backend=runner.backend)  # noqa: E731
        check_message(run, error, f"cell_logits: expected {message}")

    refuses("maps of at least 1 level, got 0", maps=[], weights=[], biases=[], cells=[])
    refuses("weights of 4 levels as maps has, got 3", weights=weights[1:])
    refuses("cells of 4 levels as maps has, got 3", cells=cells[1:])
    refuses("maps to be a list of each level's tensor, got Tensor", TypeError, maps=maps[0])
    floats = "of a float dtype (float16, bfloat16, float32, float64), got torch.int32"
    refuses(f"maps {floats}", maps=[x.int() for x in maps])
    refuses("maps of shape [B, C, h, w], got [17, 3, 43] (3 dims)", maps=[maps[0][0], *maps[1:]])
    wanted = "weights of shape [N, C] with C = 17 as maps has, got [4, 16]"
    refuses(wanted, weights=[weights[0][:, 1:], *weights[1:]])
    wanted = "biases of shape [N] with N = 4 as weights has, got [3]"
    refuses(wanted, biases=[biases[0][1:], *biases[1:]])
    wanted = f"weights of maps's dtype {kind}, got torch.float16"
    refuses(wanted, weights=[weights[0].half(), *weights[1:]])
    refuses("cells int64 of shape [K, 2], got torch.int32 [5, 2]", cells=[cells[0].int(), *cells[1:]])
    refuses("cells int64 of shape [K, 2], got torch.int64 [5, 1]", cells=[cells[0][:, :1], *cells[1:]])
    refuses(f"cells on maps's device {device}, got meta", cells=[cells[0].to("meta"), *cells[1:]])

    def refuses_rows(message, grids=grids, scale=1.0, cells=cells):
        run = lambda: grid_attention_levels(grids, scale, cells, backend=runner.backend)  # noqa: E731
        check_message(run, ValueError, f"grid_attention_levels: expected grid_features {message}")

    refuses_rows("of shape [B, C, S, S], a square grid, got [2, 17, 3, 43]", maps)
    refuses_rows(f"of the first level's dtype {kind}, got torch.float16", [grids[0], grids[1].half()] * 2)
    refuses_rows(floats, [x.int() for x in grids])


def test_the_reference_is_no_launch():
    """It asks how many cells an image has."""
    x = torch.ones(1)
    with torch.no_grad():
        assert not levels_in_one_launch(x)
        assert not levels_in_one_launch(x.int())
