"""How float32 is multiplied on a GPU."""

import torch


def tf32() -> bool:
    """Whether products of float32 may be made of 10 bits of mantissa, as TensorFloat-32 has.

    They may where PyTorch's own matmuls may: ``torch.backends.cuda.matmul.fp32_precision``, which
    ``allow_tf32`` and ``torch.set_float32_matmul_precision`` set as well.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A constant of the graph that torch.compile makes; it compiles again when PyTorch's switch changes.
tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
