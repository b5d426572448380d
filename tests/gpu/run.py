"""The whole proof on a GPU in one command, `make gpu-test`: builds nothing, needs no network, 8 minutes.

Beside an installed package, pytest and hypothesis this folder and tests/ops are all it takes:
python tests/gpu/run.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import solo_attn
from solo_attn.backends import explain

TESTS = Path(__file__).parents[1]
MINUTES, DRY_MINUTES = 8.0, 60.0


class Processes:
    """Processes of pytest, one after the other, for so many seconds in all."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.failed: list[str] = []

    def run(self, *arguments: str, share: float, **environment: str) -> None:
        """One process, cut off with all that it started when it has had its share, or at the end of all."""
        command = [sys.executable, "-m", "pytest", "-ra", *arguments]
        told = " ".join(f"{name}={value}" for name, value in environment.items())
        said = f"{told} pytest {' '.join(arguments)}"
        seconds = min(share * self.seconds, self.end - time.monotonic())
        if seconds <= 0:
            self.failed.append(f"no time was left for: {said}")
            return
        print(f"\n{said}", flush=True)
        # Not in the repository's folder: Python would import that, where it is not built, before the wheel.
        process = subprocess.Popen(
            command, cwd=TESTS, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            if process.wait(seconds):
                self.failed.append(f"failed: {said}")
        except subprocess.TimeoutExpired:
            self.failed.append(f"cut off after {seconds:.0f} s: {said}")
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started may still hang
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    """The number of processes that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, what it allows, interpreted")
    parser.add_argument("--minutes", type=float, help=f"for all; else {MINUTES:.0f}, dry {DRY_MINUTES:.0f}")
    options = parser.parse_args()
    dry = options.dry_run
    if not dry and not torch.cuda.is_available():
        print("gpu-test: PyTorch sees no CUDA device (DRY_RUN=1 runs what a CPU allows)", file=sys.stderr)
        return 1
    device = "cpu" if dry else "cuda"
    environment = {"SOLO_ATTN_TEST_DEVICES": device}
    # Of a test that hangs, where: Python prints it, as it goes on.
    shared = ("-q", "-o", "faulthandler_timeout=60")
    if dry:  # the interpreter is slow: a process a core, as in `make test`
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        shared = ("-q", "--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    where = "the CPU" if dry else torch.cuda.get_device_name()
    print(f"gpu-test on {where} of {solo_attn.__file__}\n{explain('matrix_nms', device=device)}", flush=True)
    ops, gpu = str(TESTS / "ops"), str(TESTS / "gpu")
    processes = Processes(60 * (options.minutes or (DRY_MINUTES if dry else MINUTES)))
    # The program that plays a GPU is nothing to prove on one.
    shared = (*shared, f"--ignore={TESTS / 'ops' / 'test_cuda_shim.py'}")
    # Sizes change from test to test: timing configurations for each would take longer than the tests.
    processes.run(ops, *shared, share=1 / 2, SOLO_ATTN_TUNE="0", **environment)
    processes.run(gpu, *shared, share=1 / 2, **environment)
    # Every other configuration against the reference; no kernel has more than four.
    for k in (1, 2, 3):
        processes.run(ops, "-k", "test_rule", *shared, share=1 / 4, SOLO_ATTN_TUNE=str(k), **environment)
    for failure in processes.failed:
        print(f"gpu-test: {failure}", file=sys.stderr)
    return len(processes.failed)


if __name__ == "__main__":
    sys.exit(main())
