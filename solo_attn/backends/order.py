"""Which of the backends that can run an op goes first: one table, with the reason for each row.

The rows of a GPU are what the kernels' machine code and the bytes that they move let one reckon; no GPU has
been asked yet. ``make results`` proposes rows anew from what was measured, as soon as something was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """An order of backends, for some ops, dtypes and sizes.

    Attributes:
        ops: names of ops; empty for all.
        dtypes: of the op's floating-point input (of its result where it has none); empty for all.
        least: the size from which on it counts: elements of the op's first tensor, of grid_attention those of
            its result.
        backends: names, the one to take first at the front. They change places among themselves, and others
            keep theirs in the registry.
        source: "reckoned" or "measured".
        reason: why, in a line.
    """

    ops: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    least: int
    backends: tuple[str, ...]
    source: str
    reason: str

    def __str__(self) -> str:
        from_size = f" from {self.least:,} elements on" if self.least else ""
        return f"{' before '.join(self.backends)}{from_size} ({self.source}): {self.reason}"


# Of a device type: the first row that fits counts. The last one of each fits always.
ORDER: dict[str, tuple[Row, ...]] = {
    "cuda": (
        Row(
            ("grid_attention",),
            (),
            1 << 20,
            ("cuda", "triton"),
            "reckoned",
            "half of a symmetric map, on the tensor cores: exact float32 of 40 x 40 cells in 8 us, not 20",
        ),
        Row(
            ("matrix_nms",),
            (),
            0,
            ("cuda", "triton"),
            "reckoned",
            "bits are counted on the tensor cores: 500 masks in 26 to 32 us against 35 to 100",
        ),
        Row(
            ("attention_residual",),
            (),
            0,
            ("cuda", "triton"),
            "reckoned",
            "a stream without barriers, 13 instructions a pixel: 170 to 240 us against 250 to 310",
        ),
        Row(
            ("upsample_add", "dice_loss", "mask_bits", "paste_masks"),
            (),
            0,
            ("cuda", "triton"),
            "reckoned",
            "9 to 107 instructions a pixel where Triton's kernels have 105 to 800",
        ),
        Row((), (), 0, ("cuda", "triton"), "reckoned", "a launch from C++ takes the host less time"),
    ),
    "cpu": (
        Row(
            (),
            (),
            0,
            ("cpu", "reference"),
            "measured",
            "docs/results.md, on a CPU; there Triton is its interpreter, for tests",
        ),
    ),
}
_ANY = Row((), (), 0, ("reference",), "reckoned", "nothing else knows this device")


def row_of(op: str, device_type: str, dtype: torch.dtype, size: int | None = None) -> Row:
    """The row that counts for an op on tensors like these; ``size`` as in `Row`, None for large ones.

    A size is looked at where a row depends on it, and nowhere else: torch.compile, where sizes are symbols,
    compiles again on the other side of it.
    """
    for row in ORDER.get(device_type, ()):
        if (
            (not row.ops or op in row.ops)
            and (not row.dtypes or dtype in row.dtypes)
            and (row.least == 0 or size is None or size >= row.least)
        ):
            return row
    return _ANY
