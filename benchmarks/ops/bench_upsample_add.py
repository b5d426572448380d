"""How fast upsample_add is: python -m pytest benchmarks/ops/bench_upsample_add.py"""

from solo_attn.bench.cases import upsample_add


def test_upsample_add(measure, device):
    measure(upsample_add(device), "forward")


def test_upsample_add_backward(measure, device):
    measure(upsample_add(device), "backward")
