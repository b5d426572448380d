"""Steps and facts: what fails, hangs or is killed loses nothing that was known before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from make import ROOT, make, needs_make

from benchmarks.gpu.facts import POISONED, Facts, Job, run_step, run_steps

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return Facts(tmp_path / "deep" / "facts.jsonl")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(code)}"]


def test_facts_are_kept_in_order(facts: Facts) -> None:
    assert facts.read() == []
    facts.add(step="a", key="x")
    facts.add(step="b", status="done")
    assert facts.read() == [{"step": "a", "key": "x"}, {"step": "b", "status": "done"}]
    assert (facts.keys("a"), facts.keys("b"), facts.done()) == ({"x"}, set(), {"b"})


def test_a_line_that_was_cut_short_costs_itself(facts: Facts) -> None:
    facts.add(step="a", key="x")
    with facts.path.open("a") as file:
        file.write('{"step": "a", "ke')
    facts.add(step="a", key="y")
    assert facts.keys("a") == {"x", "y"}
    assert len(facts.path.read_text().splitlines()) == 3


def test_what_fails_is_a_fact_too(facts: Facts) -> None:
    def fails() -> dict[str, object]:
        raise ValueError("expected")

    job = Job("check", facts, dry=True)
    job.keep("one", fails)
    job.keep("two", lambda: {"right": True})
    job.keep("two", lambda: {"right": False})
    one, two = facts.read()
    assert one["failed"] == "ValueError: expected"
    assert two["right"], "what is known is not asked again"


def test_steps(facts: Facts, tmp_path: Path) -> None:
    """The most important first; what hangs is cut off with all that it started, what fails is named."""
    child = tmp_path / "child"
    hangs = f"""
        import subprocess, time
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(child)!r}, "w").write(str(process.pid))
        time.sleep(600)
    """
    steps = [
        ("works", 60.0, python("print('said')")),
        ("hangs", 8.0, python(hangs)),
        ("fails", 60.0, python("sys.exit(7)")),
        ("works too", 60.0, python("pass")),
    ]
    log = tmp_path / "log"
    started = time.monotonic()
    assert run_steps(facts, steps, 300.0, log) == ["hangs: cut off", "fails: failed with status 7"]
    assert time.monotonic() - started < 200
    assert facts.done() == {"works", "works too"}
    assert log.read_text() == "said\n"
    state = Path(f"/proc/{child.read_text()}/stat")
    time.sleep(0.2)
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert run_steps(facts, steps[:1], 300.0, log) == [], "what is done is not done again"
    assert log.read_text() == "said\n"
    assert run_steps(facts, [("late", 60.0, python("pass"))], 0.5, log) == ["late: no time was left"]


def test_a_step_goes_on_after_a_cuda_error(facts: Facts, tmp_path: Path) -> None:
    """In a new process, and past what brought it down."""
    code = f"""
        from pathlib import Path
        from benchmarks.gpu.facts import Facts
        facts = Facts(Path({str(facts.path)!r}))
        key = "second" if facts.read() else "first"
        facts.add(step="check", key=key)
        sys.exit(0 if key == "second" else {POISONED})
    """
    assert run_step(facts, "check", python(code), 120.0, tmp_path / "log") == "done"
    assert facts.keys("check") == {"first", "second"}


ADDING = """
import sys, time
from pathlib import Path
from benchmarks.gpu.facts import Facts, run_steps
facts = Facts(Path(sys.argv[1]))
code = "import sys; sys.path.insert(0, sys.argv[2])\\n"
code += "from pathlib import Path; from benchmarks.gpu.facts import Facts\\n"
code += "k = 0\\nwhile True: Facts(Path(sys.argv[1])).add(step='adds', key=str(k), more='x' * 5000); k += 1"
command = [sys.executable, "-c", code, *sys.argv[1:]]
run_steps(facts, [("adds", 600, command)], 600, Path(sys.argv[1] + ".log"))
"""


@pytest.mark.parametrize("after", [0.05, 0.31, 0.77])
def test_killed_at_any_second(facts: Facts, after: float) -> None:
    """Every fact that was finished is there, and nothing of it goes on."""
    command = [sys.executable, "-c", ADDING, str(facts.path), str(ROOT)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    end = time.monotonic() + 60
    while not facts.keys("adds"):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    size = facts.path.stat().st_size
    time.sleep(0.5)
    assert facts.path.stat().st_size == size
    keys = [int(fact["key"]) for fact in facts.read()]
    assert keys == [*range(len(keys))]
    facts.add(step="after", key="x")
    assert len(facts.read()) == len(keys) + 1


@needs_make
@pytest.mark.parametrize(("target", "command"), [("gpu-first", "run"), ("gpu-rest", "rest")])
def test_the_targets(target: str, command: str) -> None:
    assert f"-m benchmarks.gpu.first {command} --dry-run" in make("-n", target, "DRY_RUN=1").stdout


def test_the_first_nine_minutes() -> None:
    """All steps have their time, the most important first."""
    from benchmarks.gpu import first

    assert [*first.FIRST][:4] == ["machine", "compile", "check", "goals"]
    assert sum(most for most, _ in first.FIRST.values()) <= first.SECONDS - 60
    assert {*first.FIRST} <= {*first.REST}
    assert all(most <= first.SECONDS for name, (most, _) in first.REST.items() if name not in first.FIRST)


def test_a_dry_step(facts: Facts) -> None:
    """One that times every op, in a process as `make gpu-first` starts it."""
    command = [sys.executable, "-m", "benchmarks.gpu.first", "step", "goals", str(facts.path), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = facts.read()
    assert [fact for fact in found if "failed" in fact] == []
    times = [fact for fact in found if "seconds" in fact]
    assert {fact["direction"] for fact in times} == {"forward", "backward"}
    assert all({"op", "what", "size", "dtype"} <= {*fact} for fact in times)
    assert all({"cpu", "PyTorch", "floor"} <= {*fact["seconds"]} for fact in times)
