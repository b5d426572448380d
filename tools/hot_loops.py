"""The CUDA kernels' hot loops, which tools/sass.py counts in their machine code, and what each may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The sizes that are reckoned with, in float32: the paper's finest level.
SIDE, LEVEL, SIZE = 40, (84, 168), (168, 336)
CELLS, COARSE, PIXELS = SIDE**2, LEVEL[0] * LEVEL[1], SIZE[0] * SIZE[1]
NEW_ROW = LEVEL[0] / SIZE[0]  # of the rows of pixels, those that reach a new row of coarse logits
NEW_GRID_ROW = SIDE / SIZE[0]
# The walk down (csrc/common/walk.cuh): a new row of the coarse logits, and one of the grid.
WALK = ((NEW_ROW,), (NEW_GRID_ROW,))
# Back (walk_back.cuh): the same, and of each input a row that is done. Every fourth time four rows are added
# up along x, by three warps: 168 columns take each of them twice, 40 only two; of so many pixels each.
WALK_BACK = (*WALK, (NEW_ROW, 2 / 4, 4), (NEW_GRID_ROW, 2 / 3 / 4, 2 * SIZE[1] / SIDE))
GIVEN = 4 * (COARSE + CELLS)  # bytes of a cell's coarse logits and attention row


@dataclass(frozen=True)
class Marker:
    """An instruction that stands for units of work.

    Attributes:
        pattern: of the instruction, a regular expression.
        bytes: of memory that stand for one unit, where the instruction says how many it moves; 0: the
            instruction itself is one unit.
        widest: bytes that each of them is to move; 0 where that is no matter.
    """

    pattern: str
    bytes: float = 0
    widest: int = 0

    def units(self, instruction: str) -> float:
        """Of one instruction of one thread."""
        if not re.match(rf"(?:@\S+ )?{self.pattern}", instruction):
            return 0
        return width(instruction) / self.bytes if self.bytes else 1


def width(instruction: str) -> int:
    """Bytes that a load or store moves for a thread."""
    parts = re.sub(r"^@\S+ ", "", instruction).partition(" ")[0].split(".")
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((size for name, size in sizes.items() if name in parts), 4)


@dataclass(frozen=True)
class Loop:
    """A hot loop, and what it may cost.

    Attributes:
        op, kernel: the op's name, and the kernel's.
        what: the sizes that `units` and `moved` are for.
        unit: of work, in a word.
        marker: what stands for it.
        units: of work in all.
        moved: bytes that the kernel has to move, each once.
        limit: instructions a unit that it must not pass; None where none was set.
        aside: the share of passes that go what is not the shortest way, where `ways` is empty.
        ways: for each loop inside of this one, in order, how often it is gone round in each pass; then the
            same of the loop inside of that, for each time round, and so on.
        instance: of the kernel's mangled name, what tells the form that is counted.
    """

    op: str
    kernel: str
    what: str
    unit: str
    marker: Marker
    units: float
    moved: float
    limit: float | None = None
    aside: float = NEW_GRID_ROW
    ways: tuple[tuple[float, ...], ...] = ()
    instance: str = r"If(?!\w*?L(i1|b0)E)"  # of float32, for input that is aligned


SIGMOID = Marker(r"MUFU\.EX2")
STORED = Marker(r"STG\.E", 4)
LOOPS = (
    Loop(
        "attention_residual",
        "attention_residual_stream_kernel",
        "one image, in place or not",
        "pixel",
        Marker(r"STG\.E", 4, 16),
        CELLS * PIXELS,
        8 * CELLS * PIXELS,
        14,
    ),
    Loop(
        "attention_residual",
        "attention_residual_gather_kernel",
        "backward, one image",
        "pixel",
        Marker(r"(LDGSTS|LDG)\.E", 4, 16),
        CELLS * PIXELS,
        4 * CELLS * (PIXELS + CELLS),
        None,
    ),
    Loop(
        "upsample_add",
        "upsample_add_fwd_kernel",
        "100 cells",
        "pixel",
        STORED,
        100 * PIXELS,
        100 * (4 * PIXELS + GIVEN),
        23,
        ways=WALK,
    ),
    Loop(
        "mask_bits",
        "mask_bits_fwd_kernel",
        "200 cells",
        "pixel",
        SIGMOID,
        200 * PIXELS,
        200 * (PIXELS / 8 + GIVEN),
        33,
        ways=WALK,
    ),
    Loop(
        "dice_loss",
        "dice_loss_fwd_kernel",
        "300 cells",
        "pixel",
        SIGMOID,
        300 * PIXELS,
        300 * (PIXELS + GIVEN),
        34,
        ways=WALK,
    ),
    Loop(
        "dice_loss",
        "dice_loss_bwd_kernel",
        "300 cells",
        "pixel",
        SIGMOID,
        300 * PIXELS,
        300 * (PIXELS + 2 * GIVEN),
        67,
        ways=WALK_BACK,
    ),
    Loop(
        "paste_masks",
        "paste_masks_fwd_kernel",
        "100 masks of 1024 x 2048",
        "pixel",
        Marker(r"STG\.E", 1),
        100 * 1024 * 2048,
        100 * (1024 * 2048 + 4 * PIXELS),
        10,
        0.25,
    ),
)
