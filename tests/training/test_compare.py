from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from solo_attn.training import Config, ConfigError, compare, demo, demo_config, system_config

MakeConfig = Callable[..., Config]


def test_systems_of_table_3(config: MakeConfig) -> None:
    settings = [
        system_config(config(), name, 7) for name in ("SOLO (no coords)", "SOLO", "Attention mechanism")
    ]
    assert [(s.model.coords, s.model.attention) for s in settings] == [
        (None, False),
        ("paper", False),
        ("paper", True),
    ]
    assert {s.train.seed for s in settings} == {7}
    for other in settings[1:]:
        other.model.coords, other.model.attention = None, False
        assert other == settings[0]
    with pytest.raises(ConfigError, match="got 'YOLACT'"):
        system_config(config(), "YOLACT", 0)


def test_writes_tables_and_skips_what_is_done(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(epochs=1)
    systems = ("SOLO", "Attention mechanism")
    first = compare(settings, [0, 1], tmp_path, systems)
    assert all(path.stat().st_size for path in first.files)
    assert {path.name for path in first.files} == {
        "tables.md",
        "results.json",
        "comparison.png",
        "figure5.png",
    }
    assert {name: len(seeds) for name, seeds in first.rows.items()} == dict.fromkeys(systems, 2)
    tables = (tmp_path / "tables.md").read_text()
    assert "| algorithms | AP | AP50 | AP75 |" in tables
    assert "AP_small" in tables
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {"solo_attn", "commit", "torch", "device", "date"} <= numbers["environment"].keys()
    assert numbers["runs"]["SOLO"][1]["seed"] == 1
    assert numbers["runs"]["SOLO"][1]["seconds"] > 0

    capsys.readouterr()
    again = compare(settings, [0, 1], tmp_path, systems)
    assert again == first
    assert capsys.readouterr().out.count("done before") == 4

    settings.train.learning_rate *= 2
    with pytest.raises(ConfigError, match=r"train\.learning_rate was 0\.01 and is 0\.02"):
        compare(settings, [0, 1], tmp_path, systems)


def test_refuses(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        compare(config(), [], tmp_path)
    with pytest.raises(ConfigError, match=r"train\.devices to be 1"):
        compare(config(devices=2), [0], tmp_path)


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo itself, with the fewest images and steps."""
    changes = [
        "train.max_steps=1",
        "model.fpn_channels=32",
        "model.head_channels=32",
        "train.accelerator=cpu",
    ]
    found = demo(tmp_path, overrides=changes, train_images=4, val_images=2)
    assert list(found.rows) == ["SOLO (no coords)", "SOLO", "Attention mechanism"]
    capsys.readouterr()
    demo(tmp_path, overrides=changes, train_images=4, val_images=2)
    assert capsys.readouterr().out.count("done before") == 3
    assert demo_config().train.max_steps is None
