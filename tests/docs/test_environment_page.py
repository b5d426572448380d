"""docs/environment.md names every variable that the code reads, and no other of ours."""

from __future__ import annotations

import re

from pages import ROOT

PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
READ = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|envvar=)\s*["'](\w+)["']""")
# Ours are named by strings of their own too, which a constant may hold.
OURS = re.compile(r"""["'](SOLO_ATTN_[A-Z_]+)["']|^export (SOLO_ATTN_[A-Z_]+)=""", re.MULTILINE)
# Read only to find the tools of a test.
OTHERS = {"PATH"}
FOLDERS = ("solo_attn", "kernels", "csrc", "tests", "benchmarks", "tools")


def named() -> set[str]:
    rows = re.findall(r"^\| (`.+?) \| ", PAGE, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def read() -> set[str]:
    files = [ROOT / "setup.py", ROOT / ".ci" / "run"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".h", ".cu")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.name != "test_environment_page.py"]
    ours = {name for text in texts for pair in OURS.findall(text) for name in pair if name}
    macros = {name for text in texts for name in re.findall(r"#define (SOLO_ATTN_\w+)", text)}
    return {name for text in texts for name in READ.findall(text)} | ours - macros - {"SOLO_ATTN_SHARED"}


def test_every_variable_is_there() -> None:
    assert read() - OTHERS <= named()


def test_no_other_of_ours_is_there() -> None:
    assert {name for name in named() if name.startswith("SOLO_ATTN_")} <= read()


def test_some_are_read() -> None:
    assert {"SOLO_ATTN_BACKEND", "LOCAL_RANK", "SOLO_ATTN_SIMD", "SOLO_ATTN_DEBUG", "MAX_JOBS"} <= read()
