from collections.abc import Iterator

import pytest
import torch
from op_cases import deterministic, runners

from solo_attn.backends import compiled


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
