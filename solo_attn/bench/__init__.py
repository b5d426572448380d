"""What the ops cost: inputs as they occur, and times that can be compared."""

from .cases import CASES, Case, agree
from .environment import environment
from .timing import Race, Times, peak_memory

__all__ = ["CASES", "Case", "Race", "Times", "agree", "environment", "peak_memory"]
