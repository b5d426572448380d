"""A GPU's first nine minutes: `make gpu-first`, and `make gpu-rest` for what remains.

The most important first, each step in a process of its own and with a time of its own; each fact is added at
once to benchmarks/results/<gpu>/first.jsonl (facts.py), so that nothing is lost to a step that fails or
hangs, nor to the end of the machine. Run again, it goes on with what is not done.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from solo_attn import explain
from solo_attn.backends import compiled
from solo_attn.bench import PLAIN, Case, backends, environment
from solo_attn.bench.cases import CASES, attention_residual, dice_loss

from .. import ROOT
from ..report.stored import folder_of
from . import ops
from .facts import Facts, Job, Recorder, interrupted, log_of, run_steps
from .timing import GpuRace

SECONDS, DRY_SECONDS = 540.0, 240.0
DRY_STEP = 60.0  # seconds of each at most, for processes that start slowly
PROCESSES = 12  # that compile or test at the same time, of 16 cores
KERNELS = "attention_residual_(stream|gather)|grid_attention_(map|gradient)|dice_loss_bwd"  # for ncu
METRICS = "gpu__time_duration.sum,dram__bytes.sum.per_second,sm__inst_issued.avg.pct_of_peak_sustained_active"


def machine(job: Job) -> None:
    """What this is, and whether everything that was built can be loaded."""
    job.keep("environment", lambda: dict(environment(job.device)))
    job.keep("nvidia-smi", lambda: {"said": _said(["nvidia-smi"])})
    job.keep("extension", lambda: {"problem": compiled.problem(), "built": dict(compiled.CONFIGURATION)})
    job.keep("backends", lambda: {"said": str(explain(device=job.device))})


def _said(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]}"
    return subprocess.run(command, capture_output=True, text=True).stdout


def cases(job: Job) -> Iterator[tuple[str, Case]]:
    """Every op at the paper's sizes in each dtype, float32 first."""
    for name, dtype in ops.DTYPES.items():
        for case in ops.cases(job.device, job.dry, 1, dtype):
            yield f"{case.op}, {case.what}, {name}", case


def ours(job: Job, case: Case) -> dict[str, Callable[..., Any]]:
    """The backends that run; the reference is plain PyTorch, and only a dry run has little else."""
    names = [name for name in backends(case.op, job.device) if name != "reference" or job.dry]
    return {name: functools.partial(case.kernel, name) for name in names}


def compile_one(job: Job, op: str, name: str) -> None:
    """Have Triton compile what the op needs, into its cache on disk."""
    for maker in CASES[op]:
        case = ops.batched(maker(job.device, **(ops.TINY[op] if job.dry else {})), 1, ops.DTYPES[name])
        for backend in backends(op, job.device):
            if backend == "triton":
                key = f"{op}, {case.what}, {name}"
                job.keep(key, functools.partial(_run_once, case, functools.partial(case.kernel, backend)))


def _run_once(case: Case, run: Callable[..., Any]) -> dict[str, Any]:
    leaves = [x.detach().requires_grad_(k < case.differentiable) for k, x in enumerate(case.inputs[:2])]
    out = run(*leaves, *case.inputs[2:])
    if case.differentiable:
        torch.autograd.grad(out.sum(), leaves[: case.differentiable])
    if out.is_cuda if isinstance(out, torch.Tensor) else torch.cuda.is_available():
        torch.cuda.synchronize()
    return {}


def compile_all(job: Job) -> None:
    """Triton's kernels for the steps that follow, by many processes."""
    work = [(op, name) for op in CASES for name in ops.DTYPES]
    if job.dry:
        compile_one(job, *work[0])
        return
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for done in [pool.submit(compile_one, job, *one) for one in work]:
            done.result()


def check(job: Job) -> None:
    """Each op, backend and dtype against PyTorch in float32, forward and backward."""
    for key, case in cases(job):
        for backend, run in ours(job, case).items():
            job.keep(f"{key}, {backend}", functools.partial(_checked, run, case))


def _checked(run: Callable[..., Any], case: Case) -> dict[str, Any]:
    ops.prove(run, case)
    if case.differentiable:
        ops.prove_gradients({"ours": run, PLAIN: case.plain}, case)
    return {"right": True}


