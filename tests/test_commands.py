"""The two commands that everything begins with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make import ROOT, dry_run, make, needs_make


def test_they_are_the_first_thing_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```\n(.*?)```", text, flags=re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]


def test_continuous_integration_runs_the_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.search(r"^ +run: \.ci/run$", workflow, flags=re.MULTILINE)


def test_hooks_and_lint_run_the_same_programs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    programs = set(re.findall(r"entry: \.venv/bin/([\w-]+(?: (?:check|format))?)", hooks))
    lint = re.findall(r"\.venv/bin/([\w-]+(?: (?:check|format))?)", dry_run("lint"))
    assert programs == {*lint} - {"python"}


@needs_make
def test_what_they_do() -> None:
    assert re.search(r"solo-attn demo\n.*solo-attn bench$", dry_run("demo").strip())
    commands = dry_run("test")
    steps = r"ruff check.*mypy.*clang-format.*-m pytest --numprocesses[^\n]*\n"
    steps += (
        r"TRITON_INTERPRET=1 .*-m pytest --numprocesses.* tests/ops\n.*-m tools\.fuzz --seconds 30 --seed"
    )
    assert re.search(steps, commands.strip(), flags=re.DOTALL)


@needs_make
@pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(),
    reason="not in make setup's environment",
)
def test_a_second_run_sets_nothing_up() -> None:
    for target in ("demo", "test"):
        assert "pip install" not in dry_run(target)


@pytest.mark.parametrize("script", ["tests/gpu/run.py", "-m benchmarks.gpu.ops run"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_they_say_so(script: str) -> None:
    command = [sys.executable, *script.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert "PyTorch sees no CUDA device" in line


def test_the_gpu_benchmark_runs_dry() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.ops", "run", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("dry run: ")


@needs_make
def test_the_gpu_commands() -> None:
    assert dry_run("gpu-test").strip().endswith("tests/gpu/run.py")
    assert dry_run("gpu-bench").strip().endswith("-m benchmarks.gpu.ops run")


@needs_make
@pytest.mark.parametrize("target", ["results", "bench", "bench-peers", "bench-scale"])
def test_every_page_is_made_anew(target: str) -> None:
    written = re.findall(r"-m benchmarks\.report\.(\w+)$", dry_run(target), flags=re.MULTILINE)
    assert written == ["pages", "backend_order"]


@needs_make
def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert phony is not None
    targets = re.findall(r"^([a-z0-9-]+):(?!=)", text, flags=re.MULTILINE)
    assert sorted(targets) == sorted(phony[1].split())
    entries = [line for line in make("help").stdout.splitlines() if line.startswith("  ")]
    assert {line.split()[0] for line in entries} >= {*targets, "DRY_RUN=1"}
    assert all(line[20:22] == "  " and line[22] != " " for line in entries), "in two columns"
