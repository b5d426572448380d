import sys

import pytest
import torch

import solo_attn
from solo_attn.backends import BACKENDS, OPS, Backend, registry, select

# `solo_attn.backends.explain` is the function; what is patched is its module.
MODULE = sys.modules["solo_attn.backends.explain"]


@pytest.fixture
def slow(monkeypatch):
    """A second backend, which runs dice_loss alone."""

    def refuses(op, device_type, dtype):
        return None if op == "dice_loss" else f"no {op} on {device_type} for {dtype}"

    backend = Backend("slow", "solo_attn", refuses)
    for module in (registry, MODULE):
        monkeypatch.setattr(module, "BACKENDS", (backend, *BACKENDS))
    monkeypatch.setattr(registry, "_DEFAULT", None)
    return backend


def test_every_op_and_backend_once():
    choices = solo_attn.explain().choices
    expected = {(op, backend.name) for op in OPS for backend in BACKENDS}
    assert {(choice.op, choice.backend) for choice in choices} == expected
    assert len(choices) == len(expected)


def test_the_default_is_what_runs(slow):
    for choice in solo_attn.explain().choices:
        default = select(choice.op, "cpu", torch.float32).name
        assert choice.chosen == (choice.backend == default)
        assert not (choice.chosen and choice.reason)


def test_reasons(slow):
    found = solo_attn.explain(device="cuda:1", dtype=torch.bfloat16)
    assert (found.device, found.dtype) == ("cuda", torch.bfloat16)
    reasons = {choice.op: choice.reason for choice in found.choices if choice.backend == "slow"}
    assert reasons.pop("dice_loss") is None
    assert reasons == {op: f"no {op} on cuda for torch.bfloat16" for op in reasons}


def test_table(slow):
    lines = str(solo_attn.explain()).splitlines()
    assert lines[0] == "backends for torch.float32 on cpu"
    assert len(lines) == 1 + len(OPS) * (len(BACKENDS) + 1) + 1 + len(OPS)
    rows = [" ".join(line.split()) for line in lines[1:]]
    assert rows[-1].startswith(f"{OPS[-1]} cpu before reference (measured): ")
    lines = lines[: -1 - len(OPS)]
    assert "mask_bits slow cannot run: no mask_bits on cpu for torch.float32" in rows
    assert "dice_loss slow runs <- default" in rows
    assert "dice_loss reference runs" in rows
    assert sum("<- default" in row for row in rows) == len(OPS)
    starts = {line.index(line.split()[1]) for line in lines[1:]}
    assert len(starts) == 1, "names of backends stand in one column"


def test_one_op(slow):
    found = solo_attn.explain("matrix_nms", device=torch.device("cpu"), dtype=torch.float64)
    assert {choice.op for choice in found.choices} == {"matrix_nms"}
    assert str(found).splitlines()[0] == "backends for torch.float64 on cpu"


def test_a_default_that_cannot_run_is_explained(slow, monkeypatch):
    """SOLO_ATTN_BACKEND may name a backend that refuses: the table is then what the user needs most."""
    monkeypatch.setattr(registry, "_DEFAULT", slow)
    choices = solo_attn.explain().choices
    assert [(choice.op, choice.backend) for choice in choices if choice.chosen] == [("dice_loss", "slow")]


def test_unknown_op():
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole message is below
        solo_attn.explain("nms")
    assert str(caught.value) == f"explain: expected op to be one of {', '.join(OPS)}, got 'nms'"