def goals(job: Job) -> None:
    """What was asked of each op: ours, plain PyTorch, and the floor, each from a cold cache."""
    job.keep("rates", lambda: {"rates": ops.measure_rates(job.device, job.dry)})
    sizes = ops.TINY if job.dry else {"dice_loss": {"count": 300}, "attention_residual": {}}
    residual = attention_residual(job.device, **sizes["attention_residual"])
    _race_both(job, "attention_residual, float32", residual)
    before, torch.backends.cuda.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision, "tf32"
    _race_both(job, "attention_residual, tf32", residual)
    torch.backends.cuda.matmul.fp32_precision = before
    _race_both(job, "dice_loss of many cells, float32", dice_loss(job.device, **sizes["dice_loss"]))
    job.keep("inference's path", lambda: {"paths": ops.lazy(job.device, job.dry)})
    for key, case in cases(job):
        _race_both(job, key, case)


def _race_both(job: Job, key: str, case: Case) -> None:
    job.keep(f"{key}, forward", functools.partial(_raced, job, case, "forward"))
    if case.differentiable:
        job.keep(f"{key}, backward", functools.partial(_raced, job, case, "backward"))


def _raced(job: Job, case: Case, direction: str) -> dict[str, Any]:
    runs = {**ours(job, case), PLAIN: case.plain}
    if direction == "forward":
        ready = {name: functools.partial(run, *case.inputs) for name, run in runs.items()}
        floor = case.floor
    else:
        ready, floor = ops.prove_gradients(runs, case), case.floor_backward or case.floor
    with torch.set_grad_enabled(direction == "backward"):
        race = GpuRace({**ready, "floor": floor}, job.device)
        for _ in range(1 if job.dry else race.affordable(0.4, least=5, most=20)):
            race.round()
        wall = {name: _wall(run, job) for name, run in ready.items()}
    return {
        "op": case.op,
        "what": case.what,
        "size": ops.size_of(case),
        "dtype": str(case.inputs[0].dtype).removeprefix("torch."),
        "direction": direction,
        "seconds": {name: found.as_dict() for name, found in race.times().items()},
        "wall": wall,
        "host_bound": race.host_bound,
    }


def _wall(run: Callable[[], Any], job: Job) -> float:
    """Seconds of one call where several follow each other, the host's part included."""
    rounds = 1 if job.dry else 10
    started = time.perf_counter()
    for _ in range(rounds):
        run()
    if not job.dry:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / rounds


def profile(job: Job) -> None:
    """What Nsight Compute counts in the kernels that matter most."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if job.dry or not Path(ncu).exists():
        job.keep("ncu", lambda: {"said": "there is no ncu"})
        return
    code = "from benchmarks.gpu.first import profiled; profiled()"
    command = [ncu, "--clock-control", "none", "--csv", "--metrics", METRICS, "--kernel-name"]
    command += [f"regex:{KERNELS}", "--launch-count", "12", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    for number, line in enumerate(line for line in done.stdout.splitlines() if line.startswith('"')):
        job.keep(f"line {number}", functools.partial(dict, said=line))
    if done.returncode:
        job.keep("ncu", lambda: {"failed": (done.stdout + done.stderr)[-2000:]})


def profiled() -> None:
    """What `profile` looks at: each once, in float32."""
    for case in (attention_residual("cuda"), dice_loss("cuda", count=300)):
        _run_once(case, functools.partial(case.kernel, backends(case.op, "cuda")[0]))


def tests_of(folder: str, *arguments: str) -> Callable[[Job], None]:
    """A step: some tests, each a fact."""

    def step(job: Job) -> None:
        import pytest

        os.environ["SOLO_ATTN_TEST_DEVICES"] = job.device
        given = [str(ROOT / "tests" / folder), "-q", "-p", "no:cacheprovider", *arguments]
        if job.dry:  # every line of this file, not of the tests
            given = [
                str(ROOT / "tests" / "ops" / "test_upsample_add.py"),
                "-q",
                "-k",
                "cpu-cpu-plain and test_rule",
            ]
        code = pytest.main(given, plugins=[Recorder(job)])
        if code not in (0, 1):  # 1: tests failed, which they have said
            sys.exit(int(code))

    return step


def sanitize(job: Job) -> None:
    """Small sizes in memcheck and racecheck, at the same time; CUDA C++ alone."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if job.dry or not Path(tool).exists():
        job.keep("compute-sanitizer", lambda: {"said": "there is no compute-sanitizer"})
        return
    script = str(ROOT / "tests" / "helpers" / "gpu_cases.py")
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for name in ("memcheck", "racecheck"):
            command = [tool, "--tool", name, "--error-exitcode", "1", sys.executable, script, "cuda"]
            pool.submit(_sanitized, job, name, command, environment)


