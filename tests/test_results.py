"""The README's numbers are those of the stored measurements."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    specification = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_readme_says_what_was_measured(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text) == text, "README and benchmarks/results disagree: make results"


def test_a_changed_number_is_found(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    really = readme.stored

    def changed(name: str) -> dict:
        found = really(name)
        if name == "nuclei":
            found["metrics"]["ap50"] += 0.1
        return found

    monkeypatch.setattr(readme, "stored", changed)
    assert readme.filled(text) != text


def test_a_changed_time_is_found(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    really = readme.stored

    def changed(name: str) -> dict:
        found = really(name)
        if name == "ops":
            found["benchmarks"]["mask_iou"]["seconds"]["pycocotools"]["median"] *= 2
        return found

    monkeypatch.setattr(readme, "stored", changed)
    assert readme.filled(text) != text


def test_what_misses_is_explained(readme: ModuleType) -> None:
    unexplained = set(readme.speed_tables.missed(readme.stored)) - set(readme.speed_tables.REASONS)
    assert not unexplained, "say why in REASONS of benchmarks/speed.py"


def test_every_result_names_machine_and_commit(readme: ModuleType) -> None:
    for path in readme.RESULTS.glob("*.json"):
        name = path.stem
        if name == "nuclei_found":
            continue  # what was drawn from the run of nuclei.json
        found = str(readme.stored(name))
        for key in ("commit", "device", "date", "torch"):
            assert re.search(rf"'{key}': '[^']+'", found), (name, key)


def test_readme_links_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / target).exists(), target
