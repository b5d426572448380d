from collections.abc import Iterator

import pytest
import torch
from op_cases import deterministic, runners


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``runner`` runs the op that the test file names (OP) on each backend of the registry."""
    if "runner" in metafunc.fixturenames:
        metafunc.parametrize("runner", runners(metafunc.module.OP))


@pytest.fixture(autouse=True)
def unwritten_memory_shows() -> Iterator[None]:
    """torch.empty comes filled with NaN, so that an output an op forgot to write is seen."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    with deterministic(True):
        assert torch.empty(3).isnan().all()
        yield
