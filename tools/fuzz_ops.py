"""Random arguments of the ops: the C++ kernels against the reference, forward and backward."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import solo_attn
from solo_attn import MaskFactors

NOT_FINITE = ([torch.inf], [-torch.inf], [torch.nan], [torch.inf, -torch.inf, torch.nan])
PIXELS = 1  # of a mask that may differ: those whose probability is the threshold but for rounding

Call = Callable[[str], Tensor]  # from the name of a backend


class Inputs:
    """Small tensors of one dtype, of odd sizes and strides, some of them with values that are not finite.

    Args:
        rng: chooses everything.
        finite: whether all values are.
    """

    def __init__(self, rng: random.Random, finite: bool) -> None:
        self.rng, self.finite = rng, finite
        torch.manual_seed(rng.randrange(2**31))
        self.dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32, torch.float64])
        self.count, self.side, self.h, self.w = (rng.randint(1, n) for n in (5, 6, 9, 9))
        self.size = rng.choice([(2 * self.h, 2 * self.w), self.large(30)])
        self.out = self.large(40)
        self.asked: list[Tensor] = []  # what gradients are compared of

    def large(self, most: int) -> tuple[int, int]:
        """The size of a map."""
        return self.rng.randint(1, most), self.rng.randint(1, most)

    def floats(self, *shape: int, scales: tuple[float, ...] = (0.1, 1, 30)) -> Tensor:
        """Values around 0, whose gradient is compared."""
        x = self.broken((torch.randn(*shape) * self.rng.choice(scales)).to(self.dtype))
        if self.rng.random() < 0.3 and x.dim() > 1:
            x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        self.asked.append(x.requires_grad_())
        return x

    def broken(self, x: Tensor) -> Tensor:
        """``x`` with some values that are not finite, unless all are to be; it is written to."""
        if not self.finite and x.numel():
            values = torch.tensor(self.rng.choice(NOT_FINITE), dtype=x.dtype)
            places = torch.randint(x.numel(), (max(1, x.numel() // 8),))
            x.view(-1)[places] = values[torch.randint(len(values), places.shape)]
        return x

    def masks(self, size: tuple[int, int]) -> Tensor:
        """Bool [count, *size]."""
        return torch.rand(self.count, *size) < self.rng.random()

    def rows(self) -> Tensor | None:
        """Attention of the cells, or none."""
        return self.rng.choice([None, self.floats(self.count, self.side, self.side)])

    def coarse(self) -> Tensor:
        """Logits of the cells."""
        return self.floats(self.count, self.h, self.w)

    def factors(self) -> MaskFactors:
        """The same as a product; large factors would have logits of which rounding leaves nothing."""
        depth, batch = self.rng.randint(1, 20), self.rng.randint(1, 3)
        return MaskFactors(
            self.floats(self.count, depth, scales=(0.1, 1)),
            self.floats(batch, depth, self.h, self.w, scales=(0.1, 0.5)),
            torch.randint(batch, (self.count,)),
        )

    def features(self) -> Tensor:
        """Of one sign, so that sums are as large as their terms."""
        x = self.floats(self.rng.randint(1, 2), 3, self.side, self.side)
        self.asked[-1] = x = x.detach().abs().requires_grad_()
        return x


def grid_attention(i: Inputs) -> Call:
    """For all cells, or chosen ones."""
    x, cells = i.features(), None
    if i.rng.random() < 0.5:
        cells = torch.stack([torch.randint(len(x), (i.count,)), torch.randint(i.side**2, (i.count,))], dim=1)
    return lambda backend: solo_attn.grid_attention(x, 0.5, cells, backend=backend)


def attention_residual(i: Inputs) -> Call:
    """Whole maps."""
    x = i.features()
    logits = i.floats(len(x), i.side**2, *i.out)
    return lambda backend: solo_attn.attention_residual(logits, x, backend=backend)


def upsample_add(i: Inputs) -> Call:
    """Any sizes."""
    coarse, rows = i.coarse(), i.rows()
    return lambda backend: solo_attn.upsample_add(coarse, rows, i.size, backend=backend)


def dice_loss(i: Inputs) -> Call:
    """Of logits, or of their factors."""
    if i.rng.random() < 0.5:
        given, masks = i.factors(), i.masks((i.h, i.w))
    else:
        given, masks = i.coarse(), i.masks(i.size)
    rows = i.rows()
    return lambda backend: solo_attn.dice_loss(given, rows, masks, backend=backend)


def matrix_nms(i: Inputs) -> Call:
    """Scores of any dtype."""
    masks, labels = i.masks(i.out), torch.randint(2, (i.count,))
    scores = i.floats(i.count).detach()
    scores = scores.sigmoid() if i.finite else scores
    kernel, sigma = i.rng.choice(["gaussian", "linear"]), i.rng.choice([1e-3, 2.0, 1e39])
    return lambda backend: solo_attn.matrix_nms(masks, labels, scores, kernel, sigma, backend=backend)


def mask_iou(i: Inputs) -> Call:
    """Of masks with themselves."""
    masks = i.masks(i.out)
    return lambda backend: solo_attn.mask_iou(masks, backend=backend)


def areas(i: Inputs) -> Call:
    """Of `mask_bits`, whose bits are compared by their number; in float64, where few are close calls."""
    i.dtype, size, out = torch.float64, i.size, i.out
    given: Tensor | MaskFactors = i.coarse()
    if i.rng.random() < 0.5:
        given = i.factors()
        size = out = given.size
    rows = i.rows()
    return lambda backend: solo_attn.mask_bits(given, rows, size, out, backend=backend).areas.double()


def pasted(i: Inputs) -> Call:
    """The areas of `paste_masks`."""
    i.dtype = torch.float64
    coarse, rows, original = i.coarse(), i.rows(), i.large(50)
    image = tuple(i.rng.randint(1, 4 * side) for side in i.out)
    sizes = (i.size, i.out, image, original)
    return lambda backend: (
        solo_attn.paste_masks(coarse, rows, *sizes, backend=backend).flatten(1).sum(1).double()
    )


OPS = (
    grid_attention,
    attention_residual,
    upsample_add,
    dice_loss,
    matrix_nms,
    mask_iou,
    areas,
    pasted,
)


def fuzz_op(rng: random.Random, folder: Path) -> None:
    """The C++ kernels against the reference: every dtype, strides, small and odd sizes, gradients."""
    inputs = Inputs(rng, finite=rng.random() < 0.6)
    op = rng.choice(OPS)
    call = op(inputs)
    expected, found = call("reference"), call("cpu")
    slack = PIXELS if op in (areas, pasted) else 0
    _compare(op.__name__, found, expected, slack)
    # Of a product or a loss, what infinities cancel to depends on the order of its factors.
    if not expected.requires_grad or not (inputs.finite or op is upsample_add):
        return
    upstream = torch.randn(expected.shape, dtype=torch.float64).to(expected.dtype)
    if rng.random() < 0.5:
        upstream = inputs.broken(upstream)
    asked = [x for x in inputs.asked if x.requires_grad]
    wanted, got = (torch.autograd.grad(y, asked, upstream, allow_unused=True) for y in (expected, found))
    for a, b in zip(got, wanted, strict=True):
        if b is not None:
            _compare(f"the gradient of {op.__name__}", a, b)


def _compare(what: str, found: Tensor, expected: Tensor, slack: float = 0) -> None:
    step = torch.finfo(expected.dtype).eps
    a, b = found.detach().double(), expected.detach().double()
    finite = b.isfinite()
    scale = float(b[finite].abs().max()) if finite.any() else 0
    close = found.dtype == expected.dtype and a.shape == b.shape
    if not close or not torch.allclose(a, b, 32 * step, 32 * step * scale + slack + 1e-9, equal_nan=True):
        raise AssertionError(f"{what}: cpu differs from the reference")
