"""How fast grid_attention is: python -m pytest benchmarks/ops/bench_grid_attention.py"""

from solo_attn.bench.cases import grid_attention


def test_grid_attention(measure, device):
    measure(grid_attention(device), "forward")


def test_grid_attention_backward(measure, device):
    measure(grid_attention(device), "backward")
