"""The CUDA kernels' own source as a backend on CPU tensors: compiled with a C++ compiler and tests/cuda_shim.

It proves the logic of kernels and launch code, and no more: not what nvcc makes of them, nor any speed. Built
once for what csrc/ holds, with the compiler's thread instrumentation (races, see watcher.cpp) and UBSan, or
with ASan.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from solo_attn._utils.checks import FLOAT_DTYPES
from solo_attn.backends import Backend, registry
from solo_attn.ops import _library

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "cuda_shim"
NAMESPACE = "solo_attn_shim"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DSOLO_ATTN_SHIM", f"-I{SHIM}"]
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
KINDS = {
    "race": [*UNDEFINED, "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"],
    "asan": ["-fsanitize=address", "-fno-omit-frame-pointer"],
}
LINKED = {"race": "-fsanitize=undefined", "asan": "-fsanitize=address"}
OPS = sorted(path.parent.name for path in (ROOT / "csrc").glob("*/*_cuda.cu"))


def missing() -> str | None:
    """Why it cannot be built here, or None where it can."""
    if not SHIM.exists():
        return "the shim needs the repository, of which only the tests are here"
    if shutil.which("g++") is None:
        return "the shim needs g++, which is not there"
    done = subprocess.run(["g++", "-print-file-name=libubsan.so"], capture_output=True, text=True)
    return None if "/" in done.stdout else "the shim needs g++'s sanitizers, which are not there"


def compile_all(kind: str, sources: list[Path], folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """An extension of ``sources`` and the shim."""
    headers = [f"-isystem{path}" for path in include_paths()]

    def one(source: Path) -> str:
        out = folder / f"{source.stem}.o"
        # The shim's own memory is watched by nobody: it has the watchers in it, most of the time of a test.
        watched = source.suffix == ".cu" or kind == "asan"
        command = [
            "g++",
            *FLAGS,
            *extra,
            *(KINDS[kind] if watched else ["-O2"]),
            *headers,
            "-x",
            "c++",
            "-c",
            str(source),
            "-o",
            str(out),
        ]
        subprocess.run(command, check=True)
        return str(out)

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(one, [*sources, *sorted(SHIM.glob("*.cpp"))]))
    out = folder / "shim.so"
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", "-shared", LINKED[kind], *objects, "-o", str(out), *libraries], check=True)
    return out


KIND = os.environ.get("SOLO_ATTN_SHIM", "race")  # "asan" in a process where libasan.so is preloaded


@functools.cache
def library(kind: str) -> Path:
    """The built extension, of an earlier run if nothing changed since."""
    import fcntl  # not on Windows

    state = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*(ROOT / "csrc").rglob("*.*"), *SHIM.iterdir(), Path(__file__)]):
        state.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_shim" / kind
    mark, name = folder / "state", state.hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that share the tests come to it at the same time
        if not (folder / "shim.so").exists() or not mark.exists() or mark.read_text() != name:
            shutil.rmtree(folder, ignore_errors=True)
            compile_all(kind, sorted((ROOT / "csrc").glob("*/*.cu")), folder)
            mark.write_text(name)
    return folder / "shim.so"


@functools.cache
def load() -> ctypes.CDLL:
    """Register its kernels, as ops of `NAMESPACE`."""
    # Each op declares itself in every namespace when its file is run: once more, in this one alone.
    with mock.patch.object(_library, "NAMESPACES", (NAMESPACE,)):
        for op in registry.OPS:
            spec = importlib.util.find_spec(f"solo_attn.ops.{op}")
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    path = library(KIND)
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def seed(value: int) -> None:
    """The order of lanes and blocks from now on."""
    load().solo_attn_shim_seed(ctypes.c_uint64(value))


def asserted() -> str:
    """What a kernel asserted that was not so since the last question; on a GPU it would have ended there."""
    function = load().solo_attn_shim_asserted
    function.restype = ctypes.c_char_p
    return function().decode()


def refuses(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"it plays a GPU on CPU tensors, got {device_type}"
    if dtype not in FLOAT_DTYPES:
        return f"it has no kernels for {dtype}"
    if op not in OPS:
        return f"{op} has no CUDA kernel in this version"
    return MISSING


MISSING = missing()  # once: what runs must not change between two calls of a compiled function
BACKEND = Backend("shim", NAMESPACE, refuses, forms=("levels",))
