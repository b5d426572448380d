"""docs/mmdet.md does what it says, with mmdetection installed."""

from __future__ import annotations

import re
from pathlib import Path

from pages import follow

from benchmarks.peers.loading import need


def test_the_page(tmp_path: Path) -> None:
    output = follow("mmdet.md", tmp_path, Path(need("mmdet").__file__).parents[1])
    numbers = re.findall(r"(\d+) instances, scores differ by at most (\S+)", output)
    assert len(numbers) == 2
    for (count, difference), bound in zip(numbers, (1e-6, 1e-4), strict=True):
        assert int(count) > 5
        assert float(difference) <= bound
    pixels = re.search(r"pixels that differ: (\S+)", output)
    assert pixels is not None
    assert float(pixels[1]) <= 0.001
    assert "resnet18, 80 classes (person, bicycle, car, motorcycle, airplane, ...)" in output
    assert "note" not in output
