"""GPU times with cold caches, which can be compared with the floor of bytes and flops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from solo_attn.bench import Race
from solo_attn.bench.timing import Contender

SHORTEST, LONGEST = 400_000, 100_000_000  # clock cycles to wait, some 0.2 and 50 milliseconds


def larger_than_l2(device: str) -> Tensor:
    """A tensor; reading it evicts everything else from the L2 cache."""
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.zeros(max(1 << 28, 4 * size), dtype=torch.uint8, device=device).view(torch.float32)


class GpuRace(Race):
    """Times with a cold L2 cache, where all kernels are enqueued before the first one starts.

    The GPU is kept waiting for as long as the host needs. Where no wait is long enough, as where a run itself
    waits for the GPU, its time is the host's too, and `host_bound` names it.
    """

    def __init__(self, contenders: Mapping[str, Contender], device: str) -> None:
        self._cycles: dict[Contender, int] = {}
        self._bound: set[Contender] = set()
        if torch.device(device).type == "cuda":
            self._cold = larger_than_l2(device)
        super().__init__(contenders, device)
        # The first runs compile and allocate, and say nothing of the later ones.
        self._cycles.clear()
        self._bound.clear()

    @property
    def host_bound(self) -> list[str]:
        """The contenders that at least once started before all was enqueued."""
        return [name for name, run in self._contenders.items() if run in self._bound]

    def _time(self, run: Contender) -> float:
        if not self._cuda:
            return super()._time(run)
        while True:
            cycles = self._cycles.get(run, SHORTEST)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cold.amax()  # read, not written: what is written would go to memory during the run
            torch.cuda._sleep(cycles)
            start.record()
            run()
            stop.record()
            late = start.query()  # the wait was over before all was enqueued
            torch.cuda.synchronize()
            if not late or run in self._bound:
                return float(start.elapsed_time(stop)) / 1000
            if cycles < LONGEST:
                self._cycles[run] = 4 * cycles
            else:
                self._cycles[run] = SHORTEST
                self._bound.add(run)
