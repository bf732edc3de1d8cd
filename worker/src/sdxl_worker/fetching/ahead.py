"""A LoRA's header, read while the rest of its file is still on the way.

Duty: the beginning of a file → its layout, in a thread, as soon as the header has come; a file that
does not fit is told before its body is here.
Must not know: where the bytes come from, their values.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future

from sdxl_contract.limits import LORA_HEADER_MAX_BYTES
from sdxl_contract.lora.layout import LoraLayout
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.lora import ModelTargets, lay_out_file

_LENGTH_BYTES = 8
# By which a file is named that is no safetensors file.
_NAMED_BYTES = 512


class HeaderAhead:
    """One file's. Lives on one event loop.

    Args:
        reading: whose threads read foreign headers.
        targets: the model that the file must fit.
        tells: whether a file that does not fit is told as soon as that is known; not where a hash
            of it was promised: that it is another file is what its owner must hear first.
    """

    def __init__(self, reading: Executor, targets: ModelTargets, tells: bool) -> None:
        self._reading = reading
        self._targets = targets
        self._tells = tells
        self._begun: Future[LoraLayout] | None = None
        self._beginning: list[memoryview] = []
        self._came = 0

    def came(self, data: memoryview, size: int) -> None:
        """What has come of a file of `size` bytes; nobody moves or changes it.

        Raises:
            LoraLoadFailed: it does not fit the model, as far as its header says.
        """
        self._came = len(data)
        if self._begun is None and len(data) >= _LENGTH_BYTES:
            length = int.from_bytes(data[:_LENGTH_BYTES], "little")
            needed = length if length <= LORA_HEADER_MAX_BYTES else _NAMED_BYTES
            needed = min(_LENGTH_BYTES + max(needed, _NAMED_BYTES), size)
            if len(data) >= needed:
                # In a list, of which it can be taken back: it holds the whole file.
                self._beginning = [data[:needed]]
                self._begun = self._reading.submit(self._lay_out, self._beginning, size)
        if self._tells and self._begun is not None and self._begun.done():
            self._begun.result()

    async def layout(self) -> LoraLayout | None:
        """The file's, once it has come; None where it was too small to be looked at before.

        Raises:
            LoraLoadFailed: it does not fit the model, as far as its header says.
        """
        if self._begun is None:
            return None
        return await asyncio.wrap_future(self._begun)

    def give_up(self, budget: ByteBudget) -> None:
        """Nobody waits any more: what a thread still reads counts until it has ended."""
        if self._begun is None:
            return
        if self._begun.cancel():
            self._beginning.clear()
        elif not self._begun.done():
            budget.lingers(self._came, self._begun, asyncio.get_running_loop())

    def _lay_out(self, beginning: list[memoryview], size: int) -> LoraLayout:
        return lay_out_file(beginning.pop(), size, self._targets)
