"""The table of the backends' order: which row counts, what `select` makes of it, under torch.compile too."""

import pytest
import torch

import solo_attn
from solo_attn.backends import BACKENDS, NAMES, OPS, Backend, order, registry, select
from solo_attn.backends.order import ORDER, Row, row_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture
def all_run(monkeypatch):
    """Every backend runs everywhere."""
    everything = tuple(Backend(b.name, b.namespace, lambda *_: None) for b in BACKENDS)
    monkeypatch.setattr(registry, "BACKENDS", everything)
    monkeypatch.setattr(registry, "_DEFAULT", None)


@pytest.mark.parametrize("device_type", ORDER)
def test_rows(device_type):
    rows = ORDER[device_type]
    last = rows[-1]
    assert (last.ops, last.dtypes, last.least) == ((), (), 0), "one that fits always"
    for row in rows:
        assert {*row.ops} <= {*OPS}
        assert {*row.dtypes} <= {*FLOATS}
        assert {*row.backends} <= {*NAMES}
        assert len({*row.backends}) == len(row.backends) >= 2
        assert row.source in ("estimated", "measured")
        assert row.reason
        assert "\n" not in str(row)


@pytest.mark.parametrize("device_type", ORDER)
def test_every_row_counts_somewhere(device_type):
    counted = {
        row_of(op, device_type, dtype, size)
        for op in OPS
        for dtype in FLOATS
        for size in (0, *(row.least for row in ORDER[device_type]))
    }
    # The last one is for ops that have no row yet.
    assert {*ORDER[device_type][:-1]} <= counted


def test_nothing_is_known_of_other_devices():
    assert row_of("dice_loss", "mps", torch.float32).backends == ("reference",)
    assert select("dice_loss", "mps", torch.float32).name == "reference"


def test_op_dtype_and_size_decide(all_run, monkeypatch):
    rows = (
        Row(("dice_loss",), (torch.float16,), 100, ("triton", "cuda"), "measured", "large"),
        Row((), (), 0, ("cuda", "triton"), "estimated", "else"),
    )
    monkeypatch.setitem(ORDER, "cuda", rows)
    assert select("dice_loss", "cuda", torch.float16, size=100).name == "triton"
    assert select("dice_loss", "cuda", torch.float16).name == "triton", "large, where nothing is said"
    assert select("dice_loss", "cuda", torch.float16, size=99).name == "cuda"
    assert select("dice_loss", "cuda", torch.float32, size=100).name == "cuda"
    assert select("mask_bits", "cuda", torch.float16, size=100).name == "cuda"
    assert select("dice_loss", "cuda", torch.float16, "cuda", size=100).name == "cuda"


def test_others_keep_their_place():
    names = [backend.name for backend in registry.in_order(("triton", "cuda"))]
    assert names == ["triton", "cpu", "cuda", "reference"]
    assert [backend.name for backend in registry.in_order(("cuda", "nobody"))] == list(NAMES)


def test_explain_shows_the_rows():
    found = solo_attn.explain("grid_attention", device="cuda")
    (_, large), (_, small) = found.orders
    assert (large.least, small.least) == (1 << 20, 0)
    assert str(found).splitlines()[-2:] == [f"    order, if several can run: {row}" for row in (large, small)]
    assert "cuda before triton from 1,048,576 elements on (estimated): " in str(found)
    assert len(solo_attn.explain("matrix_nms", device="cuda").orders) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_traces_the_choice(monkeypatch, dynamic):
    """With a row that looks at sizes: each side of it is compiled, and runs what it says."""
    rows = (Row((), (), 64, ("reference", "cpu"), "measured", "large"), *ORDER["cpu"])
    monkeypatch.setitem(ORDER, "cpu", rows)
    monkeypatch.setattr(registry, "_DEFAULT", None)
    seen = []

    def keep(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes if "solo_attn" in str(node.target)})
        return graph

    torch._dynamo.reset()
    run = torch.compile(lambda x: solo_attn.grid_attention(x), fullgraph=True, dynamic=dynamic, backend=keep)
    for side in (2, 3, 2):
        x = torch.randn(1, 4, side, side)
        torch.testing.assert_close(run(x), solo_attn.grid_attention(x, backend="reference"))
    torch._dynamo.reset()
    assert seen == [{"solo_attn.grid_attention.default"}, {"solo_attn_reference.grid_attention.default"}]


def test_a_size_is_looked_at_only_where_a_row_asks():
    class Nobody:
        def __ge__(self, other):
            raise AssertionError("a symbol would become a guard")

    for op in OPS:
        for device_type in ORDER:
            for dtype in FLOATS:
                if not any(row.least for row in order.ORDER[device_type] if op in row.ops):
                    row_of(op, device_type, dtype, Nobody())
