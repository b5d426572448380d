"""The paper's experiments from start to end, as `make gpu` does them, with the fewest images and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from small_coco import real_data

from solo_attn.cli.compare import TRY_AGAIN

ROOT = Path(__file__).parents[2]
SYSTEMS = [
    "SOLO (no coords)",
    "SOLO",
    "Attention mechanism",
    "Attention, dot products as they are",
    "Attention, gated",
    "Attention, gated, projection",
]
TINY = [
    "data.workers=0",
    "model.backbone=resnet18",
    "model.pretrained=false",
    "model.freeze=0",
    "model.tile=null",
    "model.fpn_channels=32",
    "model.head_channels=32",
    "model.num_convs=1",
    "model.score_threshold=0.01",
    "model.min_size=96",
    "model.max_size=192",
    "train.max_steps=1",
    "train.batch_size=1",
    "train.log_every=1",
    "train.accelerator=cpu",
]


def command(name: str, out: Path, *overrides: str) -> list[object]:
    config = ROOT / "configs" / f"{name}.yaml"
    return ["compare", config, *TINY, *overrides, "--seeds", 1, "--forms", "--out", out]


def in_pieces(command: list[object]) -> None:
    """The same again and again until it is finished."""
    codes = []
    while not codes or codes[-1] == TRY_AGAIN:
        code, output = run(*command, "--minutes", 0.001)
        assert code in (0, TRY_AGAIN), output
        assert (code == 0) == ("the same command" not in output)
        codes.append(code)
        assert len(codes) < 3 * len(SYSTEMS)
    assert codes[-1] == 0
    assert len(codes) >= len(SYSTEMS)


def check(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    assert results["split"] == "test"
    assert list(results["summary"]["systems"]) == list(results["runs"]) == SYSTEMS
    for runs in results["runs"].values():
        (only,) = runs
        assert only["steps"] == 1
        assert only["environment"]["torch"]
        # A piece that ends with its first step leaves before that is logged.
        assert set(only["losses"]) in ({"dice", "focal"}, set())
    tables = (out / "tables.md").read_text()
    assert all(f"| {system} |" in tables for system in SYSTEMS)
    assert (out / "figure5.png").stat().st_size > 0
    return results


@pytest.mark.data
def test_nuclei(tmp_path: Path) -> None:
    nuclei = real_data("dsb2018")
    files = {"train": "paper_train450", "val": "paper_val50", "test": "test"}
    for part, file in files.items():
        content = json.loads((nuclei / f"instances_{file}.json").read_text(encoding="utf-8"))
        content["images"] = sorted(content["images"], key=lambda image: image["width"] * image["height"])[:2]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (tmp_path / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
    changes = [f"data.{part}_annotations={tmp_path / part}.json" for part in files]
    changes += [
        f"data.{part}_images={nuclei / folder}"
        for part, folder in (("train", "images_train"), ("val", "images_train"), ("test", "images_test"))
    ]
    in_pieces(command("paper_nuclei", tmp_path / "out", *changes, "data.shortest_size=[96]"))
    assert check(tmp_path / "out")["summary"]["max_detections"] == 400


def test_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn where the configuration looks for them."""
    monkeypatch.chdir(tmp_path)
    code, output = run("scenes", "data/scenes", "--train", 2, "--val", 1, "--test", 2, "--size", 96, 192)
    assert code == 0
    assert output.split() == [f"data/scenes/{part}.json" for part in ("train", "val", "test")]
    assert run(*command("paper_scenes", tmp_path / "out"))[0] == 0
    runs = check(tmp_path / "out")["runs"]
    assert all(set(only["losses"]) == {"dice", "focal"} for (only,) in runs.values())


def test_scenes_refuses(tmp_path: Path) -> None:
    code, output = run("scenes", tmp_path / "scenes", "--size", 8, 8)
    assert code == 2
    assert "expected size of at least (32, 32), got (8, 8)" in output


def test_the_small_ones_are_the_same_experiment() -> None:
    """Another model, another recipe, but the data, the systems and what is counted are the same."""
    from solo_attn.training import differences, load_config

    same = {
        "model.coords", "model.attention", "model.attention_vectors", "model.attention_gain",
        "model.attention_offset", "model.score_threshold", "model.nms_kernel", "model.nms_sigma",
        "model.final_score_threshold", "model.max_detections", "train.eval_max_detections",
        "data.train_annotations", "data.val_annotations", "data.test_annotations",
    }  # fmt: skip
    for name in ("nuclei", "scenes"):
        full, small = (load_config(ROOT / "configs" / f"paper_{name}{size}.yaml") for size in ("", "_small"))
        paths = {key for key in same if key.startswith("data.")}
        assert not same.intersection(differences(full, small)) - (paths if name == "scenes" else set())