def _sanitized(job: Job, name: str, command: list[str], environment: dict[str, str]) -> None:
    """Each line as it comes: a case that is done, or what the tool has found."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.match(r"[a-z_]+ cuda$|========= \S", line):
                job.facts.add(step=job.step, tool=name, said=line.strip()[:500])
    job.facts.add(step=job.step, key=name, status_of_tool=process.returncode)


def rest(job: Job) -> None:
    """The speed of every op with tuned configurations, of one image and of several."""
    for batch in (1, 2, 8):
        for name, dtype in ops.DTYPES.items():
            for case in ops.cases(job.device, job.dry, batch, dtype):
                if job.dry and batch > 1:
                    continue
                _race_both(job, f"{case.op}, {case.what}, {name}, batch {batch}", case)


# Name -> (seconds, what it does). In the first nine minutes nothing is tuned.
FIRST: dict[str, tuple[float, Callable[[Job], None]]] = {
    "machine": (15, machine),
    "compile": (40, compile_all),
    "check": (60, check),
    "goals": (90, goals),
    "profile": (40, profile),
    "behaviour": (40, tests_of("gpu", "-k", "not sanitizer and not as_the_reference")),
    "sanitize": (60, sanitize),
    "tests": (120, tests_of("ops", "-n", str(PROCESSES), "--ignore-glob=*test_cuda_shim.py")),
}
REST = {**{name: (8 * most, step) for name, (most, step) in FIRST.items()}, "tuned": (480.0, rest)}
TUNED = {"tuned"}

app = typer.Typer(no_args_is_help=True, help=__doc__)
Dry = Annotated[bool, typer.Option("--dry-run", help="Tiny sizes on the CPU: every step, no number.")]
Out = Annotated[Path | None, typer.Option(help="The file of facts.")]


def _facts(dry: bool, out: Path | None) -> Facts:
    if not dry and not torch.cuda.is_available():
        typer.echo("gpu-first: PyTorch sees no CUDA device (DRY_RUN=1 goes through it on the CPU)", err=True)
        raise typer.Exit(1)
    if out is None:
        out = (ROOT / "runs" / "dry_run_gpu" if dry else folder_of("cuda")) / "first.jsonl"
    return Facts(out)


def _run(names: dict[str, tuple[float, Any]], dry: bool, out: Path | None, seconds: float) -> None:
    signal.signal(signal.SIGTERM, interrupted)
    facts = _facts(dry, out)
    given = ["--dry-run"] if dry else []
    steps = [
        (
            name,
            max(most, DRY_STEP) if dry else most,
            [sys.executable, "-m", __spec__.name, "step", name, str(facts.path), *given],
        )
        for name, (most, _) in names.items()
    ]
    unfinished = run_steps(facts, steps, seconds, log_of(facts))
    failed = [fact for fact in facts.read() if "failed" in fact or fact.get("outcome") == "failed"]
    for fact in failed:
        typer.echo(f"failed: {fact['step']}: {fact['key']}")
    for line in unfinished:
        typer.echo(f"unfinished: {line}")
    typer.echo(f"{len(facts.read())} facts in {facts.path}")
    if unfinished:
        raise typer.Exit(75)
    if failed:
        raise typer.Exit(1)


@app.command()
def run(dry_run: Dry = False, out: Out = None, seconds: float = SECONDS) -> None:
    """The first nine minutes. Exit status 75: steps remain, which `rest` continues."""
    _run(FIRST, dry_run, out, min(seconds, DRY_SECONDS) if dry_run else seconds)


@app.command(name="rest")
def run_rest(dry_run: Dry = False, out: Out = None, seconds: float = SECONDS) -> None:
    """A piece of the remaining steps. Exit status 75: run it again."""
    _run(REST, dry_run, out, min(seconds, DRY_SECONDS) if dry_run else seconds)


@app.command()
def step(name: str, facts: Path, dry_run: Dry = False) -> None:
    """One step, in this process."""
    REST[name][1](Job(name, Facts(facts), dry_run))


if __name__ == "__main__":
    # Before any kernel is imported: configurations are timed in a step of its own.
    if sys.argv[1:2] == ["step"] and sys.argv[2] not in TUNED:
        os.environ.setdefault("SOLO_ATTN_TUNE", "0")
    app()
