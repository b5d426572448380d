"""Write stored measurements, and every setting, into README.md and docs: `make results`.

Each block between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->`` of a page is made by the function NAME of
the page's module, from `benchmarks/results`, with the machine and the commit it was measured on; plots go to
``docs/images``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from solo_attn.evaluation import learning_curve

from .. import ROOT
from . import (
    data_page,
    export_page,
    heads_page,
    install_page,
    predict_page,
    readme,
    reliability_page,
    results_page,
    scaling,
    speed,
    speed_page,
    stored,
    training_page,
)
from .pictures import draw_found
from .stored import IMAGES

PAGES: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": readme.BLOCKS,
    "docs/data.md": data_page.BLOCKS,
    "docs/export.md": export_page.BLOCKS,
    "docs/heads.md": heads_page.BLOCKS,
    "docs/install.md": install_page.BLOCKS,
    "docs/predict.md": predict_page.BLOCKS,
    "docs/reliability.md": reliability_page.BLOCKS,
    "docs/results.md": results_page.BLOCKS,
    "docs/speed.md": speed_page.BLOCKS,
    "docs/training.md": training_page.BLOCKS,
}


def text_of(page: str) -> str:
    """The page as it is stored."""
    return (ROOT / page).read_text(encoding="utf-8")


def filled(page: str, text: str | None = None) -> str:
    """A page, or ``text`` instead of it, with every generated block rewritten."""
    return stored.filled(text_of(page) if text is None else text, PAGES[page], page)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    learning_curve(stored.kept("nuclei_pretrained")["curve"], IMAGES / "nuclei_curve.png")
    draw_found(IMAGES / "nuclei_found.png")
    if stored.kept("ops"):
        speed.plot(stored.kept, IMAGES / "speed.svg")
    if stored.kept("scale"):
        scaling.plot(IMAGES / "scale.svg")
