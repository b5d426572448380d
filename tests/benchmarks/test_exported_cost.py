"""The comparison of runtimes refuses to time what is not the same."""

import pytest
import torch

from benchmarks.end_to_end.exported import check
from solo_attn.export import Found


def found(count: int = 2, **changes: torch.Tensor) -> Found:
    parts = {
        "scores": torch.tensor([[0.9, 0.5, 0.0]]),
        "labels": torch.tensor([[1, 0, 0]]),
        "masks": torch.zeros(1, 3, 4, 6),
        "count": torch.tensor([count]),
    }
    return Found(**{name: {**parts, **changes}.get(name, torch.zeros(1)) for name in Found._fields})


def test_the_same() -> None:
    assert check(found(), found(scores=torch.tensor([[0.9, 0.5005, 0.0]])))["scores"] == pytest.approx(
        5e-4, rel=1e-3
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": torch.tensor([[0.9, 0.4, 0.0]])},
        {"labels": torch.tensor([[1, 1, 0]])},
        {"masks": torch.ones(1, 3, 4, 6)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_differs_is_refused(changes: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="expected the results of PyTorch"):
        check(found(), found(**changes))


def test_nothing_found_proves_nothing() -> None:
    with pytest.raises(ValueError, match="expected instances to compare"):
        check(found(0), found(0))
