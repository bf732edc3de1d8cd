"""A recorder in the place of CUDA graphs: replays by calling again, into the first output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdxl_worker.graphs.tree import mapped, tensors_of


class OneRecording:
    """Replays by making the call again on its buffers, into the memory of the first output."""

    def __init__(self, call: Callable[[], Any], nbytes: int) -> None:
        self._call = call
        self._output: Any = call()
        self.nbytes = nbytes
        self.discarded = False

    def replay(self) -> Any:
        assert not self.discarded
        found = tensors_of(self._call())
        # As a graph does: every replay writes over what the one before gave.
        return mapped(self._output, lambda tensor: tensor.copy_(found.pop(0)))

    def discard(self) -> None:
        self.discarded = True


class FakeRecorder:
    """Charges each recording what `price` says, and fails when told to."""

    def __init__(self, price: int = 10) -> None:
        self.price = price
        self.made: list[tuple[str, OneRecording]] = []
        self.anew: list[str] = []
        self.failing: Exception | None = None
        self.wrong = False

    def record(self, call: Callable[[], Any], pool: str) -> OneRecording:
        if self.failing is not None:
            raise self.failing
        recording = OneRecording((lambda: mapped(call(), lambda t: t + 1)) if self.wrong else call,
                                 self.price)  # fmt: skip
        self.made.append((pool, recording))
        return recording

    def start_anew(self, pool: str) -> None:
        alive = [one for name, one in self.made if name == pool and not one.discarded]
        assert not alive, "a pool was given up while a recording of it was held"
        self.anew.append(pool)
