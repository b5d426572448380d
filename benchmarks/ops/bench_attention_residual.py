"""How fast attention_residual is: python -m pytest benchmarks/ops/bench_attention_residual.py"""

from solo_attn.bench.cases import attention_residual, attention_residual_inplace


def test_attention_residual_inplace(measure, device):
    measure(attention_residual_inplace(device), "forward")


def test_attention_residual(measure, device):
    measure(attention_residual(device), "forward")


def test_attention_residual_backward(measure, device):
    measure(attention_residual(device), "backward")
