"""The compiled extension: what it contains, and loading it when it is first needed.

``_build.json`` in the package lists what was built, so that the choice of a backend needs no compiled code
and is a constant under ``torch.compile``. The kernels register themselves in the namespace ``solo_attn`` by
dispatch key. An extension that was built but does not load is an error: a silent fallback would be a hundred
times slower without a message.
"""

from __future__ import annotations

import ctypes
import functools
import json
import struct
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# The package's own name: a copy under another name, as Hugging Face's loader makes it, has its own ops.
NAMESPACE = __name__.partition(".")[0]
_FOLDER = Path(__file__).resolve().parents[1]
_LIBRARY = _FOLDER / "_C.abi3.so"
_LOCK = threading.Lock()


def installed_elsewhere(folders: Sequence[str]) -> Path | None:
    """The first package with compiled kernels among ``folders`` of packages, other than this one."""
    for folder in folders:
        package = Path(folder).resolve() / "solo_attn"
        path = package / "_build.json"
        if package != _FOLDER and path.exists() and json.loads(path.read_text())["build"] != "none":
            return package
    return None


def _read() -> Mapping[str, Any]:
    path = _FOLDER / "_build.json"
    if not path.exists():
        if hidden := installed_elsewhere(sys.path):
            warnings.warn(
                f"solo_attn: imported from the source tree {_FOLDER.parent}, where nothing is compiled, and "
                f"not from {hidden}, where kernels are: every op runs in plain PyTorch. Start Python in "
                "another folder, or compile the tree with: pip install --no-build-isolation -e .",
                RuntimeWarning,
                stacklevel=2,
            )
        return {"build": "none", "reason": "a source tree without `make setup`", "ops": {}}
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


# Read once, at import: what runs must not change between two calls of a compiled function.
CONFIGURATION = _read()
loaded: bool = CONFIGURATION["build"] == "none"  # then there is nothing to load


def refuses(backend: str, op: str) -> str | None:
    """Why the extension has no ``op`` for ``backend`` ("cpu", "cuda"), or None if it has."""
    if CONFIGURATION["build"] == "none":
        return f"the extension is not built: {CONFIGURATION['reason']}"
    if backend not in CONFIGURATION["ops"]:
        return f"its kernels are {CONFIGURATION.get(backend, 'not built')}"
    if op not in CONFIGURATION["ops"][backend]:
        return f"{op} has no {'C++' if backend == 'cpu' else 'CUDA C++'} kernel in this version"
    return None


def covers(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code compiled for ``archs``, such as ["8.0", "9.0+PTX"], runs on a GPU of this capability.

    Machine code runs on GPUs of its own major version and at least its minor version; PTX also on all later
    ones.
    """
    for arch in archs:
        number, _, ptx = arch.partition("+")
        major, minor = map(int, number.split("."))
        if (major, minor) <= capability and (ptx or major == capability[0]):
            return True
    return False


@functools.cache
def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot run on every GPU of this machine, or None if they can."""
    if torch.version.cuda is None:
        return "the kernels are built for CUDA, this torch is built without it"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU, or no driver"
    archs = CONFIGURATION["archs"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not covers(archs, capability):
            return (
                f"cuda:{index} is of compute capability {capability[0]}.{capability[1]}, the kernels are "
                f"compiled for {' '.join(archs)}: set SOLO_ATTN_CUDA_ARCHS and reinstall"
            )
    return None


# torch.compile takes what it says as a constant instead of tracing into drivers.
cuda_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load() -> None:
    """Load the extension, once; does nothing if none was built.

    Raises:
        RuntimeError: it was built, and cannot be loaded.
    """
    global loaded
    if loaded:
        return
    with _LOCK:
        if loaded:
            return
        try:
            _check_whole(_LIBRARY)
            torch.ops.load_library(_LIBRARY)
        except OSError as error:
            raise RuntimeError(
                f"solo_attn: its compiled extension was built (torch {CONFIGURATION.get('torch')}) but "
                f"cannot be loaded into torch {torch.__version__}: {error}. Reinstall solo-attn, with "
                "SOLO_ATTN_BUILD=none to do without compiled kernels"
            ) from error
        loaded = True


def _check_whole(library: Path) -> None:
    """Refuse a file that was cut short: loading it would kill the process, while other faults raise errors.

    An ELF file ends with the table of its sections, also after strip or auditwheel have changed it.
    """
    with library.open("rb") as file:
        head = file.read(64)
        size = file.seek(0, 2)
    if len(head) == 64 and head.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        (table,) = struct.unpack_from("<Q", head, 40)
        entry, count = struct.unpack_from("<HH", head, 58)
        if size < (whole := table + entry * count):
            raise OSError(f"{library}: expected {whole} bytes, got {size}: the file was cut short")


def problem() -> str | None:
    """Why the extension that was built cannot be loaded, or None; loads it."""
    try:
        load()
    except RuntimeError as error:
        return str(error)
    return None


def simd(level: str | None = None) -> str:
    """The instruction set that the CPU kernels use: "plain", "avx2" or "avx512".

    Args:
        level: for tests, the one to use from now on; "", or one that this processor lacks, selects its best
            one. The environment variable ``SOLO_ATTN_SIMD`` sets the initial one.
    """
    load()
    function = ctypes.CDLL(str(_LIBRARY)).solo_attn_simd
    function.restype = ctypes.c_char_p
    name: bytes = function(None if level is None else level.encode())
    return name.decode()


def release_memory() -> None:
    """Give the memory that the C++ kernels keep for their next results back to the system.

    On Linux, results of 4 MiB to 1 GiB of `attention_residual`, `upsample_add`, `paste_masks` and
    `BitMasks.to_bool` on a CPU are written into the memory of earlier ones that were freed, 1 GiB of which is
    kept at most in each process. Of what was freed last at most 512 MiB, and at most 1/32 of the memory of
    the machine or of the container, stay the process's own; the system takes the rest when it runs short,
    though most tools count it as the process's own (RSS).
    Does nothing where no extension is loaded.
    """
    if CONFIGURATION["build"] != "none" and loaded:
        function = ctypes.CDLL(str(_LIBRARY)).solo_attn_release_memory
        function.restype = None
        function()
