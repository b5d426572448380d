import io
import json
import subprocess
import sys
from dataclasses import replace
from statistics import mean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from solo_attn.evaluation import (
    METRICS,
    SYSTEMS,
    CocoMetrics,
    comparison_plot,
    paper_table3,
    paper_table4,
    rich_table,
    summary_json,
)


def metrics(ap, ap50, ap75, small=-1.0, medium=-1.0, large=-1.0):
    return CocoMetrics(ap, ap50, ap75, small, medium, large, 0.1, 0.2, 0.3, -1.0, 0.3, 0.3)


NO_COORDS, SOLO, ATTENTION = SYSTEMS
PAPER = {
    NO_COORDS: [metrics(0.110, 0.201, 0.110)],
    SOLO: [metrics(0.128, 0.210, 0.137, 0.001, 0.043, 0.330)],
    ATTENTION: [metrics(0.147, 0.266, 0.140, 0.005, 0.080, 0.380)],
}
SEEDS = {
    SOLO: [metrics(0.10, 0.2, 0.1, large=0.5), metrics(0.12, 0.2, 0.1, large=0.5)],
    "a|b": [metrics(0.3, 0.4, 0.5, 0.1, 0.2, 0.3)],
}


def test_paper_tables():
    assert paper_table3(PAPER) == (
        "| algorithms | AP | AP50 | AP75 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| SOLO (no coords) | 11.0 | 20.1 | 11.0 |\n"
        "| SOLO | 12.8 | 21.0 | 13.7 |\n"
        "| Attention mechanism | 14.7 | 26.6 | 14.0 |\n"
    )
    assert paper_table4({name: PAPER[name] for name in (SOLO, ATTENTION)}) == (
        "| algorithms | AP_small | AP_medium | AP_large |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| SOLO | 0.1 | 4.3 | 33.0 |\n"
        "| Attention mechanism | 0.5 | 8.0 | 38.0 |\n"
    )


def test_seeds_and_undefined():
    assert paper_table3(SEEDS).splitlines()[2:] == [
        "| SOLO | 11.0 ± 1.4 | 20.0 ± 0.0 | 10.0 ± 0.0 |",
        r"| a\|b | 30.0 | 40.0 | 50.0 |",
    ]
    assert paper_table4(SEEDS).splitlines()[2:] == [
        "| SOLO | – | – | 50.0 ± 0.0 |",
        r"| a\|b | 10.0 | 20.0 | 30.0 |",
    ]


def test_rich_table():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(SEEDS, ["ap", "ap_large", "ap_small"], title="val"))
    text = console.export_text()
    for part in ("val", "algorithms", "AP large", "SOLO", "11.0 ± 1.4", "50.0 ± 0.0", "–", "a|b"):
        assert part in text


def test_summary():
    found = json.loads(json.dumps(summary_json(SEEDS)))
    assert found["max_detections"] == 100
    solo = found["systems"][SOLO]
    assert [list(seed) for seed in solo["seeds"]] == [list(METRICS)] * 2
    assert solo["mean"]["ap"] == pytest.approx(0.11)
    assert solo["std"]["ap"] == pytest.approx(0.02**0.5 * 0.1)
    assert solo["seeds"][0]["ap_small"] == -1
    assert (solo["mean"]["ap_small"], solo["std"]["ap_small"]) == (None, None)
    assert found["systems"]["a|b"]["std"]["ap"] is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_mean_and_sample_deviation(values):
    found = summary_json({SOLO: [metrics(value, 0.5, 0.5) for value in values]})["systems"][SOLO]
    assert found["mean"]["ap"] == mean(values)
    assert found["std"]["ap"] == stdev(values)
    assert f"| {100 * mean(values):.1f} ± {100 * stdev(values):.1f} |" in paper_table3(
        {SOLO: [metrics(value, 0.5, 0.5) for value in values]}
    )


def test_plot(tmp_path):
    comparison_plot(PAPER, tmp_path / "plot.png")
    comparison_plot(SEEDS, tmp_path / "one.png", ["ap"])
    with Image.open(tmp_path / "plot.png") as plot, Image.open(tmp_path / "one.png") as one:
        assert plot.width > one.width > 300
        colours = {colour for _, colour in plot.convert("RGB").getcolors(1 << 20)}
    # matplotlib's C0, C1, C2: a bar for each system.
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    no_large = {name: [replace(m, ap_large=-1.0) for m in seeds] for name, seeds in PAPER.items()}
    columns = ["ap", "ap50", "ap75", "ap_small", "ap_large"]
    comparison_plot(no_large, tmp_path / "four.png", columns)
    comparison_plot(PAPER, tmp_path / "five.png", columns)
    with Image.open(tmp_path / "four.png") as four, Image.open(tmp_path / "five.png") as five:
        assert four.width == five.width - 180  # 1.2 inches at 150 pixels
    comparison_plot({"x" * 60: no_large[SOLO]}, tmp_path / "none.png", ["ap_large"])
    with pytest.raises(OSError, match=r"comparison_plot: expected path .* got '.*/none/plot.png' \(No such"):
        comparison_plot(PAPER, tmp_path / "none" / "plot.png")
    with pytest.raises(ValueError, match="nonsense"):
        comparison_plot(PAPER, tmp_path / "plot.nonsense")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "five.png",
        "four.png",
        "none.png",
        "one.png",
        "plot.png",
    ]


@pytest.mark.parametrize("table", [paper_table3, paper_table4, rich_table, summary_json])
def test_bad_rows(table):
    name = table.__name__
    with pytest.raises(ValueError, match=f"{name}: expected rows of at least one system, got none"):
        table({})
    with pytest.raises(ValueError, match=rf"{name}: expected rows\['SOLO'\] of at least one seed"):
        table({SOLO: []})
    other = replace(PAPER[SOLO][0], max_detections=300)
    with pytest.raises(ValueError, match=r"the same max_detections, got \[100, 300\]"):
        table({**PAPER, "other": [other]})


def test_bad_column():
    with pytest.raises(ValueError, match=r"rich_table: expected columns among ap, .* got 'map'"):
        rich_table(PAPER, ["map"])


@pytest.mark.parametrize("package", ["pycocotools", "matplotlib"])
def test_missing_extra(package):
    code = f"import sys; sys.modules[{package!r}] = None; import solo_attn.evaluation"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stderr.splitlines()[-1].startswith(
        f"solo_attn._utils.errors.MissingExtraError: solo_attn.evaluation: expected {package} to be installed"
    )
    assert 'pip install -e ".[train]"' in run.stderr
