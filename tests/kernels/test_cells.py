"""Chosen cells out of range: the Triton kernel that multiplies them asserts that there are none."""

import importlib
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import solo_attn
from solo_attn.backends import triton_runtime
from solo_attn.ops import _library

pytestmark = [
    pytest.mark.skipif(triton_runtime.MISSING is not None, reason=str(triton_runtime.MISSING)),
    pytest.mark.skipif(triton_runtime.INTERPRETED, reason="TRITON_INTERPRET is set: it starts its own"),
]
MESSAGE = "grid_attention: expected cells of (image < B, cell < S*S)"
CODE = """
import torch
from solo_attn.kernels import _chosen_cells

_chosen_cells.check_cells = lambda *args: None  # what is checked before, on a CPU
x = torch.ones(2, 2, 3, 3)
good = [[1, 8]] * 40
print(len(_chosen_cells.rows(x, 1.0, torch.tensor(good), False)))
for bad in ([2, 0], [-1, 0], [0, 9], [0, -1], [1 << 40, 0]):
    try:
        _chosen_cells.rows(x, 1.0, torch.tensor([*good, bad]), False)
    except Exception as error:
        print(error)
"""


@pytest.mark.slow
def test_the_kernel_says_so():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "40"
    assert len(others) == 5
    assert all(MESSAGE in line for line in others)


def test_as_launched_the_assertion_is_there():
    """By default Triton leaves assertions out."""
    from solo_attn.kernels import _launch, grid_attention
    from triton_launches import recording

    with recording() as launches:
        grid_attention.grid_attention(torch.empty(1, 16, 4, 4), 1.0, torch.zeros(3, 2, dtype=torch.int64))
    (launch,) = launches
    code = launch.compiled(launch.configs[0], 90).asm["ptx"]
    assert "__assertfail" in code
    assert ", ".join(map(str, MESSAGE.encode())) in code
    with _launch.traced(), recording() as launches:
        grid_attention.grid_attention(torch.empty(1, 16, 4, 4), 1.0, torch.zeros(3, 2, dtype=torch.int64))
    (launch,) = launches
    assert "__assertfail" not in launch.compiled(launch.configs[0], 90).asm["ptx"]


class Counted(TorchDispatchMode):
    """The operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__ != "device.default":  # it is no work
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("callables", [_library._OVERLOADS, _library._DIRECT], ids=["in_a_graph", "eager"])
def test_nothing_but_the_kernel_is_launched(callables):
    """Where Triton runs; a graph has operations that Inductor joins. `pick` returns either callable."""
    triton = callables[triton_runtime.NAMESPACE, "grid_attention"]
    op = importlib.import_module("solo_attn.ops.grid_attention")
    with FakeTensorMode(), torch.device("cuda"), mock.patch.object(op, "pick", return_value=triton):
        x, cells = torch.ones(1, 2, 3, 3), torch.zeros(4, 2, dtype=torch.int64)
        with Counted() as found:
            solo_attn.grid_attention(x, 1.0, cells)
        assert found.names == ["grid_attention.default"]
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True), Counted() as found:
            solo_attn.grid_attention(x, 1.0, cells)
        assert "_assert_async.msg" in found.names
