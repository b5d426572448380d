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
    """Each reason of this backend names its op, so no two are alike."""
    head, *lines = str(solo_attn.explain()).splitlines()
    assert head == "backends for torch.float32 on cpu"
    rows = len(BACKENDS) + 3  # its name, one of each backend, the order
    assert [line.strip() for line in lines[::rows]] == list(OPS)
    found = {op: lines[rows * k + 1 : rows * (k + 1)] for k, op in enumerate(OPS)}
    assert "    slow       cannot run: no mask_bits on cpu for torch.float32" in found["mask_bits"]
    assert found["dice_loss"][0] == "    slow       runs  <- default"
    assert "    reference  runs" in found["dice_loss"]
    for one in found.values():
        assert sum("<- default" in line for line in one) == 1
        assert one[-1].startswith("    order, if several can run: cpu before reference (measured): ")


def test_ops_that_are_alike_share_their_lines(monkeypatch):
    def refuses(op, device_type, dtype):
        return "not today" if op in ("dice_loss", "mask_bits") else None

    monkeypatch.setattr(MODULE, "BACKENDS", (Backend("slow", "solo_attn", refuses),))
    lines = str(solo_attn.explain()).splitlines()
    others = [op for op in OPS if op not in ("dice_loss", "mask_bits")]
    assert lines[1::3] == [f"  {', '.join(others)}", "  dice_loss, mask_bits"]
    assert lines[2::3] == ["    slow       runs", "    slow       cannot run: not today"]


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
