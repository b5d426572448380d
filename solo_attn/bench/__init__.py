"""What the ops cost: inputs as they occur, and times that can be compared."""

from .._utils.environment import environment
from .case import Case, agree
from .cases import CASES
from .contenders import COMPILED, FLOOR, PLAIN, backends, backward, forward
from .quiet import Quiet, run_until_steady, wait_until_quiet
from .timing import Race, Times, peak_memory

__all__ = [
    "CASES",
    "COMPILED",
    "FLOOR",
    "PLAIN",
    "Case",
    "Quiet",
    "Race",
    "Times",
    "agree",
    "backends",
    "backward",
    "environment",
    "forward",
    "peak_memory",
    "run_until_steady",
    "wait_until_quiet",
]
