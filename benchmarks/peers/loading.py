"""mmdetection and supervision, which tests and benchmarks compare with: found in .peers/, see `make peers`.

They lie in a folder of their own, behind everything that is installed, so that none of their old
dependencies can take the place of ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from .. import ROOT

FOLDER = ROOT / ".peers"
REQUIRED = "SOLO_ATTN_PEERS_REQUIRED"  # set where a test that cannot find them must fail, not skip


class _NothingCompiled(ModuleType):
    """A substitute for mmcv's compiled operators, which SOLO does not use.

    They are on no package registry for today's torch: mmcv-lite has none, and mmdet asks for some when it is
    imported. These raise when they are called.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)  # mmengine looks for a loader: it finds none

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise RuntimeError(f"mmcv-lite has no compiled operator {name}")

        return missing


def peer(name: str) -> ModuleType:
    """A module such as "mmdet", "mmdet.apis" or "supervision".

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if name.partition(".")[0] == "mmdet" and importlib.util.find_spec("mmcv") is not None:
        importlib.import_module("mmcv")
        if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
            sys.modules["mmcv._ext"] = _NothingCompiled("mmcv._ext")
    return importlib.import_module(name)


def need(name: str) -> ModuleType:
    """`peer` for a test; if the module is absent, the test is skipped, or fails where peers are required."""
    import pytest

    try:
        return peer(name)
    except ImportError as error:
        if os.environ.get(REQUIRED, "0") not in ("", "0"):
            raise
        pytest.skip(f"{name} cannot be imported ({error}): make peers", allow_module_level=True)
