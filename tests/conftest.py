"""``benchmarks`` and ``tools`` can be imported, behind what is installed, whose solo_attn is tested."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
