"""Reading machine code: on a listing made up for it, and what the kernels that are built must hold."""

from dataclasses import replace

import pytest

from solo_attn.backends import compiled
from tools import hot_loops, sass
from tools.kernel_resources import cuobjdump

NAME = "_ZN9solo_attn12upsample_add23upsample_add_fwd_kernelIfLi4ELb1EEEvPKT_"
UNALIGNED = NAME.replace("Li4ELb1", "Li1ELb0")


def listing(*lines, name=NAME):
    """As cuobjdump prints it: an instruction every 16 bytes."""
    head = f'\n\t\tFunction : {name}\n\t.headerflags\t@"EF_CUDA_SM90"\n'
    return head + "".join(f"        /*{16 * k:04x}*/  {line} ;  /* 0x0 */\n" for k, line in enumerate(lines))


# A loop over columns around one over rows, in which a new row of the input is enlarged now and then; before
# it a smaller loop that stores as well, and fewer pixels.
LINES = (
    "S2R R0, SR_TID.X",
    "STG.E desc[UR4][R2.64], R4",  # 10: an edge
    "@P2 BRA 0x10",
    "LDS R8, [R9]",  # 30: a line of taps
    "ISETP.NE.AND P0, PT, R1, RZ, PT",  # 40: the rows
    "@!P0 BRA 0x80",
    "LDG.E R5, desc[UR4][R6.64]",
    "FFMA R5, R5, R5, R5",
    "FFMA R4, R5, R6, R7",  # 80
    "@P3 STG.E.128 desc[UR4][R2.64], R4",
    "IADD3 R0, R0, 0x1, RZ",
    "@P1 BRA 0x40",
    "@P2 BRA 0x30",
    "EXIT",
    "BRA 0xe0",
)
LOOP = hot_loops.Loop(
    "upsample_add", "upsample_add_fwd_kernel", "", "pixel", hot_loops.STORED, 1e6, 8e6, aside=0.25
)


def code(*lines):
    (found,) = sass.functions(listing(*lines)).values()
    return found


def test_functions():
    text = listing("NOP", "EXIT") + listing("@P0 FADD R0, R1, -|R2|", name=UNALIGNED)
    found = sass.functions(text)
    assert found == {NAME: [(0, "NOP"), (16, "EXIT")], UNALIGNED: [(0, "@P0 FADD R0, R1, -|R2|")]}


def test_loops():
    """The branch to itself, which ends each function, is none."""
    starts = [(loop[0][0], loop[-1][0]) for loop in sass.loops(code(*LINES))]
    assert starts == [(0x10, 0x20), (0x40, 0xB0), (0x30, 0xC0)]


def test_the_hot_loop():
    """The innermost that stores the most: not the edge, and not the columns around."""
    body = sass.hot(code(*LINES), hot_loops.STORED)
    assert (body[0][0], body[-1][0]) == (0x40, 0xB0)
    with pytest.raises(ValueError, match="expected a loop with STG"):
        sass.hot(code("STG.E R0", "EXIT"), hot_loops.STORED)


def test_cost():
    """Six instructions each time, two for a quarter of the rows, four pixels in 16 bytes."""
    assert sass.cost(code(*LINES), LOOP) == sass.Cost(6.5 / 4)
    wide = replace(LOOP, marker=hot_loops.Marker("STG", 4, 16))
    assert sass.cost(code(*LINES), wide).narrow == ()
    narrow = [line.replace("STG.E.128", "STG.E.64") for line in LINES]
    assert sass.cost(code(*narrow), wide) == sass.Cost(6.5 / 2, (narrow[9],))


def test_the_way_passes_every_unit():
    """A way around a store is shorter, and does less."""
    lines = ("MUFU.EX2 R1, R1", "@P0 BRA 0x30", "MUFU.EX2 R2, R2", "NOP", "@P1 BRA 0x0", "EXIT")
    loop = replace(LOOP, marker=hot_loops.SIGMOID)
    assert sass.cost(code(*lines), loop) == sass.Cost(5 / 2)


@pytest.mark.parametrize(
    ("instruction", "size"),
    [
        ("STG.E desc[UR4][R2.64], R4", 4),
        ("STG.E.64 desc[UR4][R2.64], R4", 8),
        ("LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]", 16),
        ("STG.E.U8 desc[UR4][R2.64], R4", 1),
        ("LDG.E.U16 R1, desc[UR4][R2.64]", 2),
    ],
)
def test_width(instruction, size):
    assert hot_loops.width(instruction) == size


