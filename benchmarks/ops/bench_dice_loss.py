"""How fast dice_loss is: python -m pytest benchmarks/ops/bench_dice_loss.py"""

from solo_attn.bench.cases import dice_loss, dice_loss_factors


def test_dice_loss(measure, device):
    measure(dice_loss(device), "forward")


def test_dice_loss_backward(measure, device):
    measure(dice_loss(device), "backward")


def test_dice_loss_factors(measure, device):
    measure(dice_loss_factors(device), "forward")


def test_dice_loss_factors_backward(measure, device):
    measure(dice_loss_factors(device), "backward")
