"""docs/heads.md: its Python runs, and its table and commands name what there is."""

from __future__ import annotations

import re

from pages import ROOT, blocks, commands

from solo_attn.models.settings import OF_HEADS
from solo_attn.training import load_config

TEXT = (ROOT / "docs" / "heads.md").read_text(encoding="utf-8")


def test_the_python_runs(capsys) -> None:
    (code,) = [code for language, code in blocks("heads.md") if language == "python"]
    exec(code, {})
    assert capsys.readouterr().out.startswith("2 convolutions, ")


def test_every_head_has_its_row_and_its_configuration() -> None:
    _, *rows = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE)
    assert rows == [*OF_HEADS, *OF_HEADS], "in the table of what they are, and in that of what they cost"
    for head in OF_HEADS:
        name = "coco" if head == "solo" else f"coco_{head}"
        model = load_config(ROOT / "configs" / f"{name}.yaml").model
        assert model.head == head
        published = OF_HEADS[head].get("max_size", 1333), OF_HEADS[head].get("min_size", 800)
        assert (model.max_size, model.sizes[-1]) == published


def test_the_training_is_one_of_that_head() -> None:
    scenes, (_, train, config, *options) = commands("heads.md")
    assert (scenes[1], train) == ("scenes", "train")
    at = options.index("--out")
    overrides = options[:at] + options[at + 2 :]
    settings = load_config(ROOT / config, overrides)
    assert (settings.model.head, settings.model.attention) == ("solov2_light", None)
    assert settings.data.val_annotations == f"{scenes[2]}/val.json"
