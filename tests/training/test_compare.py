from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from solo_attn.data import CocoInstances, eval_transforms, write_street_scenes
from solo_attn.evaluation import CocoMetrics, evaluate_model
from solo_attn.models import load_model
from solo_attn.training import (
    Comparison,
    Config,
    ConfigError,
    UnfinishedError,
    compare,
    demo,
    demo_config,
    differences,
    load_config,
    override,
    read_systems,
    system_config,
    systems_of,
    train,
)
from solo_attn.training.runs import Run

# The function of that name hides the module.
compare_file = importlib.import_module("solo_attn.training.compare")

MakeConfig = Callable[..., Config]


def test_systems_of_table_3(config: MakeConfig) -> None:
    settings = [
        system_config(config(), name, 7) for name in ("SOLO (no coords)", "SOLO", "Attention mechanism")
    ]
    assert [(s.model.coords, s.model.attention) for s in settings] == [
        (None, None),
        ("paper", None),
        ("paper", "gated"),
    ]
    assert {s.train.seed for s in settings} == {7}
    for other in settings[1:]:
        other.model.coords, other.model.attention = None, None
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
        "report.html",
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
    with pytest.raises(ConfigError, match=r"\n  train\.learning_rate: 0\.01 -> 0\.02\n"):
        compare(settings, [0, 1], tmp_path, systems)


def test_each_system_has_its_own_numbers_and_pictures(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands under a system's name comes from the run that was trained as that system."""
    shown: dict[str, Any] = {}

    def spy(images: Any, predictions: dict[str, Any], path: Path, **settings: Any) -> None:
        shown.update(images=images, predictions=predictions)
        Image.new("RGB", (4, 4)).save(path)

    monkeypatch.setattr(compare_file, "side_by_side", spy)
    # A few steps at a large rate: the systems must differ in their numbers, not be good.
    settings = config(epochs=1, learning_rate=0.1, warmup_steps=0)
    found = compare(settings, [3], tmp_path)
    kinds = {
        "SOLO (no coords)": (None, None),
        "SOLO": ("paper", None),
        "Attention mechanism": ("paper", "gated"),
    }
    runs = {}
    for file in tmp_path.glob("runs/*/result.json"):
        stored = json.loads(file.read_text())
        runs[stored["config"]["model"]["coords"], stored["config"]["model"]["attention"]] = (
            file.parent,
            stored,
        )
    assert set(runs) == set(kinds.values())
    assert list(found.rows) == list(shown["predictions"]) == list(kinds)
    every = []
    for name, kind in kinds.items():
        folder, stored = runs[kind]
        assert found.rows[name] == [CocoMetrics(**stored["metrics"])]
        model, info = load_model(folder / "last.ckpt")
        assert (info.model["coords"], info.model["attention"]) == kind
        for image, drawn in zip(shown["images"], shown["predictions"][name], strict=True):
            expected = model([image])[0]
            assert len(expected["scores"]) > 0
            assert all(torch.equal(drawn[key], expected[key]) for key in expected)
        every.append(shown["predictions"][name][0]["scores"])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(every, 2))

    # So short a training may leave all APs 0: put others in, and see them under the right names.
    for number, kind in enumerate(kinds.values(), start=1):
        folder, stored = runs[kind]
        stored["metrics"]["ap"] = number / 10
        (folder / "result.json").write_text(json.dumps(stored))
    again = compare(settings, [3], tmp_path)
    assert {name: row[0].ap for name, row in again.rows.items()} == {
        name: number / 10 for number, name in enumerate(kinds, start=1)
    }
    written = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert {name: runs[kind][1]["seconds"] for name, kind in kinds.items()} == {
        name: row[0]["seconds"] for name, row in written.items()
    }


