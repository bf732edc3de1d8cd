"""Records calls as CUDA graphs, and keeps a thread from running far ahead of its GPU.

Duty: the little that only a GPU can do; everything that decides is in `calls`.
Must not know: what is called.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Libraries make handles, workspaces and plans at their first calls, which none may in a capture.
_WARM_UPS = 2
# Steps that a thread may have given to the GPU and that are not done.
_AHEAD = 2
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def without_captures() -> Iterator[None]:
    """No capture begins in this block: for threads that move LoRAs to the GPU meanwhile."""
    with _ONE_AT_A_TIME:
        yield


class CudaRecording:
    """One CUDA graph and where it leaves its output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Any, nbytes: int) -> None:
        self._graph = graph
        self._output = output
        self.nbytes = nbytes

    def replay(self) -> Any:
        """Queue the whole call on the present stream."""
        self._graph.replay()
        return self._output

    def discard(self) -> None:
        """Give up graph and output; what still runs is waited for."""
        torch.cuda.synchronize()
        self._output = None
        self._graph.reset()


class CudaRecorder:
    """Records on one device, always on one side stream, as its pools' memory asks for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pools: dict[str, Any] = {}

    def record(self, call: Callable[[], Any], pool: str) -> CudaRecording:
        """`call` as a graph; it is run a few times before."""
        with torch.cuda.device(self._device), _ONE_AT_A_TIME:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            # Of its own: a capture that fails leaves its stream the present one.
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    call()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                if pool not in self._pools:
                    self._pools[pool] = torch.cuda.graph_pool_handle()
                try:
                    with torch.cuda.graph(
                        graph,
                        pool=self._pools[pool],
                        stream=self._stream,
                        capture_error_mode="thread_local",
                    ):
                        output = call()
                except BaseException:
                    # A pool that a capture broke off in is used by none again.
                    self._pools.pop(pool, None)
                    raise
            before.wait_stream(self._stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            taken = free - torch.cuda.mem_get_info()[0]
            return CudaRecording(graph, output, max(0, taken))

    def start_anew(self, pool: str) -> None:
        """The next recording there gets a pool of its own; what is free goes back."""
        self._pools.pop(pool, None)
        torch.cuda.empty_cache()


class Pace:
    """Keeps this thread at most a few steps ahead of the GPU.

    Else every step of a picture would be queued within milliseconds: no cancellation would be
    heeded before its end, and progress would be told long before it is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[Any] = deque()

    def mark(self) -> None:
        """A step was queued: wait, without the interpreter's lock, for the one before the last."""
        if not self._on_gpu:
            return
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)
        if len(self._marks) > _AHEAD:
            self._marks.popleft().synchronize()
