"""The library's own exceptions: one base class, and the kind of error that they were before."""

from __future__ import annotations

import importlib
import pickle
import re

import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')
pytest.importorskip("lightning", reason='the extra "train" is not installed')

from solo_attn._utils.errors import (
    EXTRAS,
    MissingExtraError,
    SoloAttnError,
    extra_needed,
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


@pytest.mark.parametrize(
    ("extra", "package"), [(name, one) for name in EXTRAS for one in sorted(EXTRAS[name])]
)
def test_a_missing_extra_has_one_wording(extra: str, package: str) -> None:
    command = re.escape(f'run in the clone: pip install -e ".[{extra}]"')
    expected = f"^here: expected {package} to be installed; {command}$"
    with pytest.raises(MissingExtraError, match=expected) as caught, extra_needed("here"):
        raise ModuleNotFoundError(f"No module named '{package}.part'", name=f"{package}.part")
    assert caught.value.name == f"{package}.part"


@pytest.mark.parametrize("name", ["solo_attn.nothing", "numpy", None])
def test_other_missing_modules_are_not_the_extra(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), extra_needed("here"):
        raise ModuleNotFoundError("no", name=name)
