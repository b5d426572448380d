"""The numbers in README and docs are those of the stored measurements."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ROOT
from benchmarks.report import stored
from benchmarks.report.pages import PAGES, filled, text_of

EVERY = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_was_measured(name: str) -> None:
    assert filled(name) == text_of(name), f"{name} and benchmarks/results disagree: make results"


@pytest.mark.parametrize(
    ("page", "file", "change"),
    [
        ("README.md", "nuclei_pretrained", lambda found: found["test_metrics"].update(ap50=0.123)),
        ("README.md", "mmdet", lambda found: found["benchmarks"].pop("mmdet_train")),
        ("docs/install.md", "abi", lambda found: found.update(passed=3)),
        ("docs/install.md", "arm64", lambda found: found.update(failed=3)),
        ("docs/speed.md", "mmdet", lambda found: found["benchmarks"]["mmdet_train"]["memory"].clear()),
        ("README.md", "demo", lambda found: found["summary"]["systems"]["SOLO"]["seeds"][0].update(ap=0.9)),
        (
            "docs/results.md",
            "demo",
            lambda found: found["summary"]["systems"]["SOLO"]["seeds"][0].update(ap=0.9),
        ),
        ("docs/data.md", "inspect", lambda found: found["nuclei"].update(images=12)),
        ("docs/results.md", "attention_scale", lambda found: found["1"].update({"train/dice": 0.5})),
        ("docs/speed.md", "ops", lambda found: found["benchmarks"].popitem()),
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
    assert filled(page) != text_of(page)


def test_a_changed_text_is_found() -> None:
    page = "docs/data.md"
    text = text_of(page)
    assert filled(page, text.replace("| as set |", "| before |")) == text
    with pytest.raises(ValueError, match=r"expected blocks inspect in docs/data.md, got inspect, other"):
        filled(page, text + "<!-- begin:other -->\n<!-- end:other -->")
    with pytest.raises(ValueError, match=r"expected one end of block inspect in docs/data.md, got 0"):
        filled(page, text.replace("<!-- end:inspect -->", ""))


def test_every_result_names_machine_and_commit() -> None:
    paths = sorted(stored.RESULTS.rglob("*.json"))
    assert paths
    for path in paths:
        if path.stem == "nuclei_found":
            continue  # what was drawn from the run of nuclei_pretrained.json
        found = str(json.loads(path.read_text(encoding="utf-8")))
        for key in ("commit", "device", "date", "torch"):
            assert re.search(rf"'{key}': '[^']+'", found), (path, key)
    for report in stored.kept("inspect").values():
        assert "dirty" not in report["environment"]["commit"]


def headings(path: Path) -> set[str]:
    """As GitHub and the site name them in links."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", [*EVERY, "CONTRIBUTING.md", "docs/images/README.md"])
def test_links_exist(name: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text_of(name)):
        file, _, heading = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not heading or heading in headings(path), target


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\((\w+\.md)\)", text_of("docs/index.md")))
    assert {f"docs/{name}" for name in listed} | {"README.md", "docs/index.md"} == set(EVERY)


def test_every_picture_is_used_and_told_of() -> None:
    texts = "".join(map(text_of, EVERY))
    told = re.findall(r"`([\w*]+\.\w+)`", text_of("docs/images/README.md").partition("| file |")[2])
    for path in stored.IMAGES.glob("*.[ps][nv]g"):
        assert f"images/{path.name}" in texts, path.name
        assert any(path.match(pattern) for pattern in told), path.name


def test_what_is_said_of_gpus_is_so() -> None:
    said = "Nothing here has been measured on a GPU yet" in text_of("README.md")
    assert said == (stored.machines() == [stored.CPU])
