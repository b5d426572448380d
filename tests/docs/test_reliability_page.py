"""docs/reliability.md names every limit with its default."""

from __future__ import annotations

import re

from pages import ROOT

import solo_attn
from solo_attn._utils.limits import PREFIX, Limits

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_limit_and_no_other() -> None:
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| ([\d,]+) \|", PAGE, flags=re.MULTILINE)
    found = {name.lower(): int(number.replace(",", "")) for name, number in rows}
    assert found == {name: field.default for name, field in Limits.model_fields.items()}


def test_limits_are_where_the_page_says() -> None:
    assert "`solo_attn.limits.image_pixels`" in PAGE
    assert solo_attn.limits.image_pixels == Limits().image_pixels
