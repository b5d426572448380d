"""Builds the compiled kernels of csrc/ into one extension, solo_attn/_C.abi3.so, for every torch >= 2.11.

SOLO_ATTN_BUILD=auto|cpu|cuda|none says what is compiled: auto is what there are sources and tools for, none
leaves plain PyTorch. MAX_JOBS bounds the compilers that run at a time. Everything else is in pyproject.toml.
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# The oldest torch whose stable ABI is used, 2.11. torch's own command adds Py_LIMITED_API, of Python 3.10.
# Nobody reads errno or traps after these kernels, and loops vectorise without them.
FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
BYTES_PER_COMPILER = 2 << 30


def requested() -> tuple[str, str]:
    """What to compile, "cpu" or "none", and why."""
    build = os.environ.get("SOLO_ATTN_BUILD") or "auto"
    if build not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"SOLO_ATTN_BUILD: expected auto, cpu, cuda or none, got {build!r}")
    if build == "cuda":
        raise SystemExit("SOLO_ATTN_BUILD=cuda: there are no CUDA sources yet; use auto, cpu or none")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if build == "auto" and platform.system() == "Windows":
        return "none", "the kernels are written for GCC and Clang"
    if build == "auto" and shutil.which(compiler) is None:
        return "none", f"there was no C++ compiler ({compiler}) when it was installed"
    return ("none" if build == "none" else "cpu"), f"SOLO_ATTN_BUILD={build}"


def sources(pattern: str) -> list[str]:
    """Files of csrc/ as setuptools wants them: relative to this file."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob(pattern))


def jobs() -> int:
    """As many compilers as there are cores, and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # not sysconf's free pages: those leave out what the file cache would give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return cores
    return max(1, min(cores, free // BYTES_PER_COMPILER))


def write_configuration(folder: Path, facts: dict) -> None:
    """Print what was built, and keep it beside the package for `solo-attn doctor`."""
    print("solo-attn build:", json.dumps(facts))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(facts, indent=1) + "\n")


class BuildPython(build_py):
    """Says in the package that nothing was compiled, where that is so."""

    def run(self) -> None:
        """Copy the modules."""
        super().run()
        build, reason = requested()
        if build == "none":
            folder = ROOT if self.editable_mode else Path(self.build_lib)
            write_configuration(folder / "solo_attn", {"build": "none", "reason": reason, "ops": {}})


def compiled() -> tuple[Extension, type[build_ext]]:
    """The extension, and the command that builds it."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise SystemExit(
            f"solo-attn: compiling its kernels needs torch >= 2.11 in the building Python ({error}); install "
            "it first, leave out --no-build-isolation, or set SOLO_ATTN_BUILD=none"
        ) from error
    os.environ.setdefault("MAX_JOBS", str(jobs()))
    flags = [*FLAGS, *os.environ.get("CXXFLAGS", "").split()]
    extension = CppExtension(
        "solo_attn._C",
        sources("**/*.cpp"),
        depends=sources("**/*.h"),
        extra_compile_args=flags,
        py_limited_api=True,
    )

    class Build(BuildExtension):
        def run(self) -> None:
            super().run()
            folder = Path(self.get_ext_fullpath(extension.name)).parent
            write_configuration(
                folder,
                {
                    "build": "cpu",
                    "ops": {"cpu": sorted(Path(name).parent.name for name in sources("*/*_cpu.cpp"))},
                    "torch": torch.__version__,
                    "compiler": version(os.environ.get("CXX", "c++")),
                    "flags": flags,
                    "jobs": os.environ["MAX_JOBS"],
                    "system": f"{platform.system()} {platform.machine()}",
                },
            )

    return extension, Build


def version(compiler: str) -> str:
    """The first line of what it says of itself."""
    try:
        done = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return Path(compiler).name
    return done.stdout.splitlines()[0]


if requested()[0] == "none":
    setup(cmdclass={"build_py": BuildPython})
else:
    extension, command = compiled()
    setup(
        ext_modules=[extension],
        cmdclass={"build_py": BuildPython, "build_ext": command},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