def test_forms_are_more_systems(config: MakeConfig) -> None:
    names = systems_of(config(), forms=True)
    assert names[:3] == systems_of(config())
    models = [system_config(config(), name, 0).model for name in names[2:]]
    assert [(model.attention, model.attention_vectors) for model in models] == [
        ("gated", "position"),
        ("literal", "features"),
        ("gated", "features"),
        ("gated", "projection"),
    ]
    literal = override(config(), ["model.attention=literal", "model.attention_vectors=features"])
    assert "Attention, dot products as they are" not in systems_of(literal, forms=True)
    assert "Attention, gated, position" in systems_of(literal, forms=True)
    # Without attention its form is nothing: finished runs serve whatever it is.
    for name in names[:2]:
        assert system_config(literal, name, 0) == system_config(config(), name, 0)
        assert system_config(config(), name, 0).model.attention is None
    with pytest.raises(ConfigError, match=r"expected model\.attention to be the form .*, got null"):
        system_config(override(config(), ["model.attention=null"]), names[2], 0)


def test_tables_are_of_the_test_images(config: MakeConfig, tmp_path: Path) -> None:
    """Where the configuration names some: no choice was made by them."""
    scenes = write_street_scenes(tmp_path / "scenes", num_train=1, num_val=1, num_test=4, size=(64, 96))
    settings = config(epochs=1, learning_rate=0.1, warmup_steps=0)
    settings.data.test_images, settings.data.test_annotations = (
        str(scenes.test_images),
        str(scenes.test_annotations),
    )
    found = compare(settings, [0], tmp_path / "out", ["SOLO"])
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    model, _ = load_model(folder / "last.ckpt")
    for part, expected in (("test", found.rows["SOLO"][0]), ("val", None)):
        images = getattr(settings.data, f"{part}_images")
        dataset = CocoInstances(images, getattr(settings.data, f"{part}_annotations"), eval_transforms())
        measured, _ = evaluate_model(model, dataset)
        stored = json.loads((tmp_path / "out" / "results.json").read_text())
        if expected is None:
            assert stored["runs"]["SOLO"][0]["validation"] == {
                **measured.as_dict(),
                "max_detections": measured.max_detections,
            }
        else:
            assert measured == expected
            assert stored["split"] == "test"
    losses = stored["runs"]["SOLO"][0]["losses"]
    assert 0 < losses["dice"] <= 1
    assert losses["focal"] > 0
    assert "AP on the test images" in (tmp_path / "out" / "tables.md").read_text()


