"""What each CUDA kernel's hot loop costs, read in its machine code, and the time that this predicts.

``python -m tools.sass`` prints the table, ``--write`` puts it into docs/kernels.md. It reads the code for
sm_90 in the extension that is built, with NVIDIA's cuobjdump; no GPU is needed, and nothing is timed.

A hot loop is found by what it does with a unit of work (a pixel, say): its marker, such as a store to global
memory of so many bytes. Counted are the instructions of the shortest way through the loop that passes every
marker, and of what stands beside that way the share `aside`: how often a pass goes there, as where a row of
pixels reaches a new row of the grid.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .kernel_resources import LIBRARY, PAGE, compiler, cuobjdump

BEGIN, END = "<!-- tools/sass.py -->\n", "<!-- end -->\n"
ARCH = 90

# 132 multiprocessors of 4 schedulers, each of which issues one instruction of a warp in a cycle; an assumed
# clock under load; and the rate of a copy, as published for an H100 SXM and measured on an H200.
SCHEDULERS, CLOCK = 528, 1.9e9
COPY = {"H100": 3.0e12, "H200": 4.3e12}

# The sizes that are reckoned with, in float32: the paper's finest level.
SIDE, LEVEL, SIZE = 40, (84, 168), (168, 336)
CELLS, COARSE, PIXELS = SIDE**2, LEVEL[0] * LEVEL[1], SIZE[0] * SIZE[1]
NEW_ROW = LEVEL[0] / SIZE[0]  # of the rows of pixels, those that reach a new row of coarse logits
NEW_GRID_ROW = SIDE / SIZE[0]
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
        aside: the share of passes that go what is not the shortest way.
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
    aside: float = NEW_ROW + NEW_GRID_ROW
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
        NEW_GRID_ROW,
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
        NEW_GRID_ROW,
    ),
    Loop(
        "upsample_add",
        "upsample_add_fwd_kernel",
        "100 cells",
        "pixel",
        STORED,
        100 * PIXELS,
        100 * (4 * PIXELS + GIVEN),
        33,
    ),
    Loop(
        "mask_bits",
        "mask_bits_fwd_kernel",
        "200 cells",
        "pixel",
        SIGMOID,
        200 * PIXELS,
        200 * (PIXELS / 8 + GIVEN),
        43,
    ),
    Loop(
        "dice_loss",
        "dice_loss_fwd_kernel",
        "300 cells",
        "pixel",
        SIGMOID,
        300 * PIXELS,
        300 * (PIXELS + GIVEN),
        45,
    ),
    Loop(
        "dice_loss",
        "dice_loss_bwd_kernel",
        "300 cells",
        "pixel",
        SIGMOID,
        300 * PIXELS,
        300 * (PIXELS + 2 * GIVEN),
        107,
    ),
    Loop(
        "paste_masks",
        "paste_masks_fwd_kernel",
        "100 masks of 1024 x 2048",
        "pixel",
        Marker(r"STG\.E", 1),
        100 * 1024 * 2048,
        100 * (1024 * 2048 + 4 * PIXELS),
        25,
        0.25,
    ),
)


@dataclass(frozen=True)
class Cost:
    """Of one hot loop, for each unit of work and thread.

    Attributes:
        instructions: the shortest way, and the share of the rest.
        shortest: the shortest way alone.
        narrow: markers that move fewer bytes than they are to.
    """

    instructions: float
    shortest: float
    narrow: tuple[str, ...] = ()


Code = list[tuple[int, str]]  # addresses and instructions


def functions(text: str) -> dict[str, Code]:
    """Of a listing by cuobjdump: each function's instructions, by its mangled name."""
    found = {}
    for part in re.split(r"\n\s*Function : ", text)[1:]:
        name, _, body = part.partition("\n")
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", body)
        found[name.strip()] = [(int(address, 16), " ".join(line.split())) for address, line in lines]
    return found


def target(instruction: str) -> int | None:
    """Where a branch goes."""
    found = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", instruction)
    return int(found[1], 16) if found else None


def loops(code: Code) -> list[Code]:
    """From where a branch goes back to, to the branch."""
    places = {address: place for place, (address, _) in enumerate(code)}
    found = []
    for place, (address, instruction) in enumerate(code):
        to = target(instruction)
        # A function ends with a branch to itself.
        if to is not None and to < address and to in places:
            found.append(code[places[to] : place + 1])
    return found


def hot(code: Code, marker: Marker) -> Code:
    """The loop that does most units and holds no smaller one that does any; of equal ones the shortest.

    Raises:
        ValueError: no loop has the marker.
    """

    def units(loop: Code) -> float:
        return sum(marker.units(instruction) for _, instruction in loop)

    marked = [loop for loop in loops(code) if units(loop)]
    inner = [
        loop
        for loop in marked
        if not any(other is not loop and set(other) < set(loop) and units(other) for other in marked)
    ]
    if not inner:
        raise ValueError(f"expected a loop with {marker.pattern}, got none")
    return max(inner, key=lambda loop: (units(loop), -len(loop)))


