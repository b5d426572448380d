"""The numbers in README and docs are those of the stored measurements."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import ROOT
from benchmarks.report import data_page, readme, results_page, stored

PAGES = {page.PAGE.name: page for page in (data_page, results_page)} | {"README.md": readme}


def text_of(name: str) -> str:
    return (ROOT / ("" if name == "README.md" else "docs") / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_was_measured(name: str) -> None:
    text = text_of(name)
    assert PAGES[name].filled(text) == text, f"{name} and benchmarks/results disagree: make results"


@pytest.mark.parametrize(
    ("page", "file", "change"),
    [
        ("README.md", "nuclei", lambda found: found["metrics"].update(ap50=0.123)),
        ("README.md", "mmdet", lambda found: found["benchmarks"]["mmdet_train"]["memory"].clear()),
        ("data.md", "inspect", lambda found: found["nuclei"].update(images=12)),
        ("results.md", "attention_scale", lambda found: found["1"].update({"train/dice": 0.5})),
        ("results.md", "ops", lambda found: found["benchmarks"].popitem()),
        ("results.md", "demo", lambda found: found["summary"]["systems"]["SOLO"]["mean"].update(ap=0.9)),
    ],
)
def test_a_changed_number_is_found(
    page: str, file: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = stored.kept

    def changed(name: str, machine: str = stored.CPU) -> Any:
        found = really(name, machine)
        if (name, machine) == (file, stored.CPU):
            change(found)
        return found

    monkeypatch.setattr(stored, "kept", changed)
    assert PAGES[page].filled(text_of(page)) != text_of(page)


def test_a_changed_text_is_found() -> None:
    text = text_of("data.md")
    assert data_page.filled(text.replace("| as set |", "| before |")) == text
    with pytest.raises(ValueError, match=r"expected blocks inspect in data.md, got inspect, other"):
        data_page.filled(text + "<!-- begin:other -->\n<!-- end:other -->")
    with pytest.raises(ValueError, match=r"expected one end of block inspect in data.md, got 0"):
        data_page.filled(text.replace("<!-- end:inspect -->", ""))


def test_every_result_names_machine_and_commit() -> None:
    paths = sorted(stored.RESULTS.rglob("*.json"))
    assert paths
    for path in paths:
        if path.stem == "nuclei_found":
            continue  # what was drawn from the run of nuclei.json
        found = str(json.loads(path.read_text(encoding="utf-8")))
        for key in ("commit", "device", "date", "torch"):
            assert re.search(rf"'{key}': '[^']+'", found), (path, key)
    for report in stored.kept("inspect").values():
        assert "dirty" not in report["environment"]["commit"]


@pytest.mark.parametrize("name", ["README.md", "results.md", "data.md"])
def test_links_exist(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    text = text_of(name)
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, heading = target.partition("#")
        assert (folder / file).exists(), target
        assert file or heading in headings, target


def test_what_is_said_of_gpus_is_so() -> None:
    said = "Nothing here has been measured on a GPU yet" in text_of("README.md")
    assert said == (stored.machines() == [stored.CPU])