def test_the_dearest_form_counts():
    longer = (*LINES[:8], "FFMA R0, R0, R0, R0", *LINES[8:])
    longer = [line.replace("0x80", "0x90") for line in longer]
    kernel = "attention_residual_stream_kernel"
    name = NAME.replace("23upsample_add_fwd_kernel", f"32{kernel}")
    text = listing(*LINES, name=name) + listing(*longer, name=name.replace("Li4", "Li8"))
    text += listing("STG.E R0", "BRA 0x0", name=name.replace("Li4ELb1", "Li1ELb0"))
    (loop,) = (loop for loop in sass.LOOPS if loop.kernel == kernel)
    each = sass.costs(sass.functions(text))[kernel]
    assert each.instructions == pytest.approx((6 + 3 * loop.aside) / 4)


# Rows of pixels; a new row of an input, read once or twice; and a row that is done, with a loop in a loop.
WALK = (
    "STG.E.128 desc[UR4][R2.64], R4",  # 0
    "@P0 BRA 0x60",
    "IADD3 R0, R0, 0x1, RZ",
    "LDG.E R5, desc[UR4][R6.64]",  # 30: once
    "@P1 BRA 0x30",
    "MOV R6, R7",
    "@P0 BRA 0xe0",  # 60
    "@P2 BRA 0xd0",  # 70: once
    "BAR.SYNC 0x0",
    "LDS R4, [R5]",  # 90: all columns
    "LDS R4, [R5]",  # a0: all pixels of one
    "@P3 BRA 0xa0",
    "@P4 BRA 0x90",
    "@P2 BRA 0x70",  # d0
    "@P5 BRA 0x0",  # e0
)


def test_loops_inside_count_as_often_as_they_are_gone_round():
    found = sass.times(code(*WALK), ((0.5,), (0.25, 0.5, 8)))
    assert found == [1, 1, *[0.5] * 4, 1, 0.25, *[0.125] * 2, 1, 1, 0.125, 0.25, 1]


def test_loops_that_nothing_is_said_of():
    for ways in [((0.5,),), ((0.5,), (0.25, 0.5))]:
        with pytest.raises(ValueError, match=r"expected \d loops between \d+ and \d+, got \d"):
            sass.times(code(*WALK), ways)


def test_times():
    issue, memory = sass.microseconds(LOOP, sass.Cost(528 * 19 / 100))
    assert (issue, memory) == (pytest.approx(1e6 * 1e6 / 32 * 0.19 / 1.9e9), {"H100": 8 / 3, "H200": 8 / 4.3})


def test_a_kernel_that_falls_back_is_named():
    dear = sass.Cost(23.1)
    assert [*sass.beyond({"upsample_add_fwd_kernel": sass.Cost(23)})] == []
    assert [*sass.beyond({"upsample_add_fwd_kernel": dear})] == [
        "upsample_add_fwd_kernel: expected at most 23 instructions a pixel, got 23.1"
    ]
    narrow = sass.Cost(1, ("STG.E R0",))
    assert [*sass.beyond({"attention_residual_stream_kernel": narrow})] == [
        "attention_residual_stream_kernel: expected accesses of 16 bytes, got STG.E R0"
    ]


def test_the_page_keeps_what_stands_around():
    page = f"before\n{sass.BEGIN}old\n{sass.END}after {sass.END}"
    assert sass.written(page, "new\n") == f"before\n{sass.BEGIN}new\n{sass.END}after {sass.END}"


@pytest.fixture(scope="module")
def built():
    if "cuda" not in compiled.CONFIGURATION["ops"]:
        pytest.skip("the extension in this tree has no CUDA kernels")
    if cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    return sass.costs(sass.functions(sass.listing()))


def test_kernels_are_found(built):
    assert {loop.kernel for loop in sass.LOOPS} <= set(built)


def test_no_kernel_falls_back(built):
    assert [*sass.beyond(built)] == []


def test_the_page_is_up_to_date(built):
    rows = sass.table(built)
    page = sass.PAGE.read_text()
    assert sass.written(page, rows) == page, "python -m tools.sass --write"
