"""How fast paste_masks is: python -m pytest benchmarks/ops/bench_paste_masks.py"""

from solo_attn.bench.cases import paste_masks, paste_masks_rle


def test_paste_masks(measure, device):
    measure(paste_masks(device), "forward")


def test_paste_masks_rle(measure, device):
    measure(paste_masks_rle(device), "forward")
