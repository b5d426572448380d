"""Every kernel in every configuration, compiled for GPUs that are not here: no spills, memory that fits.

The chips' limits are NVIDIA's: shared memory of one block, from the CUDA programming guide.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from solo_attn.backends import OPS, triton_runtime  # noqa: E402

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
pytestmark = pytest.mark.skipif(
    triton_runtime.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled"
)


def modules():
    """Of the kernels that are there."""
    for op in OPS:
        if importlib.util.find_spec(f"solo_attn.kernels.{op}"):
            yield importlib.import_module(f"solo_attn.kernels.{op}")


@functools.cache
def variants():
    """What to compile, once each: name -> (kernel, signature, constants, configuration)."""
    if triton_runtime.INTERPRETED:
        return {}
    found = {}
    for module in modules():
        for aot in module.AOT:
            configs = getattr(aot.kernel, "configs", [triton.Config({})])
            for dtype, (number, config) in itertools.product(aot.dtypes, enumerate(configs)):
                name = f"{name_of(aot)}-{dtype}-{number}"
                assert name not in found, "two of this name: give one a label"
                found[name] = variant(aot, dtype, config)
    return found


def name_of(aot):
    given = ",".join(filter(None, [*map(str, aot.constants.values()), aot.label]))
    return f"{jitted(aot.kernel).__name__}[{given}]"


def jitted(kernel):
    return getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel


def variant(aot, dtype, config):
    kernel = jitted(aot.kernel)
    constants = {name: dtype if value == "T" else value for name, value in aot.constants.items()}
    constants |= config.kwargs
    signature = {}
    for name in kernel.arg_names:
        given = "constexpr" if name in constants else aot.types.get(name, "i32")
        signature[name] = given.replace("T", dtype)
    return kernel, signature, constants, config


def compiled(kernel, signature, constants, config, arch):
    """As a launch would compile it: memory that torch allocates begins at multiples of 16."""
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin, folder):
    """Registers, and bytes of local memory (spilled registers) and stack, of each thread."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    done = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout)}


@pytest.mark.parametrize("arch", SHARED, ids="sm_{}".format)
@pytest.mark.parametrize("name", variants())
def test_fits(name, arch, tmp_path):
    kernel = compiled(*variants()[name], arch)
    assert kernel.metadata.shared <= SHARED[arch]
    used = resources(kernel.asm["cubin"], tmp_path)
    assert used["REG"] <= 255
    assert (used["LOCAL"], used["STACK"]) == (0, 0), f"spills: {used}"


@pytest.mark.parametrize("name", [name for name in variants() if name.endswith("fp32-0")])
def test_sizes_of_one(name):
    """A launch makes constants of them, for which Triton's types are others."""
    kernel, signature, constants, config = variants()[name]
    ones = {argument: 1 for argument, kind in signature.items() if kind == "i32"}
    signature = {argument: "constexpr" if argument in ones else kind for argument, kind in signature.items()}
    assert compiled(kernel, signature, constants | ones, config, 90).asm["cubin"]


def test_every_kernel_is_listed():
    for module in modules():
        listed = {jitted(aot.kernel).__name__ for aot in module.AOT}
        stem = "_" + module.__name__.rpartition(".")[2]
        assert {name for name in vars(module) if name.endswith("_kernel")} == listed
        assert all(name.startswith(stem) for name in listed)
