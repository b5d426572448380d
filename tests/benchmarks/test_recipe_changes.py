"""The recipe's changes are settings that exist, and each changes what its name says."""

from __future__ import annotations

import pytest

from benchmarks.end_to_end.recipe import CHANGES, RECIPE, changed
from solo_attn.training.config import differences


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one(name: str) -> None:
    config, recipe = changed(CHANGES[name]), changed(CHANGES[RECIPE])
    assert config.data.test_images == config.data.test_annotations == ""
    found = set(differences(recipe, config))
    assert found == {change.partition("=")[0] for change in CHANGES[name]}
