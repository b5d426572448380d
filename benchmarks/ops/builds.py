"""Two builds of the library against each other, so that no op becomes slower unnoticed.

python -m benchmarks.ops.builds OLD NEW --old-commit COMMIT

Each is a folder with an importable ``solo_attn``, such as ``pip install --no-deps --target FOLDER .`` makes
of a checkout. A process of each makes the inputs of its own `solo_attn.bench.cases`, and they take turns: one
waits while the other runs. Cases that only one of them has are left out.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from solo_attn.bench import CASES, Race, environment

from ..report.stored import CPU, RESULTS
from .threads import seconds_of

THREADS = 2
# Python runs it in an empty folder, so that it imports the build's own solo_attn.
WORKER = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
import solo_attn
from solo_attn import bench
assert solo_attn.__file__.startswith(sys.argv[2]), solo_attn.__file__
run = None
for line in sys.stdin:
    asked, answer = json.loads(line), None
    if asked is None:
        if run is not None:
            run()
    else:
        run = None
        op, number, passes = asked
        makers = bench.CASES.get(op, ())
        if number < len(makers):
            case = makers[number]("cpu")
            if passes == "forward" or case.differentiable:
                run = getattr(bench, passes)(case, "cpu")["cpu"]
                answer = case.what
    print(json.dumps(answer), flush=True)
"""


class Build:
    """A process that has one build of the library."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "solo_attn").is_dir():
            raise typer.BadParameter(f"expected a folder with solo_attn in it, got {folder}")
        self._folder, self._elsewhere = folder, tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(THREADS), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._elsewhere.name,
            env={**os.environ, "PYTHONPATH": str(folder), "OMP_WAIT_POLICY": "PASSIVE"},
        )

    def ask(self, question: Sequence[Any] | None) -> str | None:
        """Set up a case, whose sizes in words are the answer, or run the one that is set up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"builds: {self._folder} ended with status {self._process.wait()}")
        answer: str | None = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._elsewhere.cleanup()


def race(builds: dict[str, Build], case: tuple[str, int, str], seconds: float) -> dict[str, Any] | None:
    """The row of a case; None if not both builds have it with these sizes."""
    whats = {build.ask(case) for build in builds.values()}
    if len(whats) > 1 or None in whats:
        return None
    row = seconds_of({name: functools.partial(build.ask, None) for name, build in builds.items()}, seconds)
    old, new = (row["seconds"][name]["median"] for name in ("old", "new"))
    return {"op": case[0], "what": whats.pop(), "pass": case[2], "ratio": old / new, **row}


def main(
    old: Path,
    new: Path,
    old_commit: Annotated[str, typer.Option(help="Of the old build.")],
    seconds: Annotated[float, typer.Option(help="Of a batch of rounds; 0 for one round, not stored.")] = 1.0,
) -> None:
    """Race all cases and store builds.json."""
    builds = {"old": Build(old.resolve()), "new": Build(new.resolve())}
    rows = []
    try:
        bare = Race({name: functools.partial(build.ask, None) for name, build in builds.items()})
        for _ in range(20):
            bare.round()
        for op, makers in CASES.items():
            for number in range(len(makers)):
                for passes in ("forward", "backward"):
                    row = race(builds, (op, number, passes), seconds)
                    if row is not None:
                        rows.append(row)
                        typer.echo(f"{op}, {row['what']}, {passes}: the new one {row['ratio']:.2f}x as fast")
    finally:
        for build in builds.values():
            build.close()
    if seconds:
        where = {**environment("cpu"), "threads": THREADS}
        asking = {name: time.as_dict() for name, time in bare.times().items()}
        result = {"environment": where, "old": old_commit, "asking": asking, "rows": rows}
        (RESULTS / CPU / "builds.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
