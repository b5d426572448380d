"""Builds the compiled kernels of csrc/ into one extension, solo_attn/_C.abi3.so, for every torch >= 2.11.

SOLO_ATTN_BUILD=auto|cpu|cuda|none says what is compiled: auto is what there are tools for, cuda insists on
the CUDA kernels, none leaves plain PyTorch. CUDA_HOME names the toolkit, SOLO_ATTN_CUDA_ARCHS (or
TORCH_CUDA_ARCH_LIST) the GPUs, as in "8.0;9.0+PTX": none has to be there. MAX_JOBS bounds the compilers that
run at a time. Everything else is in pyproject.toml.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What setuptools runs of other packages must not find kernels/ under the name of the PyPI project `kernels`.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT.resolve()]
# The oldest torch whose stable ABI is used, 2.11. torch's own command adds Py_LIMITED_API, of Python 3.10.
# Nobody reads errno or traps after these kernels, and loops vectorise without them.
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter", TARGET]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden", "-DUSE_CUDA", TARGET]
# Ampere, Hopper, Blackwell. Code for 8.0 runs on 8.6 and 8.9 too, the PTX of the newest on what comes after.
CUDA_ARCHS = ("8.0", "9.0", "10.0")
BYTES_PER_COMPILER = 2 << 30
# kernels/ is installed inside the package: a top-level `kernels` is another project's.
PACKAGES = [*find_packages(include=["solo_attn*"]), "solo_attn.kernels"]
PACKAGE_DIR = {"solo_attn.kernels": "kernels"}


def requested() -> tuple[str, str]:
    """What to compile, "auto", "cpu", "cuda" or "none", and why."""
    build = os.environ.get("SOLO_ATTN_BUILD") or "auto"
    if build not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"SOLO_ATTN_BUILD: expected auto, cpu, cuda or none, got {build!r}")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if build == "auto" and platform.system() == "Windows":
        return "none", "the kernels are written for GCC and Clang"
    if build == "auto" and shutil.which(compiler) is None:
        return "none", f"there was no C++ compiler ({compiler}) when it was installed"
    return build, f"SOLO_ATTN_BUILD={build}"


def toolkit() -> Path | None:
    """The CUDA toolkit's folder, the one whose include/ holds cuda_runtime.h, or None."""
    found = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if not found and (nvcc := shutil.which("nvcc")):
        # Where nvcc is a script or a link, its own folder is not the toolkit's; it says itself where that is.
        done = subprocess.run(
            [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        found += re.findall(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
        found.append(str(Path(nvcc).resolve().parents[1]))
    if not found:
        found.append("/usr/local/cuda")
    homes = (Path(home).resolve() for home in found)
    return next((home for home in homes if (home / "include" / "cuda_runtime.h").exists()), None)


def cuda_problem(home: Path | None, torch_cuda: str | None) -> str | None:
    """Why there can be no CUDA kernels, or None where they can be compiled."""
    if home is None:
        return "there was no CUDA toolkit (nvcc is not on PATH, CUDA_HOME names none) when it was installed"
    if torch_cuda is None:
        return "the torch that it was installed with is built without CUDA"
    version = nvcc_version(home)
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"the toolkit's CUDA ({version or 'broken'}) and torch's ({torch_cuda}) differ in their major"
    return None


def nvcc_version(home: Path) -> str:
    """As in "13.0", or "" where its nvcc does not run."""
    found = re.search(r"release (\d+\.\d+)", output_of(home / "bin" / "nvcc", "--version"))
    return found[1] if found else ""


def cuda_archs(home: Path) -> list[str]:
    """The GPUs that are compiled for, in torch's form."""
    name = "SOLO_ATTN_CUDA_ARCHS" if os.environ.get("SOLO_ATTN_CUDA_ARCHS") else "TORCH_CUDA_ARCH_LIST"
    archs = re.split(r"[;, ]+", os.environ.get(name, "").strip())
    if archs == [""]:
        listed = output_of(home / "bin" / "nvcc", "--list-gpu-arch").split()
        known = [arch for arch in CUDA_ARCHS if f"compute_{arch.replace('.', '')}" in listed]
        if not known:
            raise SystemExit(
                f"solo-attn: expected nvcc to compile for one of {', '.join(CUDA_ARCHS)}, got "
                f"{' '.join(listed) or 'no list'}; set SOLO_ATTN_CUDA_ARCHS, or SOLO_ATTN_BUILD=cpu"
            )
        archs = [*known[:-1], f"{known[-1]}+PTX"]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d(\+PTX)?", arch):
            raise SystemExit(f'{name}: expected numbers as in "8.0;9.0+PTX", got {arch!r}')
    return archs


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
    home = toolkit()
    if home is not None:
        os.environ["CUDA_HOME"] = str(home)  # before torch makes its own guess
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        raise SystemExit(
            f"solo-attn: compiling its kernels needs torch >= 2.11 in the building Python ({error}); install "
            "it first, leave out --no-build-isolation, or set SOLO_ATTN_BUILD=none"
        ) from error
    build, reason = requested()
    problem = cuda_problem(home, torch.version.cuda)
    if build == "cuda" and problem is not None:
        raise SystemExit(f"SOLO_ATTN_BUILD=cuda: {problem}")
    os.environ.setdefault("MAX_JOBS", str(jobs()))
    facts = {"build": "cpu", "ops": {"cpu": ops("*/*_cpu.cpp")}}
    linked: dict = {}
    if build == "cpu" or home is None or problem is not None:
        facts["cuda"] = f"not built: {reason if build == 'cpu' else problem}"
        print("solo-attn build: the CUDA kernels are", facts["cuda"])
    else:
        archs = cuda_archs(home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(archs)
        facts["build"] = "cuda"
        facts["ops"]["cuda"] = ops("*/*_cuda.cu")
        facts |= {"archs": archs, "nvcc": nvcc_version(home), "torch_cuda": torch.version.cuda}
        # The runtime linked in: the wheel then needs no CUDA libraries to serve CPU tensors.
        linked["libraries"] = ["cudart_static", "rt", "dl", "pthread"]
        linked["library_dirs"] = [str(home / "lib64"), str(home / "lib")]
        # What it asks torch for is in libtorch_cuda, if there is one; libtorch always is, and depends on it.
        linked["extra_link_args"] = ["-Wl,--no-as-needed", "-ltorch"]
    flags = [*FLAGS, *os.environ.get("CXXFLAGS", "").split()]
    extension = CppExtension(
        "solo_attn._C",
        sources("**/*.cpp") + (sources("**/*.cu") if linked else []),
        depends=sources("**/*.h") + sources("**/*.cuh"),
        extra_compile_args={"cxx": flags, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        **linked,
    )

    class Build(BuildExtension):
        def run(self) -> None:
            super().run()
            folder = Path(self.get_ext_fullpath(extension.name)).parent
            write_configuration(
                folder,
                {
                    **facts,
                    "torch": torch.__version__,
                    "compiler": version(os.environ.get("CXX", "c++")),
                    "flags": flags,
                    "jobs": os.environ["MAX_JOBS"],
                    "system": f"{platform.system()} {platform.machine()}",
                },
            )

    return extension, Build


def ops(pattern: str) -> list[str]:
    """The ops that have such a file."""
    return sorted(Path(name).parent.name for name in sources(pattern))


def version(compiler: str) -> str:
    """The first line of what it says of itself."""
    lines = output_of(*compiler.split(), "--version").splitlines()
    return lines[0] if lines else Path(compiler).name


def output_of(*command: str | Path) -> str:
    """What a program wrote, or "" where it does not run."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


if requested()[0] == "none":
    setup(packages=PACKAGES, package_dir=PACKAGE_DIR, cmdclass={"build_py": BuildPython})
else:
    extension, command = compiled()
    setup(
        packages=PACKAGES,
        package_dir=PACKAGE_DIR,
        ext_modules=[extension],
        cmdclass={"build_py": BuildPython, "build_ext": command},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
