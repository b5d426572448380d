from functools import partial

import op_oracles as naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import (
    COMPILERS,
    DTYPES,
    as_good_as_pytorch,
    check_compile,
    check_expanded,
    check_gradcheck,
    check_layouts,
    check_message,
    check_opcheck,
    check_repeatable,
    check_rounded_once,
    check_rule,
    close,
    few,
    gradients,
    numpy64,
)

from solo_attn.bench import plain

OP = "grid_attention"
CELLS = [[1, 4], [0, 8], [1, 0], [1, 4], [0, 3]]  # unsorted, and one cell twice


def cells_of(runner, cells=CELLS):
    return torch.tensor(cells, dtype=torch.int64, device=runner.device).reshape(-1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chosen", [False, True])
def test_rule(runner, dtype, chosen):
    runner.needs(dtype)
    x = runner.randn(2, 37, 3, 3, dtype=dtype)
    cells = cells_of(runner) if chosen else None
    exact = naive.attention(numpy64(x), 0.7)
    if chosen:
        exact = exact[[b for b, _ in CELLS], [n for _, n in CELLS]]
    check_rule(lambda x: runner(x, 0.7, cells), lambda x: plain.grid_attention(x, 0.7, cells), [x], exact)


@few(max_examples=15)
@given(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5), st.integers(0, 9))
def test_any_size(runner, batch, channels, side, seed):
    x = runner.randn(batch, channels, side, side, seed=seed)
    exact = naive.attention(numpy64(x), 1.0)
    out, (grad,) = gradients(runner, [x])
    close(out, exact)
    close(grad, numpy64(gradients(plain.grid_attention, [x.double()])[1][0]) if x.numel() else numpy64(x))

    chosen = [(b, n) for b in range(batch) for n in range(side * side) if (b + n + seed) % 3]
    cells = cells_of(runner, chosen)
    out, (grad,) = gradients(lambda x: runner(x, 1.0, cells), [x])
    close(out, exact[[b for b, _ in chosen], [n for _, n in chosen]])
    wide = x.double()
    same = partial(plain.grid_attention, cells=cells)
    close(grad, numpy64(gradients(same, [wide])[1][0] if x.numel() else x))


