"""float32 factors of dot products as TensorFloat-32: rounded, as the tensor cores cut off what is left over.

The interpreter multiplies exactly, so here it is given factors as the tensor cores read them: without their
13 lowest bits.
"""

import os
import subprocess
import sys

import pytest

from solo_attn.backends import triton_runtime

pytestmark = [
    pytest.mark.skipif(triton_runtime.MISSING is not None, reason=str(triton_runtime.MISSING)),
    pytest.mark.skipif(triton_runtime.INTERPRETED, reason="TRITON_INTERPRET is set: it starts its own"),
]

CODE = """
import numpy as np, torch
from triton.runtime import interpreter
from solo_attn.kernels import attention_residual, grid_attention
from solo_attn.kernels._chosen_cells import rows_bwd
from solo_attn.reference import attention_residual as residual_reference
from solo_attn.reference import grid_attention as reference

exact = interpreter.InterpreterBuilder.create_dot

def cut(x):
    if x.data.dtype != np.float32:
        return x
    bits = np.ascontiguousarray(x.data).view(np.uint32) & ~np.uint32(0x1FFF)
    return interpreter.TensorHandle(bits.view(np.float32), x.dtype)

def as_tensor_cores(self, a, b, d, precision, *rest):
    tf32 = precision == interpreter._ir.INPUT_PRECISION.TF32
    return exact(self, cut(a) if tf32 else a, cut(b) if tf32 else b, d, precision, *rest)

interpreter.InterpreterBuilder.create_dot = as_tensor_cores

def report(out, expected):
    # By how much all are too large, and how far off the worst is.
    error = (out.double() - expected) / expected
    print(error.mean().item(), error.abs().max().item())

torch.manual_seed(0)
# Sums of thousands of terms of one sign, in which a bias would show.
features = torch.rand(1, 16, 9, 9).half() + 1
grad = torch.rand(1, 81, 9, 9) + 1
wide = features.double()
whole = grid_attention.grid_attention_bwd(grad, features.float(), 1.0, None, True)
report(whole, reference.grid_attention_bwd(grad.double(), wide, 1.0, None))
half = grid_attention.grid_attention_bwd(grad, features, 2.0**-12, None)
report(half.float() * 2.0**12, reference.grid_attention_bwd(grad.double(), wide, 1.0, None))
cells = torch.tensor([[0, 3], [0, 80], [0, 3], [0, 41]])
rows = grad[0, :4]
chosen = grid_attention.grid_attention_bwd(rows, features.float(), 1.0, cells, True)
report(chosen, reference.grid_attention_bwd(rows.double(), wide, 1.0, cells))
real = torch.rand(1, 16, 9, 9) + 1
whole = grid_attention.grid_attention(real, 1.0, None, True)
report(whole, reference.grid_attention(real.double(), 1.0, None))
logits = torch.zeros(1, 81, 20, 20)
report(
    attention_residual.attention_residual(logits, real, 1.0, True),
    residual_reference.attention_residual(logits.double(), real.double(), 1.0),
)
special = torch.full((1, 1, 1, 1), float("nan"))
print(grid_attention.grid_attention(special, 1.0, None, True).isnan().all().item())
nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).reshape(1, 1, 1, 1)
print(grid_attention.grid_attention(nan, 1.0, None, True).isnan().all().item())
"""


@pytest.fixture(scope="module")
def lines():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (0, "backward, float32"),
        (1, "backward, half precision beside a float32 gradient"),
        (2, "backward of chosen cells"),
        (3, "forward"),
        (4, "attention_residual"),
    ],
)
def test_no_bias(lines, number, what):
    """Cut off, a factor is too small by 2^-12 on average; rounded, by less the more terms there are."""
    bias, worst = map(float, lines[number].split())
    assert abs(bias) < 2.0**-15, what
    assert worst < 2.0**-10, what


def test_nan_stays(lines):
    """Also where adding to its bits makes another number of it."""
    assert lines[5:] == ["True", "True"]
