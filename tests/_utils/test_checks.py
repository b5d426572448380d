"""What counts as a number."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest

from solo_attn._utils.checks import is_finite, is_integer


@pytest.mark.parametrize("value", [0, -3, 2.5, np.float32(0.5), np.int64(7)])
def test_numbers(value: object) -> None:
    assert is_finite(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, True, "1", None, [1.0], 1j, Decimal(1), np.float32("nan"), 10**400],
)
def test_no_numbers(value: object) -> None:
    assert not is_finite(value)


def test_integers() -> None:
    assert is_integer(3, 3)
    assert is_integer(np.int32(4), 3)
    for value in (2, 3.0, True, "3", None):
        assert not is_integer(value, 3)
