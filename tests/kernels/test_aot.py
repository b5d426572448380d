"""Every kernel in every configuration, compiled for GPUs that are not here: no spills, memory that fits.

In general, when nothing is known of the sizes, and as launches at the paper's sizes have it compiled:
what Triton knows of a size, that 16 divides it, decides how memory is read and how much stays in registers.
The chips' limits are NVIDIA's: shared memory of one block, from the CUDA programming guide.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

import torch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton_launches import forms, modules, recording, run  # noqa: E402

from solo_attn.backends import OPS, triton_runtime  # noqa: E402
from tools import hot_loops, sass  # noqa: E402

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
pytestmark = pytest.mark.skipif(
    triton_runtime.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled"
)


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
    fits(compiled(*variants()[name], arch), arch, tmp_path)


def launched():
    """Forms that launches need: name -> (launch, configuration)."""
    return {} if triton_runtime.INTERPRETED else forms()


@pytest.mark.parametrize("name", launched())
def test_fits_as_launched(name, tmp_path):
    launch, config = launched()[name]
    fits(launch.compiled(config, 90), 90, tmp_path)


def fits(kernel, arch, folder):
    assert kernel.metadata.shared <= SHARED[arch]
    used = resources(kernel.asm["cubin"], folder)
    assert used["REG"] <= 255
    assert (used["LOCAL"], used["STACK"]) == (0, 0), f"spills: {used}"


@pytest.mark.parametrize("name", [name for name in variants() if name.endswith("fp32-0")])
def test_sizes_of_one(name):
    """A launch makes constants of them, for which Triton's types are others."""
    kernel, signature, constants, config = variants()[name]
    ones = {
        parameter.name: 1
        for parameter in kernel.params
        if signature[parameter.name] == "i32" and not parameter.do_not_specialize
    }
    signature = {argument: "constexpr" if argument in ones else kind for argument, kind in signature.items()}
    assert compiled(kernel, signature, constants | ones, config, 90).asm["cubin"]


@pytest.mark.parametrize("name", [name for name in launched() if "dice_loss_fwd" in name])
def test_dice_loss_adds_up_once(name, tmp_path):
    """The loop over tiles exchanges nothing between threads, however a tile is laid on them."""
    launch, config = launched()[name]
    path = tmp_path / "kernel.cubin"
    path.write_bytes(launch.compiled(config, 90).asm["cubin"])
    done = subprocess.run([CUOBJDUMP, "-sass", path], capture_output=True, text=True, check=True)
    (code,) = sass.functions(done.stdout).values()
    body = sass.hot(code, hot_loops.SIGMOID)
    assert [line for _, line in body if re.search(r"\b(BAR|SHFL|LDS|STS)\b", line)] == []


# What changes from image to image: how many cells, each level's size, the image's. The widths of what is
# read or written in runs of 16 bytes stay divisible by 16: a kernel has one form for these, one for others.
IMAGES = (
    {},
    {"count": 1},
    {"count": 64},
    {"level": (96, 152), "out": (192, 304), "image": (1008, 1600)},
    {"level": (77, 160), "out": (154, 320), "image": (496, 640), "count": 3},
)


@pytest.mark.parametrize("op", OPS)
def test_the_next_image_compiles_nothing(op):
    found = []
    for image in IMAGES:
        if op in ("matrix_nms", "mask_iou"):  # how many words a mask has decides how they are read
            image = {name: value for name, value in image.items() if name == "count"}
        with recording() as launches:
            run(op, torch.float32, **image)
        found.append({launch.form(launch.configs[0]) for launch in launches})
    for other in found[1:]:
        assert other == found[0]


def test_every_kernel_is_listed():
    for module in modules():
        listed = {jitted(aot.kernel).__name__ for aot in module.AOT}
        stem = "_" + module.__name__.rpartition(".")[2]
        assert {name for name in vars(module) if name.endswith("_kernel")} == listed
        assert all(name.startswith(stem) for name in listed)
