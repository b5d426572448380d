"""The documentation site builds with no warning, shows all public names, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from pages import ROOT

import solo_attn

PACKAGES = ("ops", "models", "data", "formats", "evaluation", "training", "export")
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Anchors of a page, and what a browser would load or follow."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag in ("img", "script") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(found["href"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "solo_attn"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr  # which of them depends on the version
    return folder / "build" / "site"


def test_every_page_is_in_the_menu() -> None:
    listed = set(re.findall(r"^ +- .*?: (\S+\.md)$", CONFIG, flags=re.MULTILINE))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_warnings_are_errors() -> None:
    assert yaml.safe_load(CONFIG)["strict"] is True


def test_links_and_pictures(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 12
    for path, page in pages.items():
        for target in [*page.loaded, *page.links]:
            if target.startswith(("https://", "http://", "data:")):
                assert target not in page.loaded, f"{path.name} loads {target}"
                continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file).resolve() if file else path
            if other.is_dir():
                other /= "index.html"
            assert other.exists(), f"{path.name}: {target}"
            if anchor and other in pages:
                assert anchor in pages[other].anchors, f"{path.name}: {target}"


def test_every_public_name_is_shown(site: Path) -> None:
    shown = {anchor.rpartition(".")[2] for anchor in Page(site / "api.html").anchors}
    public = {name for name in solo_attn.__all__ if not name.startswith("_")}
    for package in PACKAGES:
        public |= set(importlib.import_module(f"solo_attn.{package}").__all__)
    assert public - shown == set()
