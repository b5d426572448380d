"""The order of backends that stored measurements propose: on measurements made up for it."""

import json

import torch

from benchmarks.report import backend_order, stored
from solo_attn.backends.order import Row


def case(op, size, dtype="float32", direction="forward", what="", **seconds):
    times = {name: {"median": value * 1e-6} for name, value in seconds.items()}
    return {"op": op, "what": what, "size": size, "dtype": dtype, "direction": direction, "seconds": times}


CASES = [
    case("dice_loss", 100, cuda=10, triton=20, PyTorch=90),
    case("dice_loss", 100, direction="backward", cuda=40, triton=20, PyTorch=90),
    case("dice_loss", 1000, cuda=10, triton=20),
    case("dice_loss", 1000, direction="backward", cuda=15, triton=20),
    case("dice_loss", 9000, cuda=10, triton=80),
    case("dice_loss", 100, "bfloat16", cuda=1, triton=2),
    case("mask_bits", 50, triton=5, reference=1),
    case("mask_iou", 50, cuda=5, triton=5.5),
    case("mask_iou", 50, direction="backward", triton=3),
]


def test_proposal():
    """From small to large; forward and backward count together, the reference and PyTorch do not."""
    assert backend_order.proposal(CASES, "a GPU") == [
        Row(
            ("dice_loss",), (torch.float32,), 1000, ("cuda", "triton"), "measured",
            "25 against 40 us at 1,000 elements on a GPU",
        ),
        Row(
            ("dice_loss",), (torch.float32,), 0, ("triton", "cuda"), "measured",
            "40 against 50 us at 100 elements on a GPU",
        ),
        Row(
            ("dice_loss",), (torch.bfloat16,), 0, ("cuda", "triton"), "measured",
            "1 against 2 us at 100 elements on a GPU",
        ),
    ]  # fmt: skip


def test_rows_can_be_pasted():
    for row in backend_order.proposal(CASES, "a GPU"):
        (pasted,) = eval(backend_order.source(row), {"Row": Row, "torch": torch})
        assert pasted == row


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "h").mkdir()
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    backend_order.main()
    assert capsys.readouterr().out == ""
    found = {"environment": {"device": "a GPU"}, "cases": CASES}
    (tmp_path / "h" / "gpu.json").write_text(json.dumps(found))
    backend_order.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 + 1 + 1
    assert lines[-1].strip() == "dice_loss, torch.float32: triton, not cuda"
