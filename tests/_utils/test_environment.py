"""Devices by name, and what a number was measured on."""

from __future__ import annotations

import pytest
import torch

from solo_attn._utils import environment as module
from solo_attn._utils.environment import device_named, environment
from solo_attn._utils.errors import UsageError


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == "cpu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert device_named("auto") == "cpu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    assert device_named("auto") == "xpu"


def test_no_such_device() -> None:
    with pytest.raises(UsageError, match="expected --device to be cpu or an accelerator of this machine"):
        device_named("abacus")


def test_the_environment_names_what_it_ran_on():
    facts = environment("cpu")
    assert facts["device"]
    assert facts["threads"] == torch.get_num_threads()


def test_of_a_gpu_it_names_what_lies_beneath(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 580.95.05\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    facts = environment("cuda")
    assert (facts["device"], facts["driver"], facts["cuda"]) == ("a GPU", "580.95.05", torch.version.cuda)
    program.unlink()
    assert environment("cuda")["driver"] is None
    assert "driver" not in environment("cpu")


def test_outside_of_a_checkout_the_commit_is_what_one_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.delenv("SOLO_ATTN_COMMIT", raising=False)
    assert environment("cpu")["commit"] is None
    monkeypatch.setenv("SOLO_ATTN_COMMIT", "0123456789ab")
    assert environment("cpu")["commit"] == "0123456789ab"
