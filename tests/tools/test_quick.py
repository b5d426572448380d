"""`make quick`: which tests belong to a change."""

from __future__ import annotations

import pytest
from make import ROOT, dry_run, needs_make

from tools import quick


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("solo_attn/ops/dice_loss.py", ["tests/ops/test_dice_loss.py"]),
        ("solo_attn/reference/dice_loss.py", ["tests/ops/test_dice_loss.py"]),
        ("kernels/mask_iou.py", ["tests/ops/test_mask_iou.py", "tests/ops/test_mask_iou_triton.py"]),
        (
            "csrc/dice_loss/dice_loss_cpu.cpp",
            ["tests/ops/test_dice_loss.py", "tests/ops/test_dice_loss_cpu.py"],
        ),
        ("csrc/grid_attention/chosen.cuh", ["tests/ops/test_grid_attention_cuda.py"]),
        ("solo_attn/formats/geojson.py", ["tests/formats/test_geojson.py"]),
        ("solo_attn/_utils/errors.py", ["tests/_utils/test_errors.py"]),
        ("solo_attn/predictor.py", ["tests/test_predictor.py"]),
        ("solo_attn/data/segmentation.py", ["tests/data/test_validate.py"]),  # which mentions it
        ("docs/data.md", ["tests/docs/test_data_page.py"]),
        ("tools/quick.py", ["tests/tools/test_quick.py"]),
        ("tests/models/test_losses.py", ["tests/models/test_losses.py"]),
        ("tests/helpers/make.py", []),
        ("README.md", []),
        ("benchmarks/ops/bench_dice_loss.py", []),
    ],
)
def test_they_are_found_by_name(file: str, tests: list[str]) -> None:
    assert quick.tests_of(file) == tests


def test_the_core_comes_first_and_nothing_twice() -> None:
    assert quick.selected([]) == [*quick.CORE]
    files = ["solo_attn/ops/mask_iou.py", "solo_attn/_utils/errors.py", "tests/models/test_gone.py"]
    assert quick.selected([*files, "solo_attn/ops/dice_loss.py"]) == [
        *quick.CORE,
        "tests/ops/test_dice_loss.py",
    ]
    assert all((ROOT / path).exists() for path in quick.CORE)


@needs_make
def test_it_lints_first() -> None:
    commands = dry_run("quick")
    assert commands.index("ruff check") < commands.index("-m pytest") < commands.index("-m tools.quick")
