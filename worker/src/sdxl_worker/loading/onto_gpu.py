"""From the CPU's memory to a GPU by way of pinned memory: bytes, and a model's weights.

Duty: bytes in a row; every parameter and buffer of a model, in the layout that it had. What is
pageable goes through the driver's own small pieces, filled by one thread; here all of torch's
threads fill one half of the pinned memory while the other is on its way.
Must not know: pipelines, what is in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor, nn

from sdxl_worker.bits import is_dense
from sdxl_worker.loading.weight_reader import Reading

log = structlog.get_logger()
# Of pinned memory, twice: large enough that a copy pays, small beside what a LoRA takes.
_CHUNK_BYTES = 16 << 20
# Of the GPU's memory, beside the weights.
_SPARE_BYTES = 2 << 30


class Staging:
    """Copies bytes to a device by way of pinned memory that is there for good: while one half of it
    is on its way, the other is filled. One thread at a time, on one stream.

    Args:
        chunk: bytes of each half.
    """

    def __init__(self, device: torch.device, chunk: int = _CHUNK_BYTES) -> None:
        self._device = device
        self._chunks = [
            torch.empty(chunk, dtype=torch.uint8, pin_memory=device.type == "cuda")
            for _ in range(2)
        ]
        self._sent: list[Any] = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        # Which half is filled next: also small pieces, one after the other, take turns.
        self._turn = 0

    def copied(self, source: Tensor) -> Tensor:
        """`source`, bytes in a row on the CPU, on the device; its end may still be on its way."""
        found = torch.empty_like(source, device=self._device)
        self.copy(source, found)
        return found

    def copy(self, source: Tensor, target: Tensor) -> None:
        """`copied` into memory that is there."""
        step = len(self._chunks[0])
        for start in range(0, len(source), step):
            half, sent = self._chunks[self._turn], self._sent[self._turn]
            self._turn = 1 - self._turn
            part = source[start : start + step]
            # Its last transfer, if there was one, be it of an upload before this one.
            sent.synchronize()
            half[: len(part)].copy_(part)
            target[start : start + step].copy_(half[: len(part)], non_blocking=True)
            sent.record()

    def wait(self) -> None:
        """Until all that was copied is on the device."""
        for sent in self._sent:
            sent.synchronize()


class Copies(Protocol):
    """Bytes in a row on the CPU → the same on the device; `Staging` is one."""

    def copied(self, source: Tensor) -> Tensor:
        """Its end may still be on its way."""

    def wait(self) -> None:
        """Until all of it is there."""


def send_early(reading: Reading, device: torch.device) -> None:
    """Have the weights go to a GPU as the files have them, while they are read and libraries are
    imported. Where it has no room for them twice (they are cast into memory of their own there),
    or anything else is amiss, they stay in the computer's memory."""
    needed = 2 * reading.nbytes + _SPARE_BYTES
    staging: list[Staging] = []

    def send(count: int, parts: Iterator[memoryview]) -> Tensor:
        with torch.cuda.device(device):
            if not staging:
                if torch.cuda.mem_get_info()[0] < needed:
                    raise RuntimeError("no room for them twice")
                # Larger pieces: for each, the interpreter is taken from what is being imported.
                staging.append(Staging(device, 2 * _CHUNK_BYTES))
            found = torch.empty(count, dtype=torch.uint8, device=device)
            place = 0
            for part in parts:
                source = torch.frombuffer(part, dtype=torch.uint8)
                staging[0].copy(source, found[place : place + len(source)])
                place += len(source)
            staging[0].wait()
            return found

    reading.pass_on(send)


def move_onto_gpu(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Move the modules to a GPU, floating tensors as `dtype`; where that fails, some of their
    tensors stay on the CPU, whole.

    Whoever wants them all there calls `.to` afterwards: it takes what is left, or says why not.
    """
    try:
        with torch.cuda.device(device):
            move(modules, Staging(device), device, dtype)
            # What was sent early has memory of its own now.
            torch.cuda.empty_cache()
    except (RuntimeError, AssertionError) as error:
        # A computer may have no memory to pin, or the card no room.
        log.warning("weights_not_staged", error=repr(error)[:300])


def move(
    modules: Iterable[nn.Module], copies: Copies, device: torch.device, dtype: torch.dtype
) -> None:
    """As `move_onto_gpu`; waits until all bytes are there.

    Raises:
        RuntimeError: a copy failed.
    """

    def moved(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.device.type != "cpu" or tensor.numel() == 0 or not is_dense(tensor):
            # What is there lies in a file's row, which would be held for it alone.
            return tensor.to(device, kind, copy=tensor.device.type != "cpu")
        row = torch.as_strided(tensor, (tensor.numel(),), (1,), tensor.storage_offset())
        found = copies.copied(row.view(torch.uint8)).view(tensor.dtype)
        # Cast there: a CPU takes a second for a model, a GPU no time at all.
        return torch.as_strided(found, tuple(tensor.shape), tensor.stride()).to(kind)

    try:
        with torch.no_grad():
            for module in modules:
                # What `.to` is made of.
                module._apply(moved)  # type: ignore[no-untyped-call]
    finally:
        copies.wait()
