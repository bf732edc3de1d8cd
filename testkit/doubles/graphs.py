"""In the place of CUDA graphs: a recorder that makes the recorded operations again, in the memory
that they were recorded with; and `torch.cuda` itself, for the recorder that uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sdxl_worker.graphs.tree import mapped, tensors_of

if TYPE_CHECKING:
    # Not at run time: benchmarks use the recorder, too.
    import pytest


# What needs an answer from the device, which a capture cannot wait for.
_WAITING = frozenset({"_local_scalar_dense", "equal", "nonzero", "is_nonzero"})


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps each operation with its tensors while they are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _WAITING:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        output = func(*args, **(kwargs or {}))
        # Their memory, not the objects: those may be given another one.
        self.made.append(
            tree_map_only(torch.Tensor, torch.Tensor.detach, (func, args, kwargs or {}, output))
        )
        return output


class OneRecording:
    """Replays as a graph does: the operations themselves, on the very memory that they had. What
    has another place since then is not seen, and every replay writes over what the one before gave.
    """

    def __init__(self, call: Callable[[], Any], nbytes: int) -> None:
        with _Operations() as operations:
            self._output: Any = call()
        self._operations = operations.made
        self.nbytes = nbytes
        self.discarded = False

    def replay(self) -> Any:
        assert not self.discarded
        for function, args, kwargs, output in self._operations:
            for old, new in zip(
                tensors_of(output), tensors_of(function(*args, **kwargs)), strict=True
            ):
                # Views, and what is written in place, lie there already.
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return self._output

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


class CudaDouble:
    """`torch.cuda` as far as recording needs it, with the rules that torch's allocator has for
    captures; the calls run on the CPU.

    Attributes:
        invalid: the next capture is one that CUDA refuses to end.
        underway: pools that the allocator believes to be captured in.
        counts: how many graphs each pool holds.
        log: what was done in order.
        workspace: cuBLAS' on the recording stream; None: the next use makes one.
        freed: workspaces that are nobody's any more.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.invalid = False
        self.underway: list[Any] = []
        self.counts: dict[Any, int] = {}
        self.log: list[str] = []
        self.workspace: object | None = object()
        self.freed: list[object] = []
        self._handles = iter(range(1, 1000))
        double = self

        class Graph:
            pool: Any = None
            ended = False
            workspace: object = None

            def replay(self) -> None:
                double.log.append("replay")

            def reset(self) -> None:
                if self.ended:
                    # As torch does from 2.12 on, whoever else writes there.
                    double.clear_workspaces()
                    double.release(0, self.pool)
                    self.ended = False

        class Capture(AbstractContextManager[None]):
            def __init__(self, graph: Graph, *, pool: Any, stream: Any, capture_error_mode: str):
                assert capture_error_mode == "thread_local"
                graph.pool = pool
                self.graph = graph

            def __enter__(self) -> None:
                double.empty_cache()
                count = double.counts.get(self.graph.pool)
                if count == 0:
                    raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
                double.counts[self.graph.pool] = (count or 0) + 1
                double.workspace = self.graph.workspace = double.workspace or object()
                double.underway.append(self.graph.pool)

            def __exit__(self, *_: object) -> None:
                if double.invalid:
                    double.invalid = False
                    raise RuntimeError("operation failed due to a previous error during capture")
                double.underway.remove(self.graph.pool)
                self.graph.ended = True

        class Stream:
            def __init__(self, device: Any = None) -> None: ...

            def wait_stream(self, other: Any) -> None:
                double.log.append("wait")

            def synchronize(self) -> None:
                double.log.append("synchronize")

        values = {
            "Stream": Stream, "CUDAGraph": Graph, "graph": Capture,
            "stream": lambda _: nullcontext(), "device": lambda _: nullcontext(),
            "synchronize": lambda _=None: None, "empty_cache": self.empty_cache,
            "mem_get_info": lambda: (1 << 30, 1 << 31), "current_device": lambda: 0,
            "current_stream": lambda _=None: Stream(), "default_stream": lambda _=None: Stream(),
            "graph_pool_handle": lambda: (0, next(self._handles)),
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces", self.clear_workspaces, raising=False
        )

    def empty_cache(self) -> None:
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def clear_workspaces(self) -> None:
        if self.workspace is not None:
            self.freed.append(self.workspace)
        self.workspace = None

    def end(self, device: int, pool: Any) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device: int, pool: Any) -> None:
        assert self.counts[pool] > 0
        self.counts[pool] -= 1
