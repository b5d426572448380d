"""When configurations are timed: once, by one thread at a time, outside of CUDA graphs, not on user data."""

from __future__ import annotations

import threading

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from solo_attn.kernels import _launch, _tuning, attention_residual  # noqa: E402

CONFIGS = [triton.Config({"BLOCK": size}) for size in (1, 2, 3)]


class Kernel:
    """Stands for what triton.jit makes: keeps what it is launched with."""

    arg_names = ("x", "n", "BLOCK")

    def __init__(self):
        self.launched = []

    @staticmethod
    def fn(x, n, BLOCK):  # noqa: N803
        """What Triton looks for below its wrappers."""

    def run(self, *args, grid, warmup, BLOCK, **options):  # noqa: N803
        self.launched.append(BLOCK)


@pytest.fixture
def tuner():
    """Of three configurations, the second being the fastest."""
    return make(lambda call, quantiles: (call(), made[0].fn.launched[-1] != 2)[1:] * 3)


made = []


def make(bench):
    found = _tuning.Tuner(Kernel(), CONFIGS, ["n"])
    found.cache_results, found._do_bench = False, bench
    made[:] = [found]
    return found


def launch(tuner, n=1):
    tuner.fn.launched.clear()
    tuner[(1,)](torch.ones(1), n)
    return tuner.fn.launched


def test_the_fastest_is_found_once(tuner):
    assert launch(tuner) == [1, 2, 3, 2]
    assert launch(tuner) == [2]
    assert launch(tuner, n=5) == [1, 2, 3, 2]


def test_a_captured_launch_is_not_timed(tuner, monkeypatch):
    """Timing waits for the device, which a capture does not allow. What was chosen before is taken there."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launch(tuner) == [1]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert launch(tuner) == [1, 2, 3, 2]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launch(tuner) == [2]


def test_threads_do_not_disturb_each_other():
    """One times while another launches what is chosen, and a third comes to time as well."""
    timing, others_done = threading.Event(), threading.Event()
    errors = []

    def bench(call, quantiles):
        call()
        if threading.current_thread() is first:
            timing.set()
            assert others_done.wait(20)
        return [1.0] * 3

    def run(n, after=None):
        try:
            tuner[(1,)](torch.ones(1), n)
        except Exception as error:  # the test's own thread reports it
            errors.append(error)
        if after is not None:
            after.set()

    tuner = make(bench)
    first = threading.current_thread()
    others_done.set()
    run(0)  # chosen
    timing.clear()
    others_done.clear()
    first = threading.Thread(target=run, args=(1,))
    first.start()
    assert timing.wait(20)
    run(0)
    third = threading.Thread(target=run, args=(2,))
    third.start()
    third.join(0.2)
    others_done.set()
    for thread in (first, third):
        thread.join(20)
    assert errors == []
    assert {key[0] for key in tuner._chosen} == {0, 1, 2}


def test_one_configuration_is_never_timed():
    tuner = _tuning.Tuner(Kernel(), CONFIGS[1:2], ["n"])
    tuner._do_bench = None
    assert launch(tuner) == [2]
    assert not tuner.is_open(torch.ones(1), 1)


@pytest.mark.parametrize(("given", "wanted"), [(None, [1, 2, 3]), ("0", [1]), ("2", [3]), ("4", [2])])
def test_solo_attn_tune(monkeypatch, given, wanted):
    monkeypatch.setattr(_tuning, "_GIVEN", given)
    tuner = _tuning.tuned(CONFIGS, key=["n"])(Kernel())
    assert [config.kwargs["BLOCK"] for config in tuner.configs] == wanted


@pytest.mark.parametrize("is_open", [True, False])
def test_in_place_the_logits_are_not_timed_with(monkeypatch, is_open):
    """Configurations are timed out of place, on a part of one image, and only where none is chosen yet."""
    launches = []

    def record(kernel, grid, *args, **constants):
        launches.append((kernel, grid({"ROWS": 4, "CELLS": 16}), args))

    monkeypatch.setattr(attention_residual, "launch", record)
    monkeypatch.setattr(attention_residual, "is_open", lambda *args, **constants: is_open)
    logits, features = torch.zeros(2, 400, 20, 30), torch.zeros(2, 8, 20, 20)
    attention_residual.attention_residual_(logits, features, 1.0)
    kernel, grid, (read, _, written, *_) = launches[-1]
    assert read.data_ptr() == written.data_ptr() == logits.data_ptr()
    assert grid[1:] == (400 // 16, 2)
    assert kernel.restore_value == []
    if not is_open:
        assert len(launches) == 1
        return
    timed, grid, (read, _, written, *_) = launches[0]
    assert timed is kernel, "one choice for both"
    assert grid[1:] == (256 // 16, 1)
    assert written.shape == (256, 20, 30)
    assert read.data_ptr() == logits.data_ptr() != written.data_ptr()
    launches.clear()
    attention_residual.attention_residual(logits, features, 1.0)
    assert len(launches) == 1, "out of place the launch itself is timed"


def test_what_is_traced_is_not_timed():
    with _launch.traced():
        assert not _launch.is_open(attention_residual._attention_residual_fwd_kernel, torch.ones(1), 1)
