"""Resources of the CUDA kernels: registers, shared memory, spills, blocks per SM, actual and planned.

``python -m tools.kernel_resources`` prints the table, ``--write`` puts it into docs/kernels.md. It reads
the extension that is built, with NVIDIA's cuobjdump; no GPU is needed, and nothing is timed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "solo_attn" / "_C.abi3.so"
PAGE = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- tools/kernel_resources.py -->\n", "<!-- end -->\n"

# Assumed of an H200: the rate of a copy, and of a product of bfloat16 matrices.
BYTES_PER_SECOND, FLOPS_PER_SECOND = 4.3e12, 788e12
# A multiprocessor (SM) of compute capability 8.0, 9.0, 10.0: bytes of shared memory. All have 65,536
# registers, given to warps by 256, and 2,048 threads. A block takes 1 KiB more than it asks for, which
# cuobjdump counts from 9.0 on.
SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
RESERVED = 1 << 10

# The paper's finest level: grid, channels, mask logits; chosen cells; and masks for the NMS, at stride 4.
SIDE, CHANNELS, PIXELS, CHOSEN = 40, 256, 168 * 336, 100
CELLS = SIDE * SIDE
MASKS, MASK_PIXELS = 500, 200 * 336


@dataclass(frozen=True)
class Plan:
    """The plan of a kernel, for one image in float32 at the sizes above.

    Attributes:
        threads: of a block.
        blocks: that an SM of compute capability 9.0 or 10.0 is meant to hold, in any dtype but float64, on
            aligned input.
        half: the same in half precision, where that differs; 0 where it does not.
        read, written: bytes that it has to move, each once.
        flops: products and sums.
        dynamic: bytes of shared memory that the launch asks for.
    """

    threads: int
    blocks: int
    read: float
    written: float
    flops: float = 0
    dynamic: int = 0
    half: int = 0

    @property
    def floor(self) -> float:
        """The lower bound on an H200 in microseconds: for the bytes, or for the flops on its tensor cores."""
        moved = (self.read + self.written) / BYTES_PER_SECOND
        return 1e6 * max(moved, self.flops / FLOPS_PER_SECOND)


V, MAPS, LOGITS = 4 * CHANNELS * CELLS, 4 * CELLS * CELLS, 4 * CELLS * PIXELS
PRODUCT = 2 * CHANNELS * CELLS * CELLS
PARTS = 5  # of the sums over the cells of a gradient
PICKED = 8 * 4 * CHOSEN * CHANNELS  # in eight parts
BITS, PAIRS = MASKS * MASK_PIXELS / 8, MASKS * (MASKS - 1) / 2
# Of the chosen cells: coarse logits (a quarter of the pixels), attention rows, mask logits; and the image.
COARSE, ROWS, LARGE = CHOSEN * PIXELS, 4 * CHOSEN * CELLS, 4 * CHOSEN * PIXELS
IMAGE = CHOSEN * 1024 * 2048
BLEND = 8 * CHOSEN * PIXELS  # flops of two enlargements along y
WALK_BACK = 16_736  # bytes: rows of both inputs, weights, and where inputs begin

PLANS = {
    # The smaller half of the symmetric map is computed and written twice. Exact float32 takes three products
    # of tf32 for one, here, in the gradient, and in the rows of chosen cells.
    "grid_attention_map_kernel": Plan(128, 3, V, MAPS, PRODUCT / 2),
    "grid_attention_gradient_kernel": Plan(256, 2, MAPS + V, PARTS * V, PRODUCT, 73_728),
    "grid_attention_gradient_sum_kernel": Plan(256, 8, PARTS * V, V),
    "grid_attention_chosen_kernel": Plan(128, 2, V, 4 * CHOSEN * CELLS, 2 * CHANNELS * CHOSEN * CELLS),
    "grid_attention_picked_kernel": Plan(
        128, 2, V + 4 * CHOSEN * CELLS, PICKED, 2 * CHANNELS * CHOSEN * CELLS
    ),
    "grid_attention_chosen_gradient_kernel": Plan(
        128, 4, V + 4 * CHOSEN * CELLS + PICKED, V, 2 * CHANNELS * CHOSEN * CELLS
    ),
    "attention_residual_stream_kernel": Plan(
        256, 4, LOGITS + MAPS, LOGITS, 4 * CELLS * PIXELS, 3_520, half=3
    ),
    "attention_residual_gather_kernel": Plan(256, 5, LOGITS, MAPS, 4 * CELLS * PIXELS, 18_380, half=3),
    "matrix_nms_prepare_kernel": Plan(256, 5, MASKS * MASK_PIXELS, BITS),
    "matrix_nms_overlaps_kernel": Plan(256, 2, BITS, 4 * PAIRS),
    "matrix_nms_decay_kernel": Plan(256, 6, 4 * PAIRS, 8 * MASKS),
    # The walk down: 96 threads of four columns of 336; half precision has eight, which take more registers.
    "upsample_add_fwd_kernel": Plan(96, 5, COARSE + ROWS, LARGE, BLEND),
    "upsample_add_bwd_kernel": Plan(96, 5, LARGE, COARSE + ROWS, BLEND, WALK_BACK),
    "dice_loss_fwd_kernel": Plan(96, 6, COARSE + ROWS + LARGE / 4, 0, 3 * BLEND),
    "dice_loss_sum_kernel": Plan(128, 8, 0, 0),
    "dice_loss_bwd_kernel": Plan(96, 5, COARSE + ROWS + LARGE / 4, COARSE + ROWS, 4 * BLEND, WALK_BACK),
    "mask_bits_fwd_kernel": Plan(96, 6, COARSE + ROWS, LARGE / 32, 3 * BLEND),
    "mask_bits_sum_kernel": Plan(128, 8, 0, 0),
    "mask_bits_pack_kernel": Plan(128, 8, LARGE / 32, LARGE / 32),  # where rows are not whole bytes
    "paste_masks_maps_kernel": Plan(96, 8, COARSE + ROWS, LARGE, 3 * BLEND),
    "paste_masks_fwd_kernel": Plan(128, 3, LARGE, IMAGE, 4 * IMAGE, 32_768),
    "paste_masks_columns_kernel": Plan(
        128, 2, LARGE, IMAGE / 8, 4 * IMAGE, 32_768
    ),  # for run lengths, as these:
    "paste_masks_count_kernel": Plan(256, 4, IMAGE / 8, 8 * CHOSEN * 2048),
    "paste_masks_begin_kernel": Plan(32, 1, 8 * CHOSEN, 8 * CHOSEN),
    "paste_masks_write_kernel": Plan(256, 4, IMAGE / 8 + 8 * CHOSEN * 2048, 0),
}


@dataclass(frozen=True)
class Usage:
    """One instantiation of a kernel on one arch, from cuobjdump.

    `usual`: it is not of float64, nor for input that is not aligned, of which there is little. `tf32`: it is
    of float32 as tf32. `half`: it is of half precision.
    """

    kernel: str
    usual: bool
    arch: int
    registers: int
    stack: int
    local: int
    shared: int
    tf32: bool = False
    half: bool = False

    @property
    def planned(self) -> int:
        """The planned number of blocks per SM."""
        plan = PLANS[self.kernel]
        return plan.half if self.half and plan.half else plan.blocks

    @property
    def blocks(self) -> int:
        """The number of blocks per SM that fit."""
        plan = PLANS[self.kernel]
        warps = plan.threads // 32
        by_registers = 65_536 // (-(-self.registers * 32 // 256) * 256) // warps
        by_shared = SHARED[self.arch] // (self.shared + plan.dynamic + RESERVED)
        return min(by_registers, by_shared, 2048 // plan.threads)


def cuobjdump() -> str | None:
    """The cuobjdump of the toolkit, or the one in Triton's package."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    mine = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(mine) if mine.exists() else None


