"""The C++ kernels on 64-bit ARM: cross-compiled, and their op tests run in an emulator of the processor.

python -m tools.arm64        # or: make test-arm64

On Debian or Ubuntu, with the packages g++-aarch64-linux-gnu and qemu-user. ARM64's Python from the
distribution and PyTorch from the package index are put into build/arm64 (5 GB); nothing is installed, and no
root is needed. There the kernels are the plain path, in which the compiler uses NEON: their machine code is
looked through for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import ROOT
from benchmarks.report.stored import CPU, RESULTS
from solo_attn.bench import environment

FOLDER = ROOT / "build" / "arm64"
SYSTEM, SITE, OBJECTS, PACKAGE = (FOLDER / name for name in ("system", "site", "objects", "package"))
TOOLS = "aarch64-linux-gnu-"
EMULATOR = "qemu-aarch64"
PROGRAMS = {
    f"{TOOLS}g++": "g++-aarch64-linux-gnu",
    f"{TOOLS}objdump": "binutils-aarch64-linux-gnu",
    EMULATOR: "qemu-user",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
NEEDED = ("torch", "numpy", "pytest", "pytest-timeout", "hypothesis", "pycocotools")
# Every tag whose glibc is not newer than Debian 12's: pip, asked for another machine, adds none by itself.
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37))]
# An emulated Python can start neither itself nor a compiler. The large ones take minutes there.
LARGE = ("opcheck", "twenty_thousand", "more_overlaps", "small_objects")
TESTS = " and not ".join(("cpu-cpu", "compile", "bounded_memory", *LARGE))
# Of an innermost loop, what shows that NEON computes: not a move, and not an address.
VECTOR = r"(?:f(?!mov)\w+|add|sub|mla|mul|and|orr|eor|cnt|bsl)\s+v\d+\.\d+[bhsd]\b"


def run(*command: object, **options: object) -> str:
    """The output of a command; it is shown if the command fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"arm64: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    output: str = done.stdout
    return output


def fetch_python() -> None:
    """ARM64's Python and what it is linked with, by package lists of its own: the system's stay."""
    archives, unpacked = FOLDER / "apt" / "archives", FOLDER / "unpacked"
    lists = FOLDER / "apt" / "lists"
    for folder in (archives / "partial", lists / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State::Lists": lists,
        "Dir::State::status": os.devnull,
        "Dir::Cache": FOLDER / "apt",
    }
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    run(*apt, "update")
    packages = ("python3", "libgomp1", "libstdc++6")
    run(*apt, "--yes", "--no-install-recommends", "--download-only", "install", *packages)
    for package in sorted(archives.glob("*.deb")):
        run("dpkg-deb", "--extract", package, unpacked)
    unpacked.rename(SYSTEM)


def interpreter() -> Path:
    """ARM64's Python; its name ends with its version."""
    return next(path for path in (SYSTEM / "usr" / "bin").glob("python3.*") if path.suffix[1:].isdigit())


def emulated() -> list[object]:
    """The beginning of a command that runs ARM64's Python."""
    emulator = shutil.which(EMULATOR)
    assert emulator is not None
    return [emulator, "-L", SYSTEM, interpreter()]


def fetch_packages() -> None:
    """The wheels for ARM64 of this environment's torch and of what the op tests import."""
    number = interpreter().name.removeprefix("python")
    tags = [f"--platform={name}" for name in PLATFORMS]
    tags += [f"--abi={name}" for name in (f"cp{number.replace('.', '')}", "abi3", "none")]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-cache-dir")
    wanted = [f"{name}=={version(name)}" for name in NEEDED]
    for_it = ("--only-binary=:all:", "--implementation=cp", f"--python-version={number}", *tags)
    unpacked = FOLDER / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    run(*pip, "--target", unpacked, *for_it, *wanted)
    unpacked.rename(SITE)


def compile_kernels() -> None:
    """The package with its extension, by setup.py; the headers of torch are the same for every processor."""
    shutil.rmtree(PACKAGE, ignore_errors=True)  # the objects stay: what did not change is not compiled again
    linker = f"{TOOLS}g++ -shared"
    variables = {
        "SOLO_ATTN_BUILD": "cpu",
        "CXX": f"{TOOLS}g++",
        "LDSHARED": linker,
        "LDCXXSHARED": linker,
        "LDFLAGS": f"-L{SITE / 'torch' / 'lib'}",
    }
    folders = ("--build-base", OBJECTS, "--build-lib", PACKAGE)
    run(sys.executable, "setup.py", "-q", "build", *folders, cwd=ROOT, env={**os.environ, **variables})


