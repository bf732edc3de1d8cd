"""Moves LoRAs to a GPU beside its work, their bytes already while they are read.

Duty: bytes in a row → the same on the device, for whoever draws there meanwhile as if nothing were;
a file's LoRA, whose bytes are on their way while the interpreter still makes out what they are.
Must not know: where files come from, what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import structlog
import torch
from torch import Tensor

from sdxl_worker.graphs.cuda import without_captures
from sdxl_worker.loading.onto_gpu import Staging
from sdxl_worker.lora import ParsedLora
from sdxl_worker.out_of_memory import is_out_of_memory, let_go

log = structlog.get_logger()
T = TypeVar("T")
# Of smaller files nothing is gained.
_AHEAD_BYTES = 4 << 20
# What a safetensors file begins with: the length of its header, after which the tensors lie.
_LENGTH_BYTES = 8


class Uploads:
    """Copies to a device on a stream of its own: whoever draws there neither waits nor is waited
    for. Any thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging: Staging | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        with suppress(RuntimeError, AssertionError):
            # A computer may have no memory to pin: then the driver stages, in its own small pieces.
            self._staging = Staging(device)

    def staged(self, source: Tensor) -> Tensor:
        """Bytes in a row on the device, within `run`; by way of pinned memory where that works."""
        if self._staging is not None and source.device.type == "cpu":
            try:
                return self._staging.copied(source)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self._staging = None
        return source.to(self._device, non_blocking=True)

    def run(self, copy: Callable[[], T], tensors: Callable[[T], list[Tensor]]) -> T:
        """What `copy` gives, whole when this returns.

        Args:
            tensors: of it, at least one of each memory that it took.
        """
        with without_captures(), torch.cuda.stream(self._stream):
            copied = copy()
            self._stream.synchronize()
            user = torch.cuda.default_stream(self._device)
            for tensor in tensors(copied):
                # Else its memory could be given to the next copy while a kernel still reads it. Not
                # while something is captured: that would be forgotten where it is freed meanwhile.
                tensor.record_stream(user)
        return copied

    def begin(self, source: Tensor) -> Future[Tensor]:
        """`source`, bytes in a row that nobody writes to any more, on its way to the device."""
        return self._thread.submit(self.run, lambda: self.staged(source), lambda found: [found])


def parsed_onto(
    device: torch.device,
    uploads: Uploads,
    data: bytearray | memoryview,
    parse: Callable[[Callable[[Tensor], Tensor]], ParsedLora],
) -> ParsedLora:
    """The LoRA that `parse` makes of a file's bytes, which nobody writes to any more, on the GPU;
    in the computer's memory where the GPU has no room.

    Args:
        parse: gets what `parse_lora` takes as `elsewhere`.

    Raises:
        LoraLoadFailed: `parse`'s; then what was copied is given up.
    """
    source = _tensors_of(data)
    begun = None if source is None else uploads.begin(source)
    is_there = False

    def elsewhere(row: Tensor) -> Tensor:
        nonlocal is_there
        if source is None or begun is None:
            return row
        if (row.data_ptr(), row.nbytes) != (source.data_ptr(), source.nbytes):
            return row
        try:
            there = begun.result()
        except RuntimeError as error:
            # For one thing, memory: the whole LoRA meets that again, and says so.
            let_go(error)
            return row
        is_there = True
        return there

    lora = parse(elsewhere)
    return lora if is_there else moved_to(device, uploads, lora)


def moved_to(device: torch.device, uploads: Uploads, lora: ParsedLora) -> ParsedLora:
    """`lora` on the GPU; as it is where that has no room: the patcher takes it from anywhere."""
    try:
        return uploads.run(lambda: lora.to(device, uploads.staged), _one_of_each_memory)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        log.warning("lora_kept_off_the_gpu", sha256=lora.sha256, bytes=lora.nbytes)
        return lora


def _tensors_of(data: bytearray | memoryview) -> Tensor | None:
    """All that follows a file's header; None where that is too little, or is not used in place."""
    view = memoryview(data).cast("B")
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if view.readonly or start % _LENGTH_BYTES or len(view) - start < _AHEAD_BYTES:
        return None
    return torch.frombuffer(view[start:], dtype=torch.uint8)


def _one_of_each_memory(lora: ParsedLora) -> list[Tensor]:
    tensors = (tensor for layer in lora.layers.values() for tensor in layer.tensors.values())
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())
