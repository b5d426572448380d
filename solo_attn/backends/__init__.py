"""Which implementation of an op runs, and why."""

from . import compiled, triton_runtime
from .explain import Choice, Explanation, explain
from .precision import tf32
from .registry import BACKENDS, NAMES, OPS, Backend, select

__all__ = [
    "BACKENDS",
    "NAMES",
    "OPS",
    "Backend",
    "Choice",
    "Explanation",
    "compiled",
    "explain",
    "select",
    "tf32",
    "triton_runtime",
]
