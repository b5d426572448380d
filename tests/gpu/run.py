"""The whole proof on a GPU in one command, `make gpu-test`: builds nothing, needs no network, 8 minutes.

Beside an installed package this folder and tests/ops are all it takes: python tests/gpu/run.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]


def run(*arguments: str, **environment: str) -> int:
    """One process of pytest; its exit status."""
    command = [sys.executable, "-m", "pytest", *arguments]
    said = " ".join(f"{name}={value}" for name, value in environment.items())
    print(f"\n{said} pytest {' '.join(arguments)}", flush=True)
    return subprocess.run(command, cwd=TESTS.parent, env={**os.environ, **environment}).returncode


def main() -> int:
    """The number of processes that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, what it allows, interpreted")
    dry = parser.parse_args().dry_run
    if not dry and not torch.cuda.is_available():
        print("gpu-test: PyTorch sees no CUDA device (DRY_RUN=1 runs what a CPU allows)", file=sys.stderr)
        return 1
    device = "cpu" if dry else "cuda"
    environment = {"SOLO_ATTN_TEST_DEVICES": device}
    shared = ()
    if dry:  # the interpreter is slow: a process a core, as in `make test`
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        shared = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    print(f"gpu-test on {'the CPU' if dry else torch.cuda.get_device_name()}", flush=True)
    ops, gpu = str(TESTS / "ops"), str(TESTS / "gpu")
    failed = [
        # Sizes change from test to test: timing configurations for each would take longer than the tests.
        run(ops, "-q", *shared, SOLO_ATTN_TUNE="0", **environment),
        # Every other configuration against the reference; no kernel has more than four.
        *(
            run(ops, "-q", "-k", "test_rule", *shared, SOLO_ATTN_TUNE=str(k), **environment)
            for k in (1, 2, 3)
        ),
        run(gpu, "-q", *shared, **environment),
    ]
    return sum(map(bool, failed))


if __name__ == "__main__":
    sys.exit(main())