def steps(loop: Code, begin: int, end: int) -> float:
    """Instructions on the shortest way from place ``begin`` up to ``end``, itself not counted."""
    places = {address: place for place, (address, _) in enumerate(loop)}
    best, queue = {begin: 0}, [(0, begin)]
    while queue:
        count, place = heapq.heappop(queue)
        if place == end:
            return count
        instruction = loop[place][1]
        to = target(instruction)
        ways = [] if instruction.startswith(("BRA", "EXIT")) else [place + 1]
        ways += [places[to]] if to in places else []
        for way in ways:
            if way < len(loop) and count + 1 < best.get(way, len(loop) * 2):
                best[way] = count + 1
                heapq.heappush(queue, (count + 1, way))
    return float("inf")


def cost(code: Code, loop: Loop) -> Cost:
    """Of the hot loop in a function.

    Raises:
        ValueError: it has none with the marker.
    """
    body = hot(code, loop.marker)
    marks = [place for place, (_, instruction) in enumerate(body) if loop.marker.units(instruction)]
    units = sum(loop.marker.units(body[place][1]) for place in marks)
    shortest, at = 0.0, 0
    for place in [*marks, len(body) - 1]:
        more = steps(body, at, place)
        if more < float("inf"):  # else it stands in another branch than the one before
            shortest, at = shortest + more, place
    shortest += 1
    narrow = tuple(body[place][1] for place in marks if width(body[place][1]) < loop.marker.widest)
    return Cost((shortest + loop.aside * (len(body) - shortest)) / units, shortest / units, narrow)


def listing() -> str:
    """Of the extension that is built.

    Raises:
        RuntimeError: there is no cuobjdump, or it cannot read the extension.
    """
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError("there is no cuobjdump: it comes with a CUDA toolkit and with Triton")
    command = [tool, "-sass", "-arch", f"sm_{ARCH}", str(LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump: {done.stderr}")
    return done.stdout


def costs(found: dict[str, Code]) -> dict[str, Cost]:
    """Of each kernel that is there, by its name: its dearest form."""
    result = {}
    for loop in LOOPS:
        wanted = re.compile(rf"\d{loop.kernel}{loop.instance}")
        forms = [cost(code, loop) for name, code in found.items() if wanted.search(name)]
        if forms:
            result[loop.kernel] = max(forms, key=lambda form: form.instructions)
    return result


def microseconds(loop: Loop, each: Cost) -> tuple[float, dict[str, float]]:
    """To issue the instructions, and to move the bytes on each GPU."""
    issue = 1e6 * loop.units / 32 * each.instructions / SCHEDULERS / CLOCK
    return issue, {name: 1e6 * loop.moved / rate for name, rate in COPY.items()}


def table(found: dict[str, Cost]) -> str:
    """A row for each kernel that is there."""
    rows = [
        compiler(),
        "| kernel | for | instructions | limit | issue | bytes | memory, H100 | H200 | predicted, H100 "
        "| H200 | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for loop in LOOPS:
        if loop.kernel not in found:
            continue
        each = found[loop.kernel]
        issue, memory = microseconds(loop, each)
        cells = [
            f"`{loop.kernel}`",
            loop.what,
            f"{each.instructions:.1f} a {loop.unit}",
            "" if loop.limit is None else f"{loop.limit:g}",
            f"{issue:.1f} us",
            f"{loop.moved / 1e6:.1f} MB",
            *(f"{time:.1f} us" for time in memory.values()),
            *(f"{max(issue, time):.1f} us" for time in memory.values()),
            "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def written(page: str, rows: str) -> str:
    """The page with these rows between its marks."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + rows + END + rest.partition(END)[2]


def beyond(found: dict[str, Cost]) -> Iterable[str]:
    """What passes its limit, in words."""
    for loop in LOOPS:
        each = found.get(loop.kernel)
        if each is None:
            continue
        if loop.limit is not None and each.instructions > loop.limit:
            yield (
                f"{loop.kernel}: expected at most {loop.limit:g} instructions a {loop.unit}, "
                f"got {each.instructions:.1f}"
            )
        for instruction in each.narrow:
            yield f"{loop.kernel}: expected accesses of {loop.marker.widest} bytes, got {instruction}"


def main() -> None:
    """The command."""
    found = costs(functions(listing()))
    rows = table(found)
    print(rows)
    for line in beyond(found):
        print(line, file=sys.stderr)
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
