"""How fast mask_bits is: python -m pytest benchmarks/ops/bench_mask_bits.py"""

from solo_attn.bench.cases import mask_bits, mask_bits_factors


def test_mask_bits(measure, device):
    measure(mask_bits(device), "forward")


def test_mask_bits_factors(measure, device):
    measure(mask_bits_factors(device), "forward")
