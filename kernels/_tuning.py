"""Which configuration of block sizes a kernel runs in: timed once, and never where that would do harm."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.runtime.autotuner import Autotuner

INTERPRETED = bool(triton.knobs.runtime.interpret)
# The number of the configuration that every kernel uses (modulo its number of configurations) instead of the
# fastest: bitwise the same on every machine with the same GPU. Timing in the interpreter means nothing.
_GIVEN = os.environ.get("SOLO_ATTN_TUNE") or ("0" if INTERPRETED else None)


class Tuner(Autotuner):
    """Triton's own, made safe for threads and CUDA graphs.

    Timing waits for the device, which is an error during the capture of a graph: a launch that is captured
    before anything was timed uses the first configuration, and the choice remains open. Triton stores the
    arguments that it times with in the tuner, so one thread times at a time; launches whose choice is made
    do not take the lock.
    """

    def __init__(self, kernel: Any, configs: Sequence[triton.Config], key: Sequence[str]) -> None:
        super().__init__(kernel, kernel.arg_names, list(configs), list(key), None, None, cache_results=True)
        self._lock = threading.Lock()
        self._chosen: dict[tuple[Any, ...], triton.Config] = {}

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        dtypes = [x.dtype for x in given.values() if hasattr(x, "dtype")]
        return (*(given[name] for name in self.keys if name in given), *dtypes)

    def is_open(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a launch with such arguments would be timed."""
        return len(self.configs) > 1 and self._key(args, kwargs) not in self._chosen and not _capturing()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Launch the kernel in its configuration for these arguments."""
        config = self.configs[0]
        if len(self.configs) > 1:
            key = self._key(args, kwargs)
            if key in self._chosen:
                config = self._chosen[key]
            elif not _capturing():
                with self._lock:
                    out = super().run(*args, **kwargs)
                    self._chosen[key] = self.best_config
                return out
        return self.fn.run(*args, **kwargs, **config.all_kwargs())


def _capturing() -> bool:
    """Whether this thread's stream is being captured into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def config(num_warps: int, num_stages: int = 2, **constants: int) -> triton.Config:
    """One choice of a kernel's block sizes."""
    return triton.Config(constants, num_warps=num_warps, num_stages=num_stages)


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Tuner]:
    """Time the configurations on the first call for each ``key`` and remember the best, on disk too.

    ``SOLO_ATTN_TUNE`` names one instead.
    """
    choice = configs if _GIVEN is None else [configs[int(_GIVEN) % len(configs)]]
    return lambda kernel: Tuner(kernel, choice, key)
