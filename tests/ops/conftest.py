import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import shim
import torch
from op_cases import TESTED, deterministic, runners

from solo_attn.backends import compiled, registry, triton_runtime

wanted: set[str] = set()  # test files with a test that the interpreter is meant to run
passed: set[str] = set()  # those with one that passed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process with TRITON_INTERPRET set: the backend triton alone, without what is too much for it."""
    if not triton_runtime.INTERPRETED:
        return
    others = []
    for item in [item for item in items if item.path.is_relative_to(Path(__file__).parent)]:
        runner = item.callspec.params.get("runner") if hasattr(item, "callspec") else None
        if runner is None or runner.backend != "triton":
            others.append(item)
        elif mark := item.get_closest_marker("not_interpreted"):
            item.add_marker(pytest.mark.skip(reason=f"in Triton's interpreter: {mark.args[0]}"))
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in {*others}]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.partition("::")[0]
    if "not_interpreted" not in report.keywords:
        wanted.add(file)
    if report.when == "call" and report.passed:
        passed.add(file)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Skips alone are no proof of a kernel. Where processes share the tests, one hears of all reports."""
    if not triton_runtime.INTERPRETED or session.config.option.collectonly:
        return
    if hasattr(session.config, "workerinput"):
        return
    if missing := sorted(wanted - passed) or ([] if wanted else ["tests/ops"]):
        print(f"\nno test ran on the backend triton in {', '.join(missing)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``runner`` runs the op that the test file names (OP) on each backend of the registry, or on BACKEND."""
    if "runner" in metafunc.fixturenames:
        module = metafunc.module
        metafunc.parametrize("runner", runners(module.OP, getattr(module, "BACKEND", None)))


@pytest.fixture(autouse=True)
def unwritten_memory_shows() -> Iterator[None]:
    """torch.empty comes filled with NaN, so that an output an op forgot to write is seen."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic(True):
        assert torch.empty(3).isnan().all()
        yield


@pytest.fixture(autouse=True)
def one_instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The C++ kernels run the path that the runner names, in processes that a test starts too."""
    runner = request.getfixturevalue("runner") if "runner" in request.fixturenames else None
    if runner is None or runner.simd is None:
        yield
        return
    before = compiled.simd()
    monkeypatch.setenv("SOLO_ATTN_SIMD", runner.simd)
    assert compiled.simd(runner.simd) == runner.simd
    yield
    compiled.simd(before)


@pytest.fixture(autouse=True)
def the_shim_is_a_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public functions find it in the registry; lanes and blocks go in an order of the test's own."""
    runner = request.getfixturevalue("runner") if "runner" in request.fixturenames else None
    if runner is not None and runner.backend == "shim":
        shim.seed(zlib.crc32(request.node.name.encode()))
        monkeypatch.setattr(registry, "BACKENDS", TESTED)
        monkeypatch.setattr(registry, "NAMES", tuple(backend.name for backend in TESTED))
