"""The report, in a browser: it opens, loads nothing, and its pictures are seen."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_coco import CocoSet, block, compressed

from solo_attn.data import CocoInstances, eval_transforms
from solo_attn.evaluation import CocoMetrics, evaluate, write_comparison_report, write_report

CURVE = [
    {"step": k, "train/loss_mask": 3 / (k + 1), "train/loss_category": 1 / (k + 1), "val/ap": k / 10}
    for k in range(5)
]


def result(image_id: int, category: int, score: float, mask: np.ndarray) -> dict:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "image_id": image_id,
        "category_id": category,
        "score": score,
        "bbox": [float(side) for side in box],
        "segmentation": compressed(mask),
    }


# Of the objects 11 is found, 12 found twice and 13 missed; one instance is no object, one has a low score.
RESULTS = [
    result(7, 50, 0.9, block(4, 3, 9, 8)),
    result(7, 20, 0.8, block(15, 5, 4, 6)),
    result(7, 20, 0.7, block(15, 5, 4, 5)),
    result(3, 50, 0.6, block(2, 2, 5, 5)),
    result(7, 50, 0.1, block(20, 2, 8, 16)),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = CocoSet(tmp_path_factory.mktemp("set"))
    made.content["categories"][0]["name"] = "<fork> & co"
    dataset = CocoInstances(*made.write(), eval_transforms())
    metrics = evaluate(dataset.coco, RESULTS)
    path = made.folder / "report.html"
    write_report(
        path,
        dataset,
        RESULTS,
        metrics,
        title="A <run>",
        facts={"steps": "5"},
        curve=CURVE,
        test_metrics=metrics,
    )
    return path


class Page(HTMLParser):
    """What a browser would load, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += f" {data.strip()}"


def test_what_it_says(page: Path) -> None:
    found = Page(page)
    text = " ".join(found.text.split())
    assert all(source.startswith("data:") for source in found.loaded)
    assert "url(" not in page.read_text()
    assert len(found.loaded) == 1 + 2 + 2 + 2, "the icon, two plots, two pairs of pictures, two worst images"
    for words in (
        "A <run>",
        "steps 5",
        "1 missed of 3 objects",
        "1 further instances of found objects",
        "<fork> & co",
        "further instances of an object that is found 1",
        "instances where no object is 1",
        "7.png: of 3 objects 1 missed, 1 further instances of found ones; 0 false",
        "3.png: of 0 objects 0 missed, 0 further instances of found ones; 1 false",
        "per cent validation test",
    ):
        assert words in text, words
    assert page.stat().st_size < 200_000


def seen(path: Path, folder: Path, width: int) -> np.ndarray:
    """What a browser without a window shows, RGB [H, W, 3]."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    shot = folder / f"{width}.png"
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},6000",
        f"--screenshot={shot}",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"CONSOLE|ERR_|Failed to load", done.stderr), done.stderr
    return np.asarray(Image.open(shot).convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_it(page: Path, tmp_path: Path, width: int) -> None:
    pixels = seen(page, tmp_path, width)
    assert pixels.shape[1] == width
    # The colours of the states in the pictures and in their key, and the line of a plot.
    for colour in ((0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27), (0xFD, 0xAE, 0x3D), (0x2F, 0x6F, 0x8F)):
        near = (np.abs(pixels.astype(int) - colour).max(axis=2) < 40).sum()
        assert near > 100, colour
    right = pixels[:, -12:].reshape(-1, 3)
    assert (right == right[0]).all(), "nothing reaches beyond the page"


def test_a_comparison(tmp_path: Path) -> None:
    values = [0.3, 0.5, 0.2, -1.0, 0.3, 0.4, 0.1, 0.2, 0.3, -1.0, 0.3, 0.4]
    rows = {
        "SOLO": [CocoMetrics(*values)] * 2,
        "Attention": [CocoMetrics(*(v + 0.1 for v in values[:1]), *values[1:])],
    }
    Image.new("RGB", (3000, 400), "green").save(tmp_path / "figure.png")
    write_comparison_report(
        tmp_path / "r.html",
        rows,
        title="Two",
        curves={"SOLO": CURVE, "Attention": []},
        pictures={"Pictures": tmp_path / "figure.png"},
    )
    found = Page(tmp_path / "r.html")
    text = " ".join(found.text.split())
    assert "40.0 best AP Attention best system" in text
    assert "SOLO 30.0 ± 0.0 50.0 ± 0.0 20.0 ± 0.0 –" in text
    assert len(found.loaded) == 3
    assert "Per cent; mean and standard deviation over the seeds." in text
    assert "of the first seed" in text


def test_a_comparison_of_one_seed(tmp_path: Path) -> None:
    """Says nothing of a spread that it does not have."""
    rows = {name: [CocoMetrics(*[0.3] * 12)] for name in ("SOLO", "Attention")}
    write_comparison_report(tmp_path / "r.html", rows, title="One", curves={"SOLO": CURVE})
    text = Page(tmp_path / "r.html").text
    for word in ("deviation", "mean", "±", "the seeds", "first seed"):
        assert word not in text
    assert "On the validation images." in text


def test_nothing_found_and_nothing_there(tmp_path: Path) -> None:
    made = CocoSet(tmp_path)
    made.content["annotations"] = []
    dataset = CocoInstances(*made.write(), eval_transforms())
    write_report(tmp_path / "r.html", dataset, [], evaluate(dataset.coco, []), title="Nothing")
    text = " ".join(Page(tmp_path / "r.html").text.split())
    assert "0 missed of 0 objects" in text
    assert "AP by class" in text
    assert "The worst images" not in text
    assert "Precision and recall" not in text
