"""The wheel that the tests of tools/ look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from built_wheel import pack


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this tree and the extension that is compiled."""
    return pack(tmp_path_factory.mktemp("wheel"))