def test_goes_on_after_its_minutes(config: MakeConfig, tmp_path: Path) -> None:
    """Pieces end within a step, wherever it is, and together make what one call makes."""
    settings = config(epochs=2)
    systems = ("SOLO (no coords)", "SOLO")
    whole = compare(settings, [0], tmp_path / "whole", systems)
    parts = tmp_path / "parts"

    def piece() -> Comparison | None:
        try:
            # So short that it is over by the end of the first step.
            return compare(settings, [0], parts, systems, minutes=1e-3)
        except UnfinishedError as error:
            told.append(str(error))
            return None

    told: list[str] = []
    while (found := piece()) is None:
        done = len(list(parts.glob("runs/*/result.json")))
        assert f" {done} of 2 runs finished" in told[-1]
        assert not (parts / "results.json").exists()
        assert len(told) < 20
    assert len(told) >= 10  # two epochs of three batches, twice, of which the last does not end a piece
    assert found.rows == whole.rows
    for name in ("solo-seed0", "solo_no_coords-seed0"):
        a, b = (load_model(tmp_path / part / "runs" / name / "last.ckpt")[0] for part in ("whole", "parts"))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_run_that_was_stopped_by_its_minutes_goes_on_with_more(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(epochs=2, max_minutes=1e-5)

    def steps() -> int:
        compare(settings, [0], tmp_path, ["SOLO"])
        return json.loads((tmp_path / "runs" / "solo-seed0" / "result.json").read_text())["steps"]

    assert steps() < 6
    capsys.readouterr()
    assert steps() < 6
    assert "done before" in capsys.readouterr().out
    settings.train.max_minutes = None
    assert steps() == 6
    assert "done before" not in capsys.readouterr().out
    assert steps() == 6
    assert "done before" in capsys.readouterr().out


def test_results_alone_make_the_tables(config: MakeConfig, tmp_path: Path) -> None:
    """Runs of several machines: their checkpoints are large and stay there."""
    settings = config(epochs=1)
    first = compare(settings, [0], tmp_path, ["SOLO"])
    figure = tmp_path / "figure5.png"
    figure.unlink()
    for checkpoint in tmp_path.glob("runs/*/*.ckpt"):
        checkpoint.unlink()
    again = compare(settings, [0], tmp_path, ["SOLO"])
    assert again.rows == first.rows
    assert figure not in again.files
    assert not figure.exists()


def test_refuses(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        compare(config(), [], tmp_path)
    with pytest.raises(ConfigError, match=r"train\.devices to be 1"):
        compare(config(devices=2), [0], tmp_path)
    with pytest.raises(ConfigError, match="expected one device with a deadline, got 2"):
        train(config(devices=2), tmp_path, deadline=0.0)


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo itself, with the fewest images and steps."""
    changes = [
        "train.max_steps=1",
        "model.fpn_channels=32",
        "model.head_channels=32",
        "train.accelerator=cpu",
    ]
    found = demo(tmp_path, overrides=changes, train_images=4, val_images=2, jobs=1)
    assert list(found.rows) == ["SOLO (no coords)", "SOLO", "Attention mechanism"]
    capsys.readouterr()
    demo(tmp_path, overrides=changes, train_images=4, val_images=2)
    assert capsys.readouterr().out.count("done before") == 3
    assert demo_config().train.max_steps is None


def test_systems_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: MakeConfig) -> None:
    """Any names, each with what it changes; a head among it brings its own defaults."""
    file = tmp_path / "systems.yaml"
    file.write_text(
        "plain: {model: {attention: null}}\n"
        "as it is:\n"
        "SOLOv2, light: {model: {head: solov2_light}, train: {learning_rate: 0.02}}\n"
    )
    systems = read_systems(file)
    assert list(systems) == ["plain", "as it is", "SOLOv2, light"]
    seen: list[Run] = []

    def note(runs: list[Run], *_: object) -> None:
        seen.extend(runs)
        raise UnfinishedError("enough")

    monkeypatch.setattr(compare_file, "finish", note)
    with pytest.raises(UnfinishedError, match="0 of 3 runs"):
        compare(override(config(), ["train.seed=4"]), [5], tmp_path / "out", systems, minutes=9)
    base = override(config(), ["train.seed=5"])
    assert (seen[0].system, seen[0].config) == ("plain", override(base, ["model.attention=null"]))
    assert (seen[1].system, seen[1].config) == ("as it is", base)
    found = seen[2].config
    assert (found.model.head, found.model.kernel_channels) == ("solov2_light", 128)
    assert (found.train.learning_rate, found.train.seed) == (0.02, 5)
    file.write_text("model: {model: {attention: null}}\ndata:")
    assert list(read_systems(file)) == ["model", "data"], "names as others"
    for text in ("a: 3", "a: 0", "a: {model: 3}", "a: {3: {}}", "a b: {}\na_b: {}"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"expected (under the )?system"):
            read_systems(file)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("model: {head: solo}\ntrain:", r"the sections of a configuration, \['model', 'train'\]"),
        ("[a, b]", r"\['a', 'b'\]"),
        ("5", "5"),
        ("0", "0"),
        ("[]", r"\[\]"),
        ("a b", "'a b'"),
        ("", "none"),
    ],
)
def test_a_file_that_has_no_systems(tmp_path: Path, text: str, got: str) -> None:
    """What is said is about systems, and not about the sections of a configuration."""
    file = tmp_path / "systems.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"systems.yaml: expected systems, each a name .*, got {got}$"):
        read_systems(file)


def test_the_systems_of_the_repository() -> None:
    """Files of `configs/systems` fit the configuration of their name, and name systems as `--forms` does."""
    configs = Path(__file__).parents[2] / "configs"
    files = sorted((configs / "systems").glob("*.yaml"))
    assert files
    for file in files:
        base = load_config(configs / f"paper_{file.stem}_small.yaml")
        systems = read_systems(file)
        made = {name: compare_file._named(base, name, changed, 3) for name, changed in systems.items()}
        assert len({repr(config) for config in made.values()}) == len(made)
        for name in systems_of(base, forms=True):
            assert not differences(made[name], system_config(base, name, 3))