def usages(library: Path = LIBRARY) -> list[Usage]:
    """The resources of every kernel in the extension.

    Raises:
        RuntimeError: there is no cuobjdump, or it cannot read the extension.
    """
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError("there is no cuobjdump: it comes with a CUDA toolkit and with Triton")
    done = subprocess.run([tool, "-res-usage", str(library)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump: {done.stderr}")
    found, arch = [], 0
    for part in re.split(r"\n(?=Fatbin |arch = | Function )", done.stdout):
        if match := re.match(r"arch = sm_(\d+)", part):
            arch = int(match[1])
        if match := re.match(r" Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part):
            # Mangled: the length of a name stands before it, template arguments after it between I and E.
            name = re.search(r"\d([a-z_]+_kernel)", match[1])
            assert name is not None, match[1]
            usual = re.search(r"kernelI(d|\w*?L(i1|b0)E)", match[1]) is None
            registers, stack, shared, local = (int(match[k]) for k in (2, 3, 4, 5))
            asked = max(0, shared - (RESERVED if arch >= 90 else 0))
            tf32 = "4Tf32" in match[1]
            half = re.search("Half|BFloat16", match[1]) is not None
            found.append(Usage(name[1], usual, arch, registers, stack, local, asked, tf32, half))
    return found


def compiler() -> str:
    """The compiler of the extension, and the architectures."""
    facts = json.loads((LIBRARY.parent / "_build.json").read_text())
    return f"By nvcc {facts['nvcc']} for {', '.join(facts['archs'])}:\n"


def table(found: list[Usage]) -> str:
    """A table row for each kernel."""
    rows = [
        compiler(),
        "| kernel | reads | writes | GFLOP | floor on an H200 | threads | registers | shared memory "
        "| blocks planned | on 8.0 | on 9.0 | on 10.0 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, plan in PLANS.items():
        mine = [usage for usage in found if usage.kernel == name and usage.usual]
        registers = [usage.registers for usage in mine]
        shared = plan.dynamic + max(usage.shared for usage in mine)
        held = [min((usage.blocks for usage in mine if usage.arch == arch), default=0) for arch in SHARED]
        cells = [
            f"`{name}`",
            f"{plan.read / 1e6:.1f} MB",
            f"{plan.written / 1e6:.1f} MB",
            f"{plan.flops / 1e9:.2f}",
            f"{plan.floor:.1f} us",
            str(plan.threads),
            f"{min(registers)} to {max(registers)}",
            f"{shared / 1024:.1f} KiB",
            f"{plan.blocks}, {plan.half} in half precision" if plan.half else str(plan.blocks),
            *map(str, held),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def written(page: str, rows: str) -> str:
    """The page with these rows in its generated block."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + rows + END + rest.partition(END)[2]


def main() -> None:
    """Print the table, and with --write put it into the page."""
    rows = table(usages())
    print(rows)
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