def innermost_loops(assembly: str) -> Iterator[str]:
    """The text of each loop that contains no other one, of a disassembly by objdump."""
    for function in re.split(r"^[0-9a-f]+ <.*>:$", assembly, flags=re.MULTILINE):
        lines = re.findall(r"^ *([0-9a-f]+):\t(.*)$", function, flags=re.MULTILINE)
        index = {address: i for i, (address, _) in enumerate(lines)}
        back = []
        for i, (_, instruction) in enumerate(lines):
            jump = re.match(r"(?:b(?:\.\w+)?|[ct]bn?z)\s.*?\b([0-9a-f]+) <", instruction)
            if jump is not None and index.get(jump[1], i + 1) <= i:
                back.append((index[jump[1]], i))
        for first, last in back:
            if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in back):
                yield "\n".join(instruction for _, instruction in lines[first : last + 1])


def vector_loops() -> dict[str, int]:
    """For each op, how many innermost loops of its kernels compute with NEON."""
    found: dict[str, int] = {}
    for path in sorted(OBJECTS.rglob("csrc/*/*.o")):
        loops = innermost_loops(run(f"{TOOLS}objdump", "-d", "--no-show-raw-insn", path))
        count = sum(re.search(VECTOR, loop) is not None for loop in loops)
        found[path.parent.name] = found.get(path.parent.name, 0) + count
    found.pop("common", None)
    if idle := [op for op, count in found.items() if count == 0]:
        raise SystemExit(f"arm64: expected loops with NEON in every op, got none in {', '.join(idle)}")
    return found


def run_tests(chosen: str) -> dict[str, int]:
    """Numbers of tests by what came of them."""
    report = FOLDER / "tests.xml"
    report.unlink(missing_ok=True)
    settings = (
        "-c",
        ROOT / "pyproject.toml",
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout=1200",
    )
    others = ("--ignore-glob=*_cuda*.py", "--ignore-glob=*_triton.py")
    arguments = (*settings, *others, f"--junit-xml={report}", "-k", chosen, ROOT / "tests" / "ops")
    variables = {
        "HOME": str(FOLDER),
        "PATH": "",  # tests that need a compiler skip
        "PYTHONPATH": f"{PACKAGE}:{SITE}",
        "OMP_NUM_THREADS": "1",  # tests of threads set their number
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [*emulated(), "-m", "pytest", *arguments]
    done = subprocess.run([*map(str, command)], env=variables, cwd=PACKAGE)
    if not report.exists():
        raise SystemExit(f"arm64: expected pytest to report, got status {done.returncode} of {EMULATOR}")
    suite = ElementTree.parse(report).getroot()[0].attrib
    failed = int(suite["failures"]) + int(suite["errors"])
    counts = {"failed": failed, "skipped": int(suite["skipped"])}
    return {"passed": int(suite["tests"]) - sum(counts.values()), **counts}


def main() -> None:
    """Fetch what is not there, compile, look for NEON, test, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tests", default=TESTS, help="pytest's -k; of other tests than these nothing is stored"
    )
    chosen = parser.parse_args().tests
    if missing := sorted({package for name, package in PROGRAMS.items() if shutil.which(name) is None}):
        raise SystemExit(
            f"arm64: expected Debian's packages {', '.join(PROGRAMS.values())}, got no {' '.join(missing)}"
        )
    if not SYSTEM.exists():
        print("arm64 1/4: apt-get downloads ARM64's Python (seconds)", flush=True)
        fetch_python()
    here = version("torch").partition("+")[0]
    if SITE.exists() and not (SITE / f"torch-{here}.dist-info").exists():
        shutil.rmtree(SITE)  # of another version than this environment's
    if not SITE.exists():
        print("arm64 2/4: pip downloads PyTorch for ARM64 (minutes: gigabytes)", flush=True)
        fetch_packages()
    print("arm64 3/4: the kernels are compiled (a minute)", flush=True)
    compile_kernels()
    loops = vector_loops()
    print(f"arm64 4/4: loops with NEON: {loops}; the tests run in {EMULATOR}", flush=True)
    counts = run_tests(chosen)
    compiler, emulator = (run(name, "--version").splitlines()[0] for name in (f"{TOOLS}g++", EMULATOR))
    where = {**environment("cpu"), "threads": 1, "python": run(*emulated(), "-V").split()[1]}
    found = {
        "compiler": compiler,
        "emulator": emulator,
        "tests": chosen,
        **counts,
        "vector_loops": loops,
        "environment": where,
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if counts["failed"] or not counts["passed"]:
        raise SystemExit("arm64: expected every test to pass")
    if chosen == TESTS:
        (RESULTS / CPU / "arm64.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
