"""The public API says its types: a second type checker has nothing to infer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import solo_attn

pytestmark = pytest.mark.slow

# torchvision has no types: of what is derived from its classes a checker cannot know all.
OF_TORCHVISION = {
    "solo_attn.data.transforms.RandomScale",
    "solo_attn.data.transforms.RandomScaledCrop",
    "solo_attn.data.transforms.RandomScaledCrop.scale",
    "solo_attn.models.solo._Transform",
}


def test_the_public_api_is_typed() -> None:
    folders = [str(Path(solo_attn.__file__).parents[1]), *(path for path in sys.path if "-packages" in path)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable),
            *("--verifytypes", "solo_attn", "--ignoreexternal", "--outputjson"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    public = {symbol["name"]: symbol for symbol in symbols if symbol["isExported"]}
    assert {f"solo_attn.{name}" for name in solo_attn.__all__ if name[0] != "_"} <= {*public}
    incomplete = {
        name: [found["message"] for found in symbol["diagnostics"]]
        for name, symbol in public.items()
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert {name: why for name, why in incomplete.items() if name not in OF_TORCHVISION} == {}
