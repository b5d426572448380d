"""What the CUDA kernels promise beyond the tests that all backends share: blocks, orders, lists of cells."""

import pytest
import shim
import torch
from op_cases import (
    as_good_as_pytorch,
    check_any_order,
    check_opcheck,
    check_tf32,
    close,
    gradients,
    numpy64,
    rounded_to_tf32,
    same_bits,
    tf32,
)
from test_grid_attention import check_refusals

from solo_attn.bench import plain
from solo_attn.reference.grid_attention import grid_attention_bwd

OP = "grid_attention"
BACKEND = "cuda" if torch.cuda.is_available() else "shim"
HALVES = (torch.float16, torch.bfloat16)


def some_cells(runner, count, batch, cells):
    generator = torch.Generator().manual_seed(count)
    pairs = [torch.randint(n, (count,), generator=generator) for n in (batch, cells)]
    return torch.stack(pairs, 1).to(runner.device)


# Tiles of 64 x 64, 128 x 64, 32 x 128 and 64 x 32; channels by 16 or 32; rows that 16 bytes divide, or not.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "channels", "side"), [(1, 32, 8), (2, 33, 9), (1, 65, 12)])
@pytest.mark.parametrize("chosen", [None, 33])
def test_sizes_around_tiles(runner, dtype, batch, channels, side, chosen):
    x = runner.randn(batch, channels, side, side, dtype=dtype)
    cells = None if chosen is None else some_cells(runner, chosen, batch, side * side)
    out, (grad,) = gradients(lambda x: runner(x, 0.3, cells), [x])
    same, (same_grad,) = gradients(lambda x: plain.grid_attention(x, 0.3, cells), [x])
    exact, (exact_grad,) = gradients(lambda x: plain.grid_attention(x, 0.3, cells), [x.double()])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grad, same_grad, numpy64(exact_grad), "gradient")
    if cells is None:
        rows = out.flatten(2)
        assert torch.equal(rows, rows.mT)


@pytest.mark.parametrize("chosen", [None, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_order_of_lanes_and_blocks_changes_nothing(runner, chosen, dtype):
    x = runner.randn(2, 35, 9, 9, dtype=dtype)
    cells = None if chosen is None else some_cells(runner, chosen, 2, 81)
    check_any_order(runner, lambda: gradients(lambda x: runner(x, 0.3, cells), [x]))


def test_images_in_one_block_keep_apart(runner):
    """An infinite feature of one image is in no row of another, nor in its gradient."""
    x = runner.randn(3, 5, 3, 3, dtype=torch.float32)
    x[1, 2] = torch.inf
    cells = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 1], [1, 8]], device=runner.device)
    out, (grad,) = gradients(lambda x: runner(x, 1.0, cells), [x])
    assert out.isfinite().flatten(1).all(1).tolist() == [True, False, True, True, False]
    assert grad.isfinite().flatten(1).all(1).tolist() == [True, False, True]


def test_cells_out_of_range_have_no_part(runner):
    """The kernel asserts that there are none, and reads nothing there all the same."""
    if runner.device == "cuda":
        pytest.skip("the device says so, and its process dies of it: see tests/gpu")
    x = runner.randn(2, 4, 3, 3, dtype=torch.float32)
    far = 1 << 40
    listed = [[0, 0], [2, 0], [1, 4], [-1, 0], [0, 9], [0, -1], [far, 0], [1, -far], [1, 8]]
    cells = torch.tensor(listed, device=runner.device)
    inside = [k for k, (b, n) in enumerate(listed) if 0 <= b < 2 and 0 <= n < 9]
    shim.asserted()  # what earlier tests left
    out = runner(x, 0.7, cells)
    assert shim.asserted() == "grid_attention: expected cells of (image < B, cell < S*S)"
    assert same_bits(out[inside], runner(x, 0.7, cells[inside]))
    assert shim.asserted() == ""
    outside = [k for k in range(len(listed)) if k not in inside]
    assert out[outside].isnan().all()
    upstream = runner.randn(*out.shape, dtype=torch.float32, seed=7)
    back = runner.overload("_bwd")
    assert same_bits(
        back(upstream, x, 0.7, cells), back(upstream[inside].contiguous(), x, 0.7, cells[inside])
    )


# Channels by 16, cells by 32, tiles of 64 x 64, 128 x 64, 32 x 128 and 64 x 32.
@pytest.mark.parametrize(("batch", "channels", "side"), [(1, 32, 8), (2, 33, 9), (1, 65, 12)])
@pytest.mark.parametrize("chosen", [None, 33])
def test_tf32_where_pytorch_may(runner, batch, channels, side, chosen):
    x = runner.randn(batch, channels, side, side, dtype=torch.float32)
    cells = None if chosen is None else some_cells(runner, chosen, batch, side * side)
    check_tf32(
        lambda x: runner(x, 0.3, cells),
        lambda x: plain.grid_attention(x, 0.3, cells),
        [x],
        [rounded_to_tf32(x)],
    )
    if cells is None:
        with tf32():
            rows = runner(x).flatten(2)
        assert torch.equal(rows, rows.mT)