@pytest.mark.parametrize(
    "side",
    [1, 7, 13, pytest.param(40, marks=pytest.mark.not_interpreted("1,600 x 1,600 take half a minute"))],
)
def test_the_sides_of_the_paper_and_odd_ones(runner, side):
    if runner.backend == "shim" and side == 40:
        side = 20  # 1,600 x 1,600 take a minute, and are no other blocks
    x = runner.randn(1, 33, side, side, dtype=torch.float32)
    out = runner(x, 33**-0.5)
    exact = numpy64(plain.grid_attention(x.double(), 33**-0.5))
    as_good_as_pytorch(out, plain.grid_attention(x, 33**-0.5), exact)
    picked = cells_of(runner, [[0, side * side - 1], [0, side // 2]])
    as_good_as_pytorch(runner(x, 33**-0.5, picked), out[0, picked[:, 1]], exact[0][picked[:, 1].tolist()])


def test_no_cell(runner):
    x = runner.randn(2, 5, 3, 3)
    out, (grad,) = gradients(lambda x: runner(x, 1.0, cells_of(runner, [])), [x])
    assert out.shape == (0, 3, 3)
    assert torch.equal(grad, torch.zeros_like(x))


def test_symmetric_to_the_bit(runner):
    """Spec 4.5: half of the tiles are enough."""
    rows = runner(runner.randn(2, 33, 5, 5, dtype=torch.float32)).flatten(2)
    assert torch.equal(rows, rows.mT)


def test_gradient_of_an_upstream_without_symmetry(runner):
    """Spec 4.5: dV = scale * V (dG + dG^T), in loops."""
    x = runner.randn(1, 4, 2, 2)
    upstream = runner.randn(1, 4, 2, 2, seed=3)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(runner(leaf, 0.5), leaf, upstream)
    vectors, above = numpy64(x)[0].reshape(4, 4), numpy64(upstream)[0].reshape(4, 4)
    exact = naive.np.zeros((4, 4))
    for n in range(4):
        for m in range(4):
            exact[:, n] += 0.5 * vectors[:, m] * above[n, m]
            exact[:, m] += 0.5 * vectors[:, n] * above[n, m]
    close(grad, exact.reshape(1, 4, 2, 2))


def test_half_precision_sums_in_float32(runner):
    """4,096 terms of 1: a sum in half precision stops at 256 (bfloat16) or 2,048 (float16)."""
    for dtype in (torch.bfloat16, torch.float16):
        if runner.refuses(dtype) is None:
            out = runner(torch.ones(1, 4096, 2, 2, dtype=dtype, device=runner.device))
            assert (out == 4096).all()
    check_rounded_once(runner, lambda x: runner(x, 0.7), [runner.randn(2, 64, 5, 5)])
    cells = cells_of(runner)
    check_rounded_once(runner, lambda x: runner(x, 0.7, cells), [runner.randn(2, 64, 5, 5)])


def test_scaled_before_it_is_rounded(runner):
    """The dot product alone, 100,000, is beyond float16."""
    runner.needs(torch.float16)
    x = torch.full((1, 1000, 2, 2), 10.0, dtype=torch.float16, device=runner.device)
    assert (runner(x, 0.01) == 1000).all()
    assert (runner(x, 0.01, cells_of(runner, [[0, 3]])) == 1000).all()


def test_autocast_changes_nothing(runner):
    """The dtype of the result is that of the input; autocast does not reach the sums."""
    x = runner.randn(2, 33, 5, 5, dtype=torch.float32)
    expected, (expected_grad,) = gradients(runner, [x])
    with torch.autocast(runner.device, torch.bfloat16):
        out, (grad,) = gradients(runner, [x])
    assert torch.equal(out, expected)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("chosen", [False, True])
def test_gradcheck(runner, chosen):
    runner.needs(torch.float64)
    cells = cells_of(runner) if chosen else None
    fast = runner.backend == "shim"
    check_gradcheck(lambda x: runner(x, 0.7, cells), [runner.randn(2, 4, 3, 3)], fast)


@pytest.mark.parametrize("chosen", [False, True])
def test_opcheck(runner, chosen):
    x = runner.randn(2, 4, 3, 3)
    cells = cells_of(runner) if chosen else None
    grad = runner.randn(*((5,) if chosen else (2, 9)), 3, 3)
    check_opcheck(runner.overload(), x.clone().requires_grad_(), 0.7, cells)
    check_opcheck(runner.overload("_bwd"), grad, x, 0.7, cells)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compile(runner, compiler):
    first, second = (runner.randn(2, 5, side, side, dtype=torch.float32) for side in (3, 4))
    cells = cells_of(runner)
    check_compile(lambda x: runner.raw(x, 0.7, cells), [first], compiler)
    if compiler != "inductor":
        check_compile(lambda x: runner.raw(x, 0.7), [first], compiler, [second])


@pytest.mark.parametrize("chosen", [False, True])
def test_layouts(runner, chosen):
    cells = cells_of(runner) if chosen else None
    check_layouts(lambda x: runner(x, 0.7, cells), [runner.randn(2, 5, 3, 3, dtype=torch.float32)])
    check_expanded(lambda x: runner(x, 0.7, cells), [runner.randn(1, 5, 3, 3)], 2)


def test_cells_with_strides(runner):
    x = runner.randn(2, 5, 3, 3)
    cells = cells_of(runner)
    assert torch.equal(runner(x, 1.0, cells.T.contiguous().T), runner(x, 1.0, cells))


def test_repeatable(runner):
    x = runner.randn(2, 33, 7, 7, dtype=torch.float32)
    check_repeatable(runner, lambda x: runner(x), [x])
    check_repeatable(runner, lambda x: runner(x, 1.0, cells_of(runner)), [x])


def test_no_second_derivative(runner):
    x = runner.randn(1, 3, 2, 2).requires_grad_()
    (grad,) = torch.autograd.grad(runner(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="grid_attention has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("cell", [[2, 0], [-1, 0], [0, 9], [0, -1], [1 << 40, 0]])
def test_cells_out_of_range(runner, cell):
    cells = cells_of(runner, [[0, 0], cell])
    if runner.backend == "shim":  # CUDA tensors never come that far, and nothing is read if they do
        out = runner(runner.randn(2, 4, 3, 3), 1.0, cells)
        assert out.isnan().flatten(1).all(1).tolist() == [False, True]
        return
    if runner.device == "cuda" and runner.backend != "reference":
        pytest.skip("the device says so, and its process dies of it: see tests/gpu")
    images, numbers = sorted([0, cell[0]]), sorted([0, cell[1]])
    check_message(
        lambda: runner.raw(runner.randn(2, 4, 3, 3), 1.0, cells),
        ValueError,
        "grid_attention: expected cells of (image < 2, cell < 9), "
        f"got images {images[0]}..{images[1]} and cells {numbers[0]}..{numbers[1]}",
    )


def check_refusals(x, op, back):
    """What compiled ops say for themselves to features [2, 4, 3, 3] and what does not fit to them."""
    message = "grid_attention: expected grid_features of shape [B, C, S, S], got [2, 4, 3] (3 dims)"
    check_message(lambda: op(x[..., 0], 1.0, None), RuntimeError, message)
    message = f"grid_attention: expected cells int64 of shape [K, 2] on {x.device}, got "
    for bad, said in (
        (x.new_zeros(3, 3, dtype=torch.int64), "int64 [3, 3] (2 dims)"),
        (x.new_zeros(3, 2, dtype=torch.int32), "int32 [3, 2] (2 dims)"),
    ):
        wanted = f"{message}{said} on {x.device}"
        check_message(lambda bad=bad: op(x, 1.0, bad), RuntimeError, wanted)
    kind = str(x.dtype).removeprefix("torch.")
    message = (
        "grid_attention_bwd: expected grad of the shape, dtype and device that grid_attention returns for "
    )
    message += f"grid_features {kind} [2, 4, 3, 3] (4 dims) on {x.device}, got "
    for grad, said in (
        (x.new_zeros(2, 9, 3, 2), f"{kind} [2, 9, 3, 2] (4 dims)"),
        (x.new_zeros(1, 9, 3, 3), f"{kind} [1, 9, 3, 3] (4 dims)"),
        (x.new_zeros(9, 3, 3), f"{kind} [9, 3, 3] (3 dims)"),
        (x.new_zeros(2, 9, 3, 3).half(), "float16 [2, 9, 3, 3] (4 dims)"),
    ):
        wanted = f"{message}{said} on {x.device}"
        check_message(lambda grad=grad: back(grad, x, 1.0, None), RuntimeError, wanted)


def test_messages(runner):
    x = runner.randn(2, 4, 3, 3)

    def refuses(message, *args, error=ValueError):
        check_message(lambda: runner.raw(*args), error, f"grid_attention: expected {message}")

    refuses("grid_features of shape [B, C, S, S], got [4, 3, 3] (3 dims)", x[0])
    refuses("grid_features of shape [B, C, S, S], a square grid, got [2, 4, 3, 2]", x[..., :2])
    floats = "of a float dtype (float16, bfloat16, float32, float64)"
    refuses(f"grid_features {floats}, got torch.int64", x.long())
    refuses(f"grid_features {floats}, got torch.complex128", x.to(torch.complex128))
    refuses("grid_features to be a tensor of shape [B, C, S, S], got list", [1.0], error=TypeError)
    refuses("cells to be a tensor of shape [K, 2], got list", x, 1.0, CELLS, error=TypeError)
    refuses("cells of shape [K, 2], got [5] (1 dims)", x, 1.0, cells_of(runner)[:, 0])
    refuses("cells int64 of shape [K, 2], got torch.int64 [5, 1]", x, 1.0, cells_of(runner)[:, :1])
    refuses("cells int64 of shape [K, 2], got torch.int32 [5, 2]", x, 1.0, cells_of(runner).int())
    refuses(f"cells on grid_features's device {x.device}, got meta", x, 1.0, cells_of(runner).to("meta"))
