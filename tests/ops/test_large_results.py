"""Memory of large results of the C++ kernels: huge pages, and pieces that are kept for the next results."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solo_attn import attention_residual, paste_masks, upsample_add
from solo_attn.backends import release_memory
from solo_attn.ops.bit_masks import unpack_masks

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")
PAGE = 2 << 20


def mapping_of(address: int) -> dict[str, str] | None:
    """What the system says of the memory there, or None if there is none."""
    found: dict[str, str] | None = None
    for line in SMAPS.read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            if found is not None:
                return found
            if int(place[1], 16) <= address < int(place[2], 16):
                found = {}
        elif found is not None:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    return found


def takes_lazily() -> bool:
    """Whether this system takes memory when it runs short, and says so: some sandboxes do not."""
    if not SMAPS.exists():
        return False
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        torch.frombuffer(own, dtype=torch.uint8).fill_(1)
        try:
            own.madvise(mmap.MADV_FREE)
        except (AttributeError, OSError):
            return False
        found = mapping_of(torch.frombuffer(own, dtype=torch.uint8).data_ptr() + PAGE // 2)
    return found is not None and found.get("LazyFree", "0 kB") != "0 kB"


def most_warm() -> int:
    """MiB of what was freed last that stay the process's own."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup", path)
        if limit.exists() and (text := limit.read_text().strip()).isdecimal():
            memory = min(memory, int(text))
    return min(512, (memory >> 20) // 32)


kept_memory = pytest.mark.skipif(
    sys.platform != "linux" or most_warm() < 128, reason="no Linux, or one of less than 4 GiB"
)
lazily = pytest.mark.skipif(not takes_lazily(), reason="a system that takes no memory lazily")


def asked(x: Tensor) -> bool:
    """Whether huge pages were asked for: "hg", or "nh" where they took long, and the rest is small again."""
    found = mapping_of(-(-x.data_ptr() // PAGE) * PAGE)  # of the first whole huge page
    assert found is not None
    return bool({"hg", "nh"} & set(found["VmFlags"].split()))


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_large_results_ask_for_huge_pages() -> None:
    features, coarse = torch.zeros(1, 2, 8, 8), torch.zeros(40, 84, 168)
    size = (168, 336)
    for run in (
        lambda: upsample_add(coarse, None, size, backend="cpu"),
        lambda: attention_residual(torch.zeros(1, 64, 168, 336), features, backend="cpu"),
        lambda: paste_masks(coarse, None, size, size, size, (300, 600), backend="cpu"),
        lambda: unpack_masks(torch.zeros(40, 16384, dtype=torch.int64), 1 << 20),
    ):
        assert asked(run())
    assert not asked(torch.empty(16 * PAGE, dtype=torch.uint8))


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    release_memory()
    yield
    release_memory()


def enlarged(value: float, mebibytes: int = 33, dtype: torch.dtype = torch.float32) -> Tensor:
    """A result of `upsample_add` that is ``value`` everywhere."""
    count = mebibytes << 10  # KiB
    side = {torch.float32: 16, torch.float64: 8}[dtype]
    return upsample_add(torch.full((count, 1, 1), value, dtype=dtype), None, (16, side), backend="cpu")


@kept_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_is_written_into_the_memory_of_one_that_was_freed(dtype: torch.dtype) -> None:
    first = enlarged(1.0, dtype=dtype)
    place = first.data_ptr()
    assert place % PAGE == 0
    second = enlarged(2.0, dtype=dtype)
    assert second.data_ptr() != place, "memory that is in use was given away"
    assert (first == 1).all()
    part = first[-1]
    del first
    third = enlarged(3.0, dtype=dtype)
    assert third.data_ptr() != place, "a part of it is in use"
    assert (part == 1).all()
    del part
    fourth = enlarged(4.0, 40, dtype=dtype)
    assert fourth.data_ptr() != place, "it is too small"
    fifth = enlarged(5.0, dtype=dtype)
    assert fifth.data_ptr() == place
    for value, x in ((2, second), (3, third), (4, fourth), (5, fifth)):
        assert (x == value).all()
        assert x.dtype == dtype


@kept_memory
def test_so_does_the_attention_residual() -> None:
    logits, features = torch.randn(1, 169, 168, 336), torch.randn(1, 2, 13, 13)
    first = attention_residual(logits, features, backend="cpu")
    place, expected = first.data_ptr(), attention_residual(logits, features, backend="reference")
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    first.fill_(float("nan"))
    del first
    again = attention_residual(logits, features, backend="cpu")
    assert again.data_ptr() == place
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-4)


@kept_memory
def test_a_much_smaller_result_does_not_take_a_large_piece() -> None:
    place = enlarged(1.0, 100).data_ptr()
    small = enlarged(2.0, 33)
    assert not place <= small.data_ptr() < place + (100 << 20)
    assert enlarged(3.0, 60).data_ptr() == place


def lazy(found: dict[str, str]) -> int:
    """Bytes of this memory that the system may take."""
    return int(found["LazyFree"].split()[0]) << 10


@kept_memory
@lazily
def test_what_was_freed_last_stays_until_release_memory_gives_it_back() -> None:
    place = enlarged(1.0).data_ptr()
    kept = mapping_of(place)
    assert kept is not None
    assert "wf" in kept["VmFlags"].split(), "a child process does not get it"
    assert lazy(kept) == 0
    assert int(kept["Rss"].split()[0]) >= 16 << 10, "KiB of 33 MiB; a part may be another mapping"
    again = enlarged(2.0)
    assert again.data_ptr() == place
    used = mapping_of(place)
    assert used is not None
    assert "wf" not in used["VmFlags"].split(), "a child process has all that is in use"
    del again
    release_memory()
    assert mapping_of(place) is None


@kept_memory
@lazily
@pytest.mark.slow
def test_the_system_may_take_what_was_freed_before() -> None:
    def taken(places: list[int]) -> list[bool]:
        found = [mapping_of(place) for place in places]
        return [lazy(one) >= 16 << 20 for one in found if one is not None]  # small pages, in batches

    assert taken([enlarged(1.0, most_warm() + 2).data_ptr()]) == [True], "more than may stay"
    release_memory()
    part = most_warm() * 2 // 3
    first, second = enlarged(2.0, part), enlarged(3.0, part)
    places = [first.data_ptr(), second.data_ptr()]
    del first
    assert taken(places) == [False, False]
    del second
    assert taken(places) == [True, False]
    again = [enlarged(value, part) for value in (4.0, 5.0)]
    assert [x.data_ptr() for x in again] == places[::-1], "what stayed is used first"
    assert all(bool((x == value).all()) for x, value in zip(again, (4.0, 5.0), strict=True))


@kept_memory
@lazily
@pytest.mark.slow
def test_what_is_freed_last_is_kept_whatever_else_is() -> None:
    results = [enlarged(1.0, most_warm() // 2) for _ in range(2)]
    large = enlarged(2.0, 700)
    place = large.data_ptr()
    del results, large
    assert enlarged(3.0, 700).data_ptr() == place


@kept_memory
def test_a_child_process_has_results_and_memory_of_its_own() -> None:
    """In a process that has not started threads: whoever forks must not have others."""
    code = """
import os, torch
torch.set_num_threads(1)
from solo_attn import upsample_add
made = lambda value: upsample_add(torch.full((33 << 10, 1, 1), value), None, (16, 16), backend="cpu")
one, two = made(1.0), made(2.0)
place = two.data_ptr()
del two
if (child := os.fork()) == 0:
    three = made(3.0)
    os._exit(0 if (one == 1).all() and (three == 3).all() and three.data_ptr() == place else 1)
four = made(4.0)
assert os.waitpid(child, 0)[1] == 0, "the child's results"
assert (one == 1).all() and (four == 4).all() and four.data_ptr() == place
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@kept_memory
def test_kept_memory_does_not_stand_in_the_way_of_a_limit() -> None:
    """Where a process may only have so much, as under ulimit -d, a new result takes what is kept."""
    code = """
import resource, torch
torch.set_num_threads(1)
from solo_attn import upsample_add
made = lambda mebibytes: upsample_add(torch.ones(mebibytes << 10, 1, 1), None, (16, 16), backend="cpu")
made(40)
kept = [made(40) for _ in range(4)]
del kept
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
most = resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (130 << 20), most))
assert all((part == 1).all() for part in made(200).chunk(20))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@kept_memory
@lazily
@pytest.mark.slow
def test_the_oldest_of_more_than_a_gibibyte_go() -> None:
    results = [enlarged(float(k), 300) for k in range(4)]
    places = [x.data_ptr() for x in results]
    for k in (2, 0, 3, 1):
        results[k] = torch.empty(0)
    assert {k: mapping_of(place) is not None for k, place in enumerate(places)} == {
        0: True,
        1: True,
        2: False,
        3: True,
    }


def test_results_of_many_threads_are_their_own() -> None:
    def work(number: int) -> bool:
        return all(bool((enlarged(float(number + k)) == number + k).all()) for k in range(3))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(0, 40, 5)))
