"""How a training ends and goes on: signals, damaged checkpoints, other data, two runs in one folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason='the extra "train" is not installed')

import torch
from command_line import run
from tiny_runs import tiny_config

from solo_attn._utils.errors import UsageError
from solo_attn._utils.files import alone_in
from solo_attn._utils.signals import SignalledError
from solo_attn.models import CheckpointError
from solo_attn.training import ConfigError, train
from solo_attn.training.signals import StopOnSignal


def send_at_step(patch: pytest.MonkeyPatch, signum: int) -> None:
    """The signal comes while the second batch is worked on."""
    before = StopOnSignal.on_train_batch_start

    def then(self: StopOnSignal, trainer: Any, *rest: Any) -> None:
        before(self, trainer, *rest)
        if trainer.global_step == 1:
            os.kill(os.getpid(), signum)

    patch.setattr(StopOnSignal, "on_train_batch_start", then)


@pytest.fixture(scope="module")
def stopped(no_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data and of a run that SIGTERM has ended at its second step."""
    folder = tmp_path_factory.mktemp("stopped")
    config = tiny_config(folder / "data", epochs=1, batch_size=1, max_steps=3)
    config.save(folder / "c.yaml")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        send_at_step(patch, signal.SIGTERM)
        with pytest.raises(
            SignalledError, match=r"ended by SIGTERM at step 2; .*last\.ckpt with --resume"
        ) as end:
            train(config, folder / "run")
    assert end.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
    return folder


@pytest.fixture
def again(stopped: Path) -> Callable[[], Any]:
    """Goes on with the run."""
    from solo_attn.training import load_config

    return lambda: train(load_config(stopped / "c.yaml"), stopped / "run", resume=True)


def test_both_steps_are_logged_and_nothing_half_is_left(stopped: Path) -> None:
    lines = next((stopped / "run").glob("csv/*/metrics.csv")).read_text().splitlines()
    assert len(lines) == 1 + 2
    assert (stopped / "run" / "last.ckpt").exists()
    assert not (stopped / "run" / "result.json").exists()


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "cannot be read: EOFError"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:1000]), "cannot be read"),
    "text": (lambda p: p.write_text("hello"), "cannot be read"),
    "code": (
        lambda p: torch.save({"state_dict": {}, "solo_attn": Path}, p),
        "no file of tensors and plain data",
    ),
    "of others": (lambda p: torch.save({"state_dict": {}}, p), "written by solo-attn train"),
    "without a training": (
        lambda p: torch.save({k: v for k, v in torch.load(p).items() if k in ("state_dict", "solo_attn")}, p),
        "cannot be resumed",
    ),
    "other parameters": (
        lambda p: torch.save({**(c := torch.load(p)), "state_dict": {"model.x": torch.ones(1), **c}}, p),
        "cannot be resumed|names and tensors",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_checkpoint_is_one_line(stopped: Path, again: Callable[[], Any], name: str) -> None:
    last = stopped / "run" / "last.ckpt"
    whole = last.read_bytes()
    spoil, message = SPOILT[name]
    try:
        spoil(last)
        with pytest.raises(CheckpointError, match=message) as caught:
            again()
    finally:
        last.write_bytes(whole)
    assert str(last) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to let the file run code


def without_an_image(content: dict[str, Any]) -> None:
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]


OTHER_DATA: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image removed": (without_an_image, "images of training were 6 and are 5"),
    "annotation removed": (lambda c: c["annotations"].pop(), "annotations of training were"),
    "a box moved": (
        lambda c: c["annotations"][0]["bbox"].reverse(),
        "annotation file of training is another",
    ),
    "renamed": (lambda c: c["categories"][0].update(name="other"), "in place of 'other'"),
    "a class more": (lambda c: c["categories"].append({"id": 99, "name": "new"}), r"no id 99 \('new'\)"),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_is_refused_and_said(stopped: Path, again: Callable[[], Any], name: str) -> None:
    path = stopped / "data" / "train.json"
    text = path.read_text()
    change, message = OTHER_DATA[name]
    content = json.loads(text)
    change(content)
    try:
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            again()
    finally:
        path.write_text(text)


def test_swapped_names_are_no_other_order_of_classes(stopped: Path, trained: Any) -> None:
    """The same ids with names exchanged: AP would mean nothing."""
    path = stopped / "data" / "swapped.json"
    content = json.loads((stopped / "data" / "val.json").read_text())
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    path.write_text(json.dumps(content))
    images = next(stopped.glob("data/*val*/"))
    code, output = run("eval", trained.last, "--images", images, "--annotations", path, "--device", "cpu")
    assert code == 2
    assert repr(first["name"]) in output
    assert repr(second["name"]) in output


def test_a_second_run_in_the_folder_is_refused(stopped: Path, again: Callable[[], Any]) -> None:
    with alone_in(stopped / "run"), pytest.raises(UsageError, match="by one run at a time"):
        again()


def test_it_goes_on_and_removes_what_a_kill_left(stopped: Path, again: Callable[[], Any]) -> None:
    left = stopped / "run" / ".last.123.0123abcd.tmp.ckpt"
    left.write_text("half")
    assert again().steps == 3
    assert not left.exists()
    assert (stopped / "run" / "result.json").exists()


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_end"])
def test_the_last_step_of_an_epoch_is_saved(
    config: Callable[..., Any], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """The signal comes in the last step, or in the validation of the first epoch."""
    before, sent = getattr(StopOnSignal, hook), []

    def then(self: StopOnSignal, trainer: Any, *rest: Any, **named: Any) -> None:
        if not sent and trainer.global_step == (2 if hook.startswith("on_train") else 3):
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        before(self, trainer, *rest, **named)

    monkeypatch.setattr(StopOnSignal, hook, then)
    with pytest.raises(SignalledError, match=r"ended by SIGTERM at step 3; .*last\.ckpt with --resume"):
        train(config(), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    result = train(config(), tmp_path, resume=True)
    found, wanted = (torch.load(r.last, weights_only=True)["state_dict"] for r in (result, trained))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert result.metrics == trained.metrics


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_in_the_last_validation_leaves_the_rest_to_the_next_call(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The second signal ends it at once, and is what the caller sees."""
    before, sent = StopOnSignal.on_validation_batch_end, []

    def then(self: StopOnSignal, trainer: Any, *rest: Any, **named: Any) -> None:
        if trainer.global_step == 1 and len(sent) < times:
            if sent:
                time.sleep(0.3)  # signals right after each other are one
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        before(self, trainer, *rest, **named)

    settings = config(max_steps=1, eval_batch_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_validation_batch_end", then)
        with pytest.raises(SignalledError if times == 1 else KeyboardInterrupt) as end:
            train(settings, tmp_path)
    assert signal.SIGTERM in (*end.value.args, getattr(end.value, "signum", None))
    assert (tmp_path / "last.ckpt").exists()
    assert not (tmp_path / "result.json").exists()
    if times == 1:
        assert train(settings, tmp_path, resume=True).steps == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_with_the_signals_status(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    send_at_step(monkeypatch, signum)
    got, output = run("train", stopped / "c.yaml", "--out", tmp_path / "run")
    assert got == code
    assert f"ended by {signal.Signals(signum).name} at step 2" in output
    assert (tmp_path / "run" / "last.ckpt").exists()
