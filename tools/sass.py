"""What each CUDA kernel's hot loop costs, read in its machine code, and the time that this predicts.

``python -m tools.sass`` prints the table, ``--write`` puts it into docs/kernels.md. It reads the code for
sm_90 in the extension that is built, with NVIDIA's cuobjdump; no GPU is needed, and nothing is timed.

A hot loop is found by what it does with a unit of work (a pixel, say): its marker, such as a store to global
memory of so many bytes. Where it holds smaller loops, as the walk does that reaches a new row of an input now
and then, tools/hot_loops.py says how often each is gone round: their instructions count so often, those that
a branch passes over with them as often but once at most, and all others once, though not every pass may come
there. Where it holds none, counted are the instructions of the shortest way through it that passes every
marker, and of what stands beside that way a share: how often a pass goes there.
"""

from __future__ import annotations

import heapq
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .hot_loops import LOOPS, Loop, Marker, width
from .kernel_resources import LIBRARY, PAGE, compiler, cuobjdump

BEGIN, END = "<!-- tools/sass.py -->\n", "<!-- end -->\n"
ARCH = 90

# 132 multiprocessors of 4 schedulers, each of which issues one instruction of a warp in a cycle; an assumed
# clock under load; and the rate of a copy, as published for an H100 SXM, and as assumed of an H200.
SCHEDULERS, CLOCK = 528, 1.9e9
COPY = {"H100": 3.0e12, "H200": 4.3e12}


@dataclass(frozen=True)
class Cost:
    """Of one hot loop, for each unit of work and thread.

    Attributes:
        instructions: as often as they run.
        narrow: markers that move fewer bytes than they are to.
    """

    instructions: float
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


def inner(loop: Code) -> dict[int, int]:
    """Loops inside of one: where each begins and ends, as places in it."""
    places = {address: place for place, (address, _) in enumerate(loop)}
    found: dict[int, int] = {}
    for part in loops(loop):
        begin, end = places[part[0][0]], places[part[-1][0]]
        if (begin, end) != (0, len(loop) - 1):
            found[begin] = max(end, found.get(begin, 0))
    return found


def times(loop: Code, ways: tuple[tuple[float, ...], ...]) -> list[float]:
    """How often each instruction of a loop runs in one pass, where the loops inside go round as `ways` says.

    Raises:
        ValueError: there are other loops inside than `ways` tells of.
    """
    places = {address: place for place, (address, _) in enumerate(loop)}
    skips = [(at, places.get(target(instruction) or -1, -1)) for at, (_, instruction) in enumerate(loop)]
    found, result = inner(loop), [1.0] * len(loop)

    def visit(first: int, last: int, given: list[tuple[float, ...]]) -> None:
        within = {b: e for b, e in found.items() if first <= b and e <= last and (b, e) != (first, last)}
        outer = [b for b, e in within.items() if not any(o < b and e <= within[o] for o in within)]
        if len(outer) != len(given) or not all(given):
            raise ValueError(f"expected {len(given)} loops between {first} and {last}, got {len(outer)}")
        for begin, way in zip(sorted(outer), given, strict=True):
            end = within[begin]
            over = [(at, to) for at, to in skips if first <= at < begin and end < to <= last]
            at, to = min(over, key=lambda skip: skip[1] - skip[0], default=(begin - 1, end + 1))
            for place in range(at + 1, to):
                result[place] *= way[0] if begin <= place <= end else min(1.0, way[0])
            deeper = [b for b, e in within.items() if begin < b and e <= end]
            visit(begin, end, [way[1:]] if deeper else [])

    visit(0, len(loop) - 1, list(ways))
    return result


def cost(code: Code, loop: Loop) -> Cost:
    """Of the hot loop in a function.

    Raises:
        ValueError: it has none with the marker, or other loops inside than is said of it.
    """
    body = hot(code, loop.marker)
    marks = [place for place, (_, instruction) in enumerate(body) if loop.marker.units(instruction)]
    units = sum(loop.marker.units(body[place][1]) for place in marks)
    narrow = tuple(body[place][1] for place in marks if width(body[place][1]) < loop.marker.widest)
    if loop.ways:
        return Cost(sum(times(body, loop.ways)) / units, narrow)
    shortest, at = 0.0, 0
    for place in [*marks, len(body) - 1]:
        more = steps(body, at, place)
        if more < float("inf"):  # else it stands in another branch than the one before
            shortest, at = shortest + more, place
    shortest += 1
    return Cost((shortest + loop.aside * (len(body) - shortest)) / units, narrow)


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
