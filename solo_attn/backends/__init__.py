"""Which implementation of an op runs, and why."""

from . import compiled, triton_runtime
from .compiled import release_memory
from .explain import Choice, Explanation, explain
from .registry import BACKENDS, NAMES, OPS, Backend, select, tf32

__all__ = [
    "BACKENDS",
    "NAMES",
    "OPS",
    "Backend",
    "Choice",
    "Explanation",
    "compiled",
    "explain",
    "release_memory",
    "select",
    "tf32",
    "triton_runtime",
]
