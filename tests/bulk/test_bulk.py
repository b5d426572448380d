"""Many images: shards make what one run makes, byte for byte, and a killed run goes on and loses nothing."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_solo import confident, small

from solo_attn._utils.errors import UsageError
from solo_attn.bulk import Shard, predict_files
from solo_attn.bulk.run import ahead
from solo_attn.data import CocoInstances
from solo_attn.formats import read_parquet
from solo_attn.models import ModelInfo
from solo_attn.predictor import Predictor

FORMATS = ["coco", "coco-dataset", "parquet", "geojson", "label-studio"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    model = confident(small(max_detections=3, min_size=32, max_size=48))
    return Predictor(model, ModelInfo(model.config, ["a", "b", "c"], [4, 2, 9], {}))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(7):
        size = (32, 40) if k % 2 else (36, 32)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    (folder / "3.png").write_bytes(b"\x89PNG no")
    return sorted(folder.iterdir())


def predict(predictor, files, out, **options):
    return predict_files(
        predictor, files, out, **{"formats": FORMATS, "piece": 2, "batch_size": 2, **options}
    )


@pytest.fixture(scope="module")
def whole(predictor, files, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    done = predict(predictor, files, out)
    assert (done.images, done.complete, len(done.failed)) == (6, True, 1)
    assert not (out / ".pieces").exists()
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".pieces/")}


def test_one_run(whole, predictor, files, tmp_path):
    results = json.loads(whole["results.json"])
    assert len(results) == 18
    assert [r["image_id"] for r in results] == [k for k in (1, 2, 3, 5, 6, 7) for _ in range(3)]
    assert {r["file_name"] for r in results} == {str(f) for f in files if f.name != "3.png"}
    for name, content in whole.items():
        if name.endswith(".parquet"):
            (tmp_path / Path(name).name).write_bytes(content)
    assert read_parquet(tmp_path) == results
    assert len(list(tmp_path.iterdir())) == 4
    assert sum(name.endswith(".geojson") for name in whole) == 6
    (tmp_path / "dataset.json").write_bytes(whole["dataset.json"])
    dataset = CocoInstances(files[0].parent, tmp_path / "dataset.json")
    above = [r for r in results if r["score"] >= 0.3]
    assert [one["file_name"] for one in dataset.coco.imgs.values()] == [
        f"{k}.png" for k in (0, 1, 2, 4, 5, 6)
    ]
    assert [one["segmentation"] for one in dataset.coco.anns.values()] == [r["segmentation"] for r in above]
    tasks = json.loads(whole["label_studio.json"])
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=0.png"}
    assert sum(len(task["predictions"][0]["result"]) for task in tasks) == len(above)
    assert b'<Label value="b"' in whole["label_studio.xml"]


@pytest.mark.parametrize("count", [2, 5])
def test_shards_make_what_one_run_makes(whole, predictor, files, tmp_path, count):
    """In any order; with more shards than pieces, too."""
    outcomes = [predict(predictor, files, tmp_path, shard=Shard(k, count)) for k in reversed(range(count))]
    assert [done.complete for done in outcomes[:-1]].count(True) <= (count > 4)
    assert outcomes[-1].complete
    assert sum(done.images for done in outcomes) == 6
    assert contents(tmp_path) == whole


def test_a_killed_run_goes_on(whole, predictor, files, tmp_path, monkeypatch):
    find, calls = predictor.find, []

    def killed(batch):
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return find(batch)

    monkeypatch.setattr(predictor, "find", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(predictor, files, tmp_path)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(
        UsageError,
        match=r"expected --out to be a folder of the same job.*\n  batch_size: 2 -> 1\ngive another",
    ):
        predict(predictor, files, tmp_path, batch_size=1, resume=True)
    before, advanced = len(calls), []
    done = predict(predictor, files, tmp_path, resume=True, advance=advanced.append, shard=Shard(0, 1))
    assert len(calls) - before == 2, "of four pieces the first two were done"
    assert sum(advanced) == len(files)
    assert (done.images, done.complete, len(done.failed)) == (6, True, 1), (
        "the failure of a kept piece is told"
    )
    assert contents(tmp_path) == whole


def test_another_job_begins_anew(whole, predictor, files, tmp_path, monkeypatch):
    predict(predictor, files, tmp_path)
    few = predict(predictor, files[:2], tmp_path, formats=["parquet"])
    assert few.images == 2
    assert [path.name for path in (tmp_path / "results.parquet").iterdir()] == ["part-000000.parquet"]
    predict(predictor, files, tmp_path, shard=Shard(0, 2))
    with pytest.raises(UsageError, match=r"\n  score: 0\.3 -> 0\.5\n"):
        predict(predictor, files, tmp_path, shard=Shard(1, 2), score=0.5)
    with pytest.raises(UsageError, match=r"\n  images: other files\n"):
        predict(predictor, files[:2], tmp_path, shard=Shard(1, 2))
    monkeypatch.setattr(predictor.model.settings, "nms_pre", 7)
    with pytest.raises(UsageError, match=r":\n  nms_pre: \d+ -> 7\n"):
        predict(predictor, files, tmp_path, shard=Shard(1, 2))


def test_shards_that_begin_again_take_nothing_over(whole, predictor, files, tmp_path):
    """Whichever of them comes first; and the others of the same run are waited for."""
    for number in (0, 1):
        predict(predictor, files, tmp_path, shard=Shard(number, 2))
    (tmp_path / "results.json").write_text("of the earlier run")
    for number in (1, 0):
        done = predict(predictor, files, tmp_path, shard=Shard(number, 2))
        assert done.complete == (number == 0)
    assert contents(tmp_path) == whole
    alone = predict(predictor, files, tmp_path, shard=Shard(0, 2), resume=True)
    assert alone.complete, "with --resume they are kept"


def test_a_full_memory_is_tried_again(whole, predictor, files, tmp_path, monkeypatch):
    find, full = predictor.find, [True]

    def small(batch):
        if full[0] and batch[0].size == (36, 32):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
            )
        return find(batch)

    monkeypatch.setattr(predictor, "find", small)
    done = predict(predictor, files, tmp_path)
    assert (done.images, done.again, done.complete) == (2, True, True)
    assert (tmp_path / ".pieces").exists()
    full[0] = False
    done = predict(predictor, files, tmp_path, resume=True)
    assert (done.images, done.again, len(done.failed)) == (6, False, 1)
    assert contents(tmp_path) == whole
    assert not (tmp_path / ".pieces").exists()


def test_what_the_model_does_not_take_is_no_fault_of_its_batch(predictor, tmp_path):
    Image.new("RGB", (40, 32), "red").save(tmp_path / "a.png")
    Image.new("RGB", (3000, 2)).save(tmp_path / "strip.png")
    out = tmp_path / "out"
    done = predict(predictor, [tmp_path / "a.png", tmp_path / "strip.png"], out)
    assert done.images == 1
    assert f"{tmp_path / 'strip.png'}: not a valid input of the model" in done.failed[0]


def test_a_broken_tile_leaves_nothing_behind(tmp_path):
    """Neither an earlier run's results of the image, nor an open file; the other images are predicted."""
    tifffile = pytest.importorskip("tifffile")
    model = confident(small(max_detections=3, min_size=32, max_size=48, tile=32, tile_overlap=8))
    by_tiles = Predictor(model, ModelInfo(model.config, ["a", "b", "c"], [4, 2, 9], {}))
    rng = np.random.default_rng(0)
    images = [tmp_path / f"{name}.tif" for name in "abc"]
    for path in images:
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib", photometric="rgb")
    out, options = tmp_path / "out", {"formats": ["picture", "coco", "geojson"]}
    assert predict(by_tiles, images, out, **options).images == 3
    with tifffile.TiffFile(images[1]) as file:
        start, count = file.pages[0].dataoffsets[9], file.pages[0].databytecounts[9]
    content = images[1].read_bytes()
    images[1].write_bytes(content[:start] + b"\xff" * count + content[start + count :])
    gc.collect()
    gc.disable()  # what is open until cycles are collected is open too long
    try:
        done = predict(by_tiles, images, out, **options)
        open_files = [os.path.realpath(path) for path in Path("/proc/self/fd").glob("*")]
    finally:
        gc.enable()
    assert done.images == 2
    assert [line.partition(": ")[0] for line in done.failed] == [str(images[1])]
    assert "cannot be read as an image: " in done.failed[0]
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        *(f"{name}.{ending}" for name in "ac" for ending in ("png", "geojson")),
    }
    assert not {str(path) for path in images}.intersection(open_files)


def test_shards(monkeypatch):
    assert Shard.parse(None) == Shard(0, 1)
    assert Shard.parse("2/3") == Shard(1, 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.parse(None) == Shard(1, 4)
    assert Shard.parse("2/3") == Shard(5, 12), "ranks on the second of three machines"
    for text in ("0/2", "3/2", "1", "1/0", "-1/2", "a/b"):
        with pytest.raises(UsageError, match="expected --shard to be i/n"):
            Shard.parse(text)


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_keeps_the_order_and_is_bounded(workers):
    begun = []
    found = ahead(lambda k: begun.append(k) or k, range(100), workers)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(begun) <= 5 + 2 * workers + 1
    assert list(found) == list(range(5, 100))
