"""The parts of tools/arm64.py that need neither a compiler for ARM64 nor an emulator."""

from __future__ import annotations

import re

import pytest

from tools import arm64

# As objdump writes it: a loop within a loop, and instructions outside of both.
ASSEMBLY = """
0000000000000000 <_ZN9solo_attn3sumEPKfl>:
   0:	fmla	v0.4s, v1.4s, v2.4s
   4:	ldr	q1, [x0], #16
   8:	{inner}
   c:	cmp	x0, x1
  10:	b.ne	4 <_ZN9solo_attn3sumEPKfl+0x4>  // b.any
  14:	fadd	v0.4s, v0.4s, v3.4s
  18:	cbnz	x2, 0 <_ZN9solo_attn3sumEPKfl>
  1c:	b	8c <_ZN9solo_attn4nextEv>
  20:	ret
"""


@pytest.mark.parametrize(
    ("inner", "computes"),
    [
        ("fadd	v3.4s, v3.4s, v1.4s", True),
        ("cnt	v1.8b, v1.8b", True),
        ("fadd	s3, s3, s1", False),
        ("fmov	v1.4s, #1.0", False),
        ("add	x0, x0, #0x10", False),
    ],
)
def test_loops_that_compute_with_neon(inner: str, computes: bool) -> None:
    (loop,) = arm64.innermost_loops(ASSEMBLY.format(inner=inner))
    assert loop.splitlines()[:2] == ["ldr	q1, [x0], #16", inner]
    assert len(loop.splitlines()) == 4
    assert (re.search(arm64.VECTOR, loop) is not None) == computes


def test_says_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["arm64"])
    with pytest.raises(
        SystemExit, match=r"expected .*g\+\+-aarch64-linux-gnu.*, got no .*qemu-user"
    ) as error:
        arm64.main()
    assert "\n" not in str(error.value)