def test_sums_of_exact_float32_do_not_drift(runner):
    """Tensor cores cut off where float32 rounds: of 2,048 products that are all positive it would show."""
    x = runner.randn(1, 2048, 3, 3, dtype=torch.float32).abs()
    out, (grad,) = gradients(lambda x: runner(x, 1.0), [x])
    same, (same_grad,) = gradients(lambda x: plain.grid_attention(x, 1.0), [x])
    exact, (exact_grad,) = gradients(lambda x: plain.grid_attention(x, 1.0), [x.double()])
    as_good_as_pytorch(out, same, numpy64(exact))
    as_good_as_pytorch(grad, same_grad, numpy64(exact_grad), "gradient")


@pytest.mark.parametrize("chosen", [None, 9])
def test_gradients_as_tf32_are_of_rounded_factors(runner, chosen):
    """Each once: of dG + dG^T it is the sum."""
    x = runner.randn(2, 40, 6, 6, dtype=torch.float32)
    cells = None if chosen is None else some_cells(runner, chosen, 2, 36)
    upstream = runner.randn(*runner(x, 1.0, cells).shape, dtype=torch.float32, seed=3)
    rows = upstream.flatten(2 if cells is None else 1)
    factor = rounded_to_tf32(rows + rows.mT) / 2 if cells is None else rounded_to_tf32(rows)
    args = factor.view(upstream.shape), rounded_to_tf32(x)
    expected = grid_attention_bwd(*(a.double() for a in args), 0.7, cells)
    close(runner.overload("_bwd")(upstream, x, 0.7, cells, True), numpy64(expected))


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("chosen", [None, 9])
def test_tf32_is_for_float32_alone(runner, dtype, chosen):
    x = runner.randn(2, 5, 4, 4, dtype=dtype)
    cells = None if chosen is None else some_cells(runner, chosen, 2, 16)
    before = gradients(lambda x: runner(x, 0.3, cells), [x])
    with tf32():
        out, grads = gradients(lambda x: runner(x, 0.3, cells), [x])
    assert same_bits(out, before[0])
    assert same_bits(grads[0], before[1][0])


def test_the_backward_pass_rounds_as_the_forward_did(runner):
    x = runner.randn(1, 8, 4, 4, dtype=torch.float32).requires_grad_()
    upstream = runner.randn(1, 16, 4, 4, dtype=torch.float32, seed=3)
    for given in (True, False):
        with tf32(given):
            out = runner(x, 0.3)
        with tf32(not given):
            (grad,) = torch.autograd.grad(out, x, upstream)
        assert same_bits(grad, runner.overload("_bwd")(upstream, x.detach(), 0.3, None, given))


def test_torch_compile_follows_the_switch(runner):
    x = runner.randn(1, 8, 4, 4, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: runner.raw(x * 2, 0.3), fullgraph=True, backend="aot_eager")
    results = []
    for on in (False, True, False):
        with tf32(on):
            results.append(gradients(compiled, [x]))
            expected = gradients(lambda x: runner.raw(x * 2, 0.3), [x])
        assert same_bits(results[-1][0], expected[0])
        assert same_bits(results[-1][1][0], expected[1][0])
    assert not same_bits(results[0][0], results[1][0])
    assert not same_bits(results[0][1][0], results[1][1][0])
    check_opcheck(runner.overload(), x.requires_grad_(), 0.7, None, True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("chosen", [None, 9])
def test_gradients_of_half_precision_are_rounded_once(runner, dtype, chosen):
    """dG + dG^T does not fit into half precision, nor into the 11 bits of tf32."""
    x = runner.randn(2, 40, 6, 6, dtype=dtype)
    cells = None if chosen is None else some_cells(runner, chosen, 2, 36)
    upstream = runner.randn(*runner(x, 1.0, cells).shape, dtype=dtype, seed=3)
    back = runner.overload("_bwd")
    single = back(upstream.float(), x.float(), 0.7, cells)
    room = 0.51 * torch.finfo(dtype).eps * single.abs() + 1e-6 * single.abs().max()
    assert ((back(upstream, x, 0.7, cells).float() - single).abs() <= room).all()


def test_infinite_gradients_stay_where_they_are(runner):
    for dtype in (torch.float32, torch.bfloat16):
        x = runner.randn(1, 3, 3, 3, dtype=dtype)
        upstream = torch.zeros(1, 9, 3, 3, dtype=dtype, device=runner.device)
        upstream[0, 2, 1, 1] = torch.inf
        grad = runner.overload("_bwd")(upstream, x, 1.0, None).flatten(2)
        # Elsewhere the infinity is multiplied by no feature, but for those of the cells that share a sum.
        assert grad[..., [2, 4]].isinf().all()
        assert grad[..., [0, 1, 3, 5, 6, 7, 8]].eq(0).all()


def test_the_op_itself_refuses_what_does_not_fit(runner):
    """Called past the public function, as a graph of torch.compile does: nothing is read out of bounds."""
    x, op, back = runner.randn(2, 4, 3, 3), runner.overload(), runner.overload("_bwd")
    check_refusals(x, op, back)
