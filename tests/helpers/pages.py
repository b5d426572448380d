"""Pages of docs/, followed word for word: their Python and their commands, in one folder, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of each block that can be run, lines of commands that go on joined."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    assert {language for language, _ in found} <= {"python", "sh", "text", "bibtex"}
    joined = ((language, code.replace("\\\n", " ")) for language, code in found)
    return [(language, code) for language, code in joined if language in ("python", "sh")]


def script(page: str) -> str:
    """The page as one Python program. Installing is left to whoever runs the tests."""
    lines = ["import subprocess, sys"]
    for language, block in blocks(page):
        if language == "python":
            lines.append(block)
            continue
        for line in block.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["solo-attn"]:
                program = "from solo_attn.__main__ import main; main()"
                lines.append(f"subprocess.run([sys.executable, '-c', {program!r}, *{words[1:]}], check=True)")
            else:
                assert words[:2] == ["pip", "install"], line
    return "\n".join(lines)


def follow(page: str, folder: Path, *libraries: Path) -> str:
    """What the page prints. ``libraries`` are folders that hold what it installs."""
    paths = [str(ROOT), *map(str, libraries)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script(page)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(page: str) -> list[list[str]]:
    """The words of each command of a page."""
    code = "\n".join(code for language, code in blocks(page) if language == "sh")
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


def follow_here(page: str, folder: Path) -> list[str]:
    """What the page prints if it is followed in this process: an entry a ``print`` and an entry a command."""
    printed: list[str] = []
    scope = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, block in blocks(page):
            if language == "python":
                exec(block, scope)
                continue
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] != ["pip", "install"]:
                    assert words[0] == "solo-attn", line
                    code, output = command_line.run(*words[1:])
                    assert code == 0, output
                    printed.append(output)
    return printed
