"""How fast attention_residual is: python -m pytest benchmarks/ops/bench_attention_residual.py"""

import dataclasses

from benchmarks.report.scaling import FIRST_RESULT
from solo_attn.backends import release_memory
from solo_attn.bench.cases import attention_residual, attention_residual_inplace


def test_attention_residual_inplace(measure, device):
    measure(attention_residual_inplace(device), "forward")


def test_attention_residual(measure, device):
    """Also where no earlier result has left its memory."""
    case = attention_residual(device)

    def first_result():
        release_memory()
        return case.kernel(None, *case.inputs)

    others = {FIRST_RESULT: first_result} if device == "cpu" else {}
    measure(dataclasses.replace(case, others=others), "forward")


def test_attention_residual_backward(measure, device):
    measure(attention_residual(device), "backward")
