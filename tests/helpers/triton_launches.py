"""The launches that ops make of their Triton kernels at sizes that occur: recorded, and compiled as such."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from solo_attn.backends import OPS

# The paper's, for an image of 1024 x 2048: the finest level, and a coarser one with its own grid.
COUNT, CHANNELS, LEVEL, SIZE, IMAGE = 50, 256, (84, 168), (168, 336), (1024, 2048)
COARSER, SIDES = (42, 84), {(42, 84): 24}
SIDE = 40


@dataclass(frozen=True)
class Launch:
    """What one launch is given."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def jitted(self) -> Any:
        return self.kernel.fn if hasattr(self.kernel, "configs") else self.kernel

    @property
    def configs(self) -> list[triton.Config]:
        return getattr(self.kernel, "configs", [triton.Config({})])

    def form(self, config: triton.Config) -> Any:
        """What Triton compiles a kernel anew for: types, constants, and of numbers whether they are 1 or
        divisible by 16.
        """
        with gpu(90):
            binder = self.jitted.device_caches[90][4]
            options = {"debug": False, **self.constants, **config.all_kwargs()}
            _, specialization, _ = binder(*self.args, **options)
        return (self.jitted.__name__, *specialization, config.num_warps, config.num_stages)

    def compiled(self, config: triton.Config, arch: int) -> Any:
        with gpu(arch):
            return self.jitted.warmup(*self.args, grid=(1,), **self.constants, **config.all_kwargs())


class _Driver:
    """Of a GPU that is not there, and whose number is its arch."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def gpu(arch: int) -> Iterator[None]:
    """Triton compiles for this arch."""
    before = driver._active
    driver.set_active(_Driver(arch))
    try:
        yield
    finally:
        driver._active = before


def modules() -> list[Any]:
    """Of the kernels that are there."""
    found = [op for op in OPS if importlib.util.find_spec(f"solo_attn.kernels.{op}")]
    return [importlib.import_module(f"solo_attn.kernels.{op}") for op in found]


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Nothing is launched; numbers that a launch would have written are 0."""
    found: list[Launch] = []

    def record(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        found.append(Launch(kernel, args, constants))
        for x in args:
            if isinstance(x, torch.Tensor) and x.dtype in (torch.int32, torch.int64):
                x.zero_()

    with contextlib.ExitStack() as stack:
        for module in (*modules(), importlib.import_module("solo_attn.kernels._chosen_cells")):
            stack.enter_context(mock.patch.object(module, "launch", record))
        yield found


def run(
    op: str,
    dtype: torch.dtype,
    attention: bool = True,
    level: tuple[int, int] = LEVEL,
    count: int = COUNT,
    out: tuple[int, int] = SIZE,
    image: tuple[int, int] = IMAGE,
) -> None:
    """Forward and backward through the functions of ``solo_attn.kernels``, as the op calls them."""
    module = importlib.import_module(f"solo_attn.kernels.{op}")
    size, side = (2 * level[0], 2 * level[1]), SIDES.get(level, SIDE)
    coarse = torch.empty(count, *level, dtype=dtype)
    rows = torch.empty(count, side, side, dtype=dtype) if attention else None
    grid = torch.empty(1, CHANNELS, side, side, dtype=dtype)
    cells = torch.zeros(count, 2, dtype=torch.int64)
    masks = torch.empty(count, *size, dtype=torch.bool)
    if op == "grid_attention":
        for chosen in (None, cells):
            module.grid_attention(grid, 1.0, chosen)
            shape = (1, side**2, side, side) if chosen is None else (count, side, side)
            module.grid_attention_bwd(torch.empty(shape, dtype=dtype), grid, 1.0, chosen)
    elif op == "attention_residual":
        logits = torch.empty(1, side**2, *size, dtype=dtype)
        module.attention_residual(logits, grid, 1.0)
        module.attention_residual_bwd(logits, grid, 1.0)
    elif op == "upsample_add":
        module.upsample_add(coarse, rows, size)
        module.upsample_add_bwd(torch.empty(count, *size, dtype=dtype), level, (side, side))
    elif op == "dice_loss":
        _, sums = module.dice_loss(coarse, rows, masks, 1e-3)
        module.dice_loss_bwd(torch.empty(count), coarse, rows, masks, sums)
    elif op == "mask_bits":
        module.mask_bits(coarse, rows, size, out, 0.5)
    elif op == "mask_iou":
        module.mask_iou(masks.flatten(1), None)
        module.mask_iou(torch.zeros(count, 882, dtype=torch.int64), None)
    elif op == "matrix_nms":
        labels, scores = torch.zeros(count, dtype=torch.int64), torch.empty(count, dtype=dtype)
        for kernel, given in (("gaussian", masks.flatten(1)), ("linear", torch.zeros(count, 882).long())):
            module.matrix_nms(given, labels, scores, kernel, 2.0)
    else:
        padded = (4 * out[0] - 1, 4 * out[1] - 1)
        module.paste_masks(coarse, rows, size, out, padded, image, 0.5)
        module.paste_masks_rle(coarse, rows, size, out, padded, image, 0.5)


@functools.cache
def forms() -> dict[str, tuple[Launch, triton.Config]]:
    """Every form that the sizes above need compiled, once, in each configuration."""
    found: dict[Any, tuple[Launch, triton.Config]] = {}
    for op in (module.__name__.rpartition(".")[2] for module in modules()):
        for dtype in (torch.float32, torch.bfloat16):
            for attention, level in ((True, LEVEL), (False, COARSER)):
                with recording() as launches:
                    run(op, dtype, attention, level)
                for launch in launches:
                    for config in launch.configs:
                        found.setdefault(launch.form(config), (launch, config))
    names: dict[str, tuple[Launch, triton.Config]] = {}
    for launch, config in found.values():
        name = launch.jitted.__name__
        number = sum(other.startswith(f"{name}-") for other in names)
        names[f"{name}-{number}"] = (launch, config)
    return names
