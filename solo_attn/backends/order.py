"""The order of the backends that can run an op: one table, with a reason for each row.

The rows for GPUs are estimates from the kernels' machine code and the bytes that they move; nothing has been
measured on a GPU yet. ``make results`` proposes new rows as soon as there are measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """An order of backends, for some ops, dtypes and sizes.

    Attributes:
        ops: names of ops; empty for all.
        dtypes: of the op's floating-point input (of its result if it has none); empty for all.
        least: the smallest size that the row applies to: elements of the op's first tensor, or of the result
            of grid_attention.
        backends: names in order of preference. Backends that are not named keep their place in the registry.
        source: "estimated" or "measured".
        reason: why, in one line.
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


# By device type: the first row that fits applies. The last row of each always fits.
ORDER: dict[str, tuple[Row, ...]] = {
    "cuda": (
        Row(
            ("grid_attention",),
            (),
            1 << 20,
            ("cuda", "triton"),
            "estimated",
            "half of a symmetric map, on the tensor cores: exact float32, 40 x 40 cells, 8 us and not 20",
        ),
        Row(
            ("matrix_nms",),
            (),
            0,
            ("cuda", "triton"),
            "estimated",
            "bits are counted on the tensor cores: 500 masks in 26 to 32 us against 35 to 100",
        ),
        Row(
            ("attention_residual",),
            (),
            0,
            ("cuda", "triton"),
            "estimated",
            "a stream without barriers, 13 instructions a pixel: 170 to 240 us against 250 to 310",
        ),
        Row(
            ("upsample_add", "dice_loss", "mask_bits", "paste_masks"),
            (),
            0,
            ("cuda", "triton"),
            "estimated",
            "9 to 67 instructions a pixel where Triton's kernels have 105 to 800",
        ),
        Row((), (), 0, ("cuda", "triton"), "estimated", "a launch from C++ takes the host less time"),
    ),
    "cpu": (
        Row(
            (),
            (),
            0,
            ("cpu", "reference"),
            "measured",
            "docs/speed.md, on a CPU; there Triton is its interpreter, for tests",
        ),
    ),
}
_ANY = Row((), (), 0, ("reference",), "estimated", "no other backend supports this device")


def row_of(op: str, device_type: str, dtype: torch.dtype, size: int | None = None) -> Row:
    """The row that applies to an op on such tensors; ``size`` as in `Row`, None for large ones.

    A size is compared only if a row depends on it: for torch.compile, where sizes are symbols, the comparison
    is a guard that compiles again on the other side of the limit.
    """
    for row in ORDER.get(device_type, ()):
        if (
            (not row.ops or op in row.ops)
            and (not row.dtypes or dtype in row.dtypes)
            and (row.least == 0 or size is None or size >= row.least)
        ):
            return row
    return _ANY
