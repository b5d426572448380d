"""docs/results.md, docs/speed.md and README.md, of measurements made up here, and of missing ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.report import comparisons, keep_run, pages, speed, speed_page, stored, where_it_loses
from solo_attn.evaluation import METRICS, SYSTEMS, CocoMetrics, summary_json
from solo_attn.training import Config

FACTS = {
    "commit": "abc123",
    "device": "a GPU",
    "threads": 2,
    "torch": "2.11.0",
    "date": "2026-01-02T03:04:05+00:00",
    "driver": "580.1",
    "cuda": "13.0",
    "triton": "3.6.0",
}
OTHER_FORM = "Attention, dot products as they are"


def comparison(aps: dict[str, list[float]]) -> dict[str, Any]:
    rows = {
        system: [CocoMetrics(**dict.fromkeys(METRICS, ap), max_detections=100) for ap in found]
        for system, found in aps.items()
    }
    runs = {
        system: [
            {
                "seed": seed,
                "steps": 500 + seed,
                "seconds": 600.0,
                "environment": FACTS,
                "losses": {"dice": 0.5 + seed, "focal": 0.25},
            }
            for seed in range(len(found))
        ]
        for system, found in aps.items()
    }
    config = Config().as_dict()
    config["data"] |= {"train_annotations": "x/train.json", "test_annotations": "x/test.json"}
    made = {"summary": summary_json(rows), "config": config, "environment": FACTS, "runs": runs}
    return {"split": "test", **made}


def seconds(**medians: float) -> dict[str, dict[str, float]]:
    return {name.replace("_", " "): {"median": median} for name, median in medians.items()}


def end_to_end() -> dict[str, Any]:
    about = {"what": "training", "batch": 8, "dtype": "bfloat16"}

    def row(contender: str, speed: float, peak: int | None) -> dict[str, Any]:
        times = {"seconds": {"median": 8 / speed}, "images_per_second": speed, "peak_bytes": peak}
        return {**about, "contender": contender, **times}

    rows = [
        row("fast", 24.0, 3 << 30),
        row("dense", 8.0, None),
        {**about, "contender": "fast, compiled", "failed": "RuntimeError: no"},
        row("dense, compiled", 32.0, 2 << 30),
    ]
    proof = {what: {"dense": {}, "fast": {}} for what in ("training", "inference")}
    compiled = {"fast, compiled": "its parts", "dense, compiled": "more"}
    about = {"setting": {"size": [672, 1344]}, "proof": proof, "compiled": compiled}
    return {"environment": FACTS, "rows": rows, **about}


def gpu() -> dict[str, Any]:
    times = {**seconds(cuda=0.002, triton=0.003, PyTorch=0.001), "torch.compile": {"median": 0.004}}
    case = {"op": "dice_loss", "what": "9 cells", "batch": 1, "dtype": "float32", "direction": "backward"}
    case |= {"seconds": times, "memory": {"cuda": 1 << 20, "PyTorch": None}, "host_bound": ["PyTorch"]}
    forward = {**case, "direction": "forward", "floor": 0.0005, "host_bound": []}
    lazy = {"dtype": "float32", "seconds": seconds(lazy=0.001, dense=0.1), "memory": {"lazy": 1 << 20}}
    rates = {"copy": 3.0e12, "matmul float32": 60e12}
    return {"environment": FACTS, "rates": rates, "lazy": [lazy], "cases": [forward, case], "left_out": []}


MADE = {
    "gpu/comparison_nuclei": comparison(
        {
            SYSTEMS[0]: [0.10, 0.11, 0.12],
            SYSTEMS[1]: [0.13, 0.15, 0.14],
            SYSTEMS[2]: [0.201, 0.202, 0.203],
            OTHER_FORM: [0.0, 0.0, 0.01],
        }
    ),
    "cpu/comparison_scenes": comparison({SYSTEMS[1]: [0.2], SYSTEMS[2]: [0.15]}),
    "gpu/end_to_end": end_to_end(),
    "gpu/gpu": gpu(),
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("cpu", "gpu"):
        (tmp_path / "results" / name).mkdir(parents=True)
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(stored, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(stored, "IMAGES", tmp_path / "images")
    return tmp_path / "results"


def write(results: Path, made: dict[str, Any]) -> None:
    for name, found in made.items():
        (results / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def page() -> str:
    """Both pages that are made of results."""
    return pages.filled("docs/results.md") + pages.filled("docs/speed.md")


def test_nothing_measured(results: Path) -> None:
    text = page()
    assert text.count("Not measured yet.") == 12
    assert "**Nothing has been measured on a GPU.**" in text
    assert "In nothing that was measured." in text
    assert f"- {speed.COMPARISONS[0].work}, against mmdetection." in text
    assert speed_page.beside_others().count("not measured") == len(speed.COMPARISONS)


def test_the_front_page(results: Path) -> None:
    text = pages.filled("README.md")
    assert text.count("| – | – | – | not measured |") == 6, "three rows of speed, three of results"
    write(results, {"cpu/comparison_nuclei": MADE["gpu/comparison_nuclei"]})
    write(results, {"cpu/comparison_scenes": MADE["cpu/comparison_scenes"]})
    text = pages.filled("README.md")
    assert "; 3 seeds, gated, position | 11.0 | 14.0 | 20.2 | +6.2 (+3.7 to +8.7) |" in text
    assert "; 1 seed, gated, position | – | 20.0 | 15.0 | -5.0 |" in text
    hero = {"instances": 7, "score": 0.3, "photograph": "somebody, CC0", "environment": FACTS}
    write(results, {"cpu/hero": hero})
    assert "docs/images/hero.png)\n\n7 instances" in pages.filled("README.md")


@pytest.mark.parametrize("missing", [None, *MADE])
def test_any_subset_makes_a_page(results: Path, missing: str | None) -> None:
    made = {name: found for name, found in MADE.items() if name != missing}
    write(results, made)
    text = page()
    assert ("| 20.2 ± 0.1 | 20.2 ± 0.1 | 20.2 ± 0.1 | 14.7 / 26.6 / 14.0 |" in text) == (
        "gpu/comparison_nuclei" in made
    )
    assert ("| SOLO | 0, 1, 2 | 500 to 502 | 30 | 1.500 | 0.250 |" in text) == (
        "gpu/comparison_nuclei" in made
    )
    assert ("| fast | 24 | 333 | 3.0x | 3,072 |" in text) == ("gpu/end_to_end" in made)
    assert ("cuda | 2.00 | 1.00 | 4.00 | 4.0 | 1 | – |" in text) == ("gpu/gpu" in made)
    assert "a GPU, 2 threads, torch 2.11.0, driver 580.1, CUDA 13.0, triton 3.6.0, commit abc123" in text
    if missing is None:
        assert "- Nothing else that this page reports" not in text  # speed is not measured
        assert "Training and inference end to end." not in text
        missing = [f"training, batch {b}, {d}" for b, d in ((1, "float32"), (1, "bfloat16"), (8, "float32"))]
        missing += [f"inference, batch {b}, {d}" for b in (1, 8) for d in ("float32", "bfloat16")]
        assert f"- End to end, gpu: {'; '.join(missing)}.\n" in text
        assert f"Not measured: {'; '.join(missing)}. (a GPU" in text
        assert "cuda | 2.00 | 1.00* | 4.00 | – | 1 | – |" in text
        assert "failed: RuntimeError: no" in text
        assert "Trained on `train.json`, evaluated on `test.json`." in text


def test_what_is_too_large_is_told_by_the_limit(results: Path) -> None:
    made = end_to_end()
    refused = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
    made["rows"][1] = {**made["rows"][2], "contender": "dense", "failed": refused, "limit_bytes": 3 << 30}
    write(results, {"cpu/end_to_end": made})
    assert "| dense | failed: needs more than the 3,072 MiB that the process could have | – |" in page()
    assert "| fast, compiled | failed: RuntimeError: no | – |" in page()


def test_whether_what_was_compiled_was_compared(results: Path) -> None:
    made = end_to_end()
    write(results, {"gpu/end_to_end": made})
    assert "at batch 1 in float32; the compiled code was not compared. Convolutions" in page()
    made["proof"]["inference"]["dense, compiled"] = {"without_a_twin": 0}
    write(results, {"gpu/end_to_end": made})
    assert "at batch 1 in float32, and so did what torch.compile made of them for that" in page()
    eager = end_to_end()
    eager |= {"rows": [row for row in eager["rows"] if "compiled" not in row["contender"]]}
    write(results, {"gpu/end_to_end": eager})
    assert "at batch 1 in float32. Convolutions" in page()


def test_each_number_of_a_comparison_counts(results: Path) -> None:
    write(results, MADE)
    before = page()
    for system in SYSTEMS:
        for metric in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
            changed = copy.deepcopy(MADE)
            changed["gpu/comparison_nuclei"]["summary"]["systems"][system]["seeds"][1][metric] += 0.05
            write(results, changed)
            assert page() != before, (system, metric)


def test_one_seed_has_no_spread(results: Path) -> None:
    for seeds, told in (([0.1, 0.2], True), ([0.1], False)):
        write(results, {"gpu/comparison_nuclei": comparison(dict.fromkeys(SYSTEMS, seeds))})
        text = comparisons.comparison("gpu", "nuclei")
        assert ("deviation" in text, "spread" in text, "±" in text, "of one seed" in text) == (
            *[told] * 3,
            not told,
        )


def test_what_is_said_of_attention(results: Path) -> None:
    write(results, MADE)
    text = page()
    assert (
        "**Attention (gated, position) beside coordinates**: AP 20.2 against 14.0, a difference of +6.2"
        in text
    )
    assert (
        "of +6.2 with a standard error of 0.6 (3 and 3 seeds; 95 % interval +3.7 to +8.7): it helped." in text
    )
    assert "**Attention, dot products as they are in place of gated, position**: AP 0.3 against 20.2" in text
    assert "): it made AP worse." in text
    assert "a difference of -5.0. A single seed gives no interval." in text
    others = (({"attention": "rsqrt"}, "rsqrt, position"),)
    for model, words in others:
        changed = copy.deepcopy(MADE)
        changed["gpu/comparison_nuclei"]["config"]["model"] |= model
        write(results, changed)
        assert f"as they are in place of {words}**" in page()
    told = comparisons.judged("X", [0.10, 0.20, 0.15], [0.16, 0.19, 0.17])
    assert told.endswith(": the effect is not significant.")


def test_difference_of_two_means() -> None:
    """By hand: variances 1 and 5 / 3, so 1 / 3 + 5 / 12 = 0.75; Welch has 4.96 degrees of freedom."""
    found = comparisons.difference([1, 2, 3], [4, 5, 6, 7])
    assert found.value == 3.5
    assert found.error == pytest.approx(0.75**0.5)
    assert (found.low, found.high) == pytest.approx((3.5 - 2.78 * 0.75**0.5, 3.5 + 2.78 * 0.75**0.5))
    assert comparisons.difference([1], [2, 3]).error is None
    assert comparisons.difference([1, 1], [2, 2]).low == 1


def test_where_it_loses(results: Path) -> None:
    write(results, MADE)
    found = where_it_loses.losses()
    assert ["dice_loss: 9 cells; batch 1, float32", "gpu", "PyTorch", "1.00 ms", "2.00 ms"] in found
    work = "training, batch 8, bfloat16: fast"
    assert [work, "gpu", "dense, compiled", "32 images/s", "24 images/s"] in found
    assert [work, "gpu", "dense, compiled", "2,048 MiB", "3,072 MiB"] in found
    assert [f"{work}, compiled", "gpu", "–", "–", "failed: RuntimeError: no"] in found
    assert ["scenes, 1 seed(s): Attention mechanism, ap", "cpu", "SOLO", "20.0", "15.0"] in found
    stronger = {"Attention mechanism": [0.2], OTHER_FORM: [0.3], "SOLO": [0.1]}
    write(results, {"cpu/comparison_scenes": comparison(stronger)})
    assert ["scenes, 1 seed(s): Attention mechanism, ap", "cpu", OTHER_FORM, "30.0", "20.0"] in [
        row for row in where_it_loses.losses() if row[2] != "SOLO"
    ]
    assert not [row for row in found if OTHER_FORM in row[0]], "no default of this library"
    assert not [row for row in found if row[0].startswith("nuclei, 3 seed(s): Attention mechanism, ap ")]
    assert not [row for row in found if row[2] in ("dense", "torch.compile")]


def test_half_of_the_benchmarks_fills_its_half(results: Path) -> None:
    entry = {"op": "mask_iou", "what": "x", "direction": "forward", "ours": "cpu", "memory": {}}
    entry["seconds"] = seconds(cpu=0.002, PyTorch=0.004, pycocotools=0.01)
    write(results, {"cpu/ops": {"environment": FACTS, "benchmarks": {"mask_iou": entry}}})
    text = speed_page.beside_others()
    assert "| pycocotools | 10.0 | 2.00 | – | 5.0x |" in text
    assert text.count("not measured") == len(speed.COMPARISONS) - 1
    assert "what is compared with mmdetection 3.3.0 not yet" in text
    assert "| 2.00 | 4.00 | – | – | – | – | – | – |" in speed_page.ops()


@pytest.mark.parametrize(("name", "pictures"), [("scenes", 2), ("nuclei", 1)])
def test_a_comparison_is_kept(
    results: Path, name: str, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep_run, "RESULTS", results)
    monkeypatch.setattr(keep_run, "IMAGES", stored.IMAGES)
    run = results.parent / "run"
    run.mkdir()
    found = {**MADE["cpu/comparison_scenes"], "split": "validation"}
    (run / "results.json").write_text(json.dumps(found))
    for kind in ("comparison", "figure5"):
        (run / f"{kind}.png").write_bytes(b"")
    done = CliRunner().invoke(keep_run.app, ["comparison", name, str(run)])
    assert done.exit_code == 0, done.output
    assert stored.kept(f"comparison_{name}") == found
    assert page().count(f"(images/cpu_{name}_") == len(list(stored.IMAGES.iterdir())) == pictures
    assert "on the validation images" in page()
