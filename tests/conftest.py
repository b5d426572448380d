"""What tests of several folders are given; see tests/helpers.

``benchmarks`` and ``tools`` can be imported, behind what is installed, whose solo_attn is tested.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from small_coco import CocoSet

    from solo_attn.training import Config, TrainResult

# What needs the extra "train" is imported where it is asked for: without it, tests skip and not this file.


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's main process imports the class of every warning of its workers, those of peers too."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        from benchmarks.peers.loading import FOLDER

        sys.path.append(str(FOLDER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compiles, and files with slow tests, begin first: at the end they would leave processes idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    compiles = ("test_build.py", "test_cuda_shim.py")
    items.sort(key=lambda item: (item.path.name not in compiles, item.path not in slow))


@pytest.fixture
def coco_set(tmp_path: Path) -> CocoSet:
    """A small faultless dataset that a test may spoil."""
    from small_coco import CocoSet

    return CocoSet(tmp_path / "coco")


@pytest.fixture(scope="session")
def no_fsync() -> Iterator[None]:
    """Waiting for the disk is most of the time of tiny runs, and no test can cut the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the street scenes that tiny runs train on."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def config(scenes: Path, no_fsync: None) -> Callable[..., Config]:
    """The configuration of a tiny run, with other settings of its section train."""
    from tiny_runs import tiny_config

    return lambda **train_settings: tiny_config(scenes, **train_settings)


@pytest.fixture(scope="session")
def trained(scenes: Path, no_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainResult]:
    """One run of two epochs, which several tests look at and none may write to."""
    from tiny_runs import digests, tiny_config

    from solo_attn.training import train

    result = train(tiny_config(scenes), tmp_path_factory.mktemp("run"))
    before = digests(result.run_dir)
    yield result
    after = digests(result.run_dir)
    changed = sorted(path.name for path in before | after if before.get(path) != after.get(path))
    assert not changed, "a test wrote to the run that others look at: copy it first"
