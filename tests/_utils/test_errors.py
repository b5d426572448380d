"""The library's own exceptions: one base class, and the kind of error that they were before."""

from __future__ import annotations

import importlib
import pickle

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')
pytest.importorskip("lightning", reason='the extra "train" is not installed')

from solo_attn._utils.errors import (
    EXTRA_CLI,
    EXTRA_EXPORT,
    EXTRA_TRAIN,
    MissingExtraError,
    SoloAttnError,
    extra_train,
)
from solo_attn.data import ImageError

OWN = {
    "_utils.errors.MissingExtraError": ImportError,
    "_utils.errors.UsageError": ValueError,
    "data.DatasetError": ValueError,
    "data.ImageError": ValueError,
    "models.CheckpointError": ValueError,
    "training.ConfigError": ValueError,
    "training.TrainingError": RuntimeError,
    "training.UnfinishedError": RuntimeError,
}


@pytest.mark.parametrize("name", OWN)
def test_the_librarys_own_have_one_base(name: str) -> None:
    module, _, kind = name.rpartition(".")
    error = getattr(importlib.import_module(f"solo_attn.{module}"), kind)
    assert issubclass(error, SoloAttnError)
    assert issubclass(error, OWN[name])


def test_they_come_whole_out_of_another_process() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is empty")))
    assert str(error) == "a.png: is empty"


@pytest.mark.parametrize("package", sorted(EXTRA_TRAIN | EXTRA_CLI | EXTRA_EXPORT))
def test_a_missing_extra_has_one_wording(package: str) -> None:
    extra = "cli" if package in ("rich", "typer") else "export" if package.startswith("onnx") else "train"
    expected = f'^here: expected {package} to be installed; run: pip install "solo-attn\\[{extra}\\]"$'
    with pytest.raises(MissingExtraError, match=expected) as caught, extra_train("here"):
        raise ModuleNotFoundError(f"No module named '{package}.part'", name=f"{package}.part")
    assert caught.value.name == f"{package}.part"


@pytest.mark.parametrize("name", ["solo_attn.nothing", "numpy", None])
def test_other_missing_modules_are_not_the_extra(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), extra_train("here"):
        raise ModuleNotFoundError("no", name=name)
