"""Seconds per phase of one request.

Must not know: what a phase does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdxl_contract.result import Phase, Timings

# The lane's phases. In the others the GPU works for somebody else, whom nobody has to wait for:
# least of all the event loop, on which they are timed.
_ON_DEVICE = frozenset({Phase.APPLY, Phase.TEXT_ENCODE, Phase.DENOISE, Phase.DECODE, Phase.RESTORE})


class Stopwatch:
    """Adds up seconds per phase; waits for the GPU at the end of a phase that uses it, so that its
    work counts."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._seconds: dict[Phase, float] = {}

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Counts the block's seconds under `phase`, also when it raises."""
        started = time.perf_counter()
        try:
            yield
            if self._cuda is not None and phase in _ON_DEVICE:
                torch.cuda.synchronize(self._cuda)
        finally:
            self.add(phase, time.perf_counter() - started)

    def add(self, phase: Phase, seconds: float) -> None:
        """Counts `seconds` more under `phase`."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def timings(self) -> Timings:
        """What was counted, in seconds with microseconds."""
        return Timings(**{phase.value: round(s, 6) for phase, s in self._seconds.items()})
