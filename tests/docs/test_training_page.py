"""docs/training.md, followed word for word: commands on scenes that they draw, Python, settings."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pages import ROOT, follow_here

from benchmarks.report.training_page import default_of
from solo_attn.training import load_config
from solo_attn.training.config import Config


def test_the_page(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    output = "\n".join(follow_here("training.md", tmp_path))
    assert "['loss_category', 'loss_mask']" in output
    assert "['boxes', 'labels', 'masks', 'scores']" in output
    assert {path.name for path in tmp_path.iterdir()} == {"configs", "data", "runs"}, "what git ignores"
    run = tmp_path / "runs" / "rehearsal"
    files = {path.name for path in run.iterdir()}
    assert files >= {"config.yaml", "last.ckpt", "best.ckpt", "found.json", "pictures"}
    for name in ("report.html", "found.html"):
        assert "Precision and recall" in (run / name).read_text(encoding="utf-8"), name
    assert len(list((run / "pictures").glob("*.png"))) == 4
    assert load_config(run / "config.yaml").train.max_steps == 4


def test_every_setting_is_in_its_table() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, field in Config.model_fields.items():
        table = text.split(f"<!-- begin:settings_{name} -->")[1].split("<!-- end:")[0]
        rows = re.findall(r"^\| `(\w+)` \| .+ \| `(.+)` \| (.+) \|$", table, flags=re.MULTILINE)
        settings = field.annotation.model_fields  # type: ignore[union-attr]
        assert [row[0] for row in rows] == list(settings)
        assert [row[1] for row in rows] == [default_of(setting.default) for setting in settings.values()]
        assert all(meaning for _, _, meaning in rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ("", '""'), (2 / 3, "0.667"), (((1, 2.0), (3, 4)), "[[1, 2], [3, 4]]")],
)
def test_defaults_as_yaml_has_them(value: object, text: str) -> None:
    assert default_of(value) == text
