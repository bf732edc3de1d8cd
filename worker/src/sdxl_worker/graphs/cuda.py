"""Records calls as CUDA graphs, and keeps a thread from running far ahead of a GPU.

Duty: the little that only a GPU can do; everything that decides is in `calls`.
Must not know: what is called.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

# Libraries make handles, workspaces and plans at their first calls, which none may in a capture:
# the caller's own was one, this is one on the stream that is recorded.
_WARM_UPS = 1
# Steps that a thread may have given to the GPU and that are not done.
_AHEAD = 2
# Of a graph itself, outside of its pool: tens of megabytes.
_OUTSIDE_BYTES = 32 << 20
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def without_captures() -> Iterator[None]:
    """No capture begins in this block: for threads that move LoRAs to the GPU meanwhile."""
    with _ONE_AT_A_TIME:
        yield


@dataclass
class _Pool:
    handle: Any
    held: int = 0


class CudaRecording:
    """One CUDA graph and where it leaves its output."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        output: Any,
        nbytes: int,
        device: torch.device,
        discarded: Callable[[], None],
    ) -> None:
        self._graph: torch.cuda.CUDAGraph | None = graph
        self._output = output
        self._device = device
        self._discarded = discarded
        self.nbytes = nbytes

    def replay(self) -> Any:
        """Queue the whole call on the present stream."""
        assert self._graph is not None
        self._graph.replay()
        return self._output

    def discard(self) -> None:
        """Give up graph and output; what still runs is waited for."""
        if self._graph is None:
            return
        torch.cuda.synchronize(self._device)
        self._output = None
        self._graph.reset()
        self._graph = None
        self._discarded()


class CudaRecorder:
    """Records on one device, always on one side stream, as its pools' memory asks for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pools: dict[str, _Pool] = {}
        self._broken: list[torch.cuda.CUDAGraph] = []

    def record(self, call: Callable[[], Any], pool: str) -> CudaRecording:
        """`call` as a graph; it is run a few times before."""
        with torch.cuda.device(self._device), _ONE_AT_A_TIME:
            torch.cuda.synchronize()
            # As afterwards, so that they are in neither of the two.
            _free_workspaces()
            torch.cuda.empty_cache()
            # This process's: what the device has left changes by what others do there, too.
            reserved = torch.cuda.memory_reserved()
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            try:
                # Of its own: a capture that fails leaves its stream the present one.
                with torch.cuda.stream(self._stream):
                    for _ in range(_WARM_UPS):
                        call()
                    torch.cuda.synchronize()
                    graph, output = self._capture(call, pool)
            finally:
                # Also where a run broke off: what it queued may still write.
                before.wait_stream(self._stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            taken = torch.cuda.memory_reserved() - reserved + _OUTSIDE_BYTES
            held = self._pools[pool]
            held.held += 1
            return CudaRecording(
                graph, output, max(0, taken), self._device, lambda: self._let_go(pool, held)
            )

    def start_anew(self, pool: str) -> None:
        """The next recording there gets a pool of its own; what is free goes back."""
        self._pools.pop(pool, None)
        torch.cuda.empty_cache()

    def _capture(self, call: Callable[[], Any], pool: str) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        if pool not in self._pools:
            self._pools[pool] = _Pool(torch.cuda.graph_pool_handle())
        # Else the graph would write into one that all recordings share, and that torch frees with
        # the first of them that is discarded.
        _free_workspaces()
        try:
            with torch.cuda.graph(
                graph,
                pool=self._pools[pool].handle,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                output = call()
        except BaseException:
            _free_workspaces()
            self._break_off(graph, self._pools.pop(pool))
            raise
        # Its own, in its pool, is not for others.
        _free_workspaces()
        return graph, output

    def _break_off(self, graph: torch.cuda.CUDAGraph, pool: _Pool) -> None:
        """Put torch's allocator right after a capture that failed.

        Where CUDA refuses to end a capture, torch does not tell its allocator that it has ended:
        from then on `empty_cache` raises, in the whole process, and memory that is cached is not
        given back when it is short. A pool that this happened in is used by none again.
        """
        graph.reset()
        # The allocator of pinned memory cannot be told, and asks this object for good.
        self._broken.append(graph)
        # Raises where torch has ended the capture itself; and the names are not public.
        with suppress(RuntimeError, AttributeError):
            place = torch.cuda.current_device()
            torch._C._cuda_endAllocateToPool(place, pool.handle)
            torch._C._cuda_releasePool(place, pool.handle)

    def _let_go(self, name: str, pool: _Pool) -> None:
        """A recording of `pool` is gone. torch refuses to record in a pool that holds none."""
        pool.held -= 1
        if pool.held == 0 and self._pools.get(name) is pool:
            del self._pools[name]


def _free_workspaces() -> None:
    """Those of cuBLAS, which takes one for each stream and keeps it; no work may be queued."""
    # No public name; torch's own trees of graphs do the same.
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()


class Pace:
    """Keeps this thread at most a few steps ahead of the GPU.

    Else every step of a picture would be queued within milliseconds: no cancellation would be
    heeded before its end, and progress would be told long before it is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[Any] = deque()

    def mark(self) -> None:
        """A step was queued: wait, without the interpreter's lock, for the one before the last."""
        if self._device.type != "cuda":
            return
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)
        if len(self._marks) > _AHEAD:
            self._marks.popleft().synchronize()
