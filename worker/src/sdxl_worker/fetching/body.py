"""A file's bytes as they come: one memory, hashed beside.

Duty: pieces of a file → the file and its SHA-256, with as little as possible done by the thread
that answers everybody else, too.
Must not know: HTTP, limits.
"""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import Executor

from sdxl_worker.loading.weight_reader import own_memory

FileBytes = bytearray | memoryview

# What a thread hashes at a time: 2 to 4 ms. Smaller files are not worth one.
_HASHED_BYTES = 4 << 20
# Of files that are small, or whose length is not known.
_SCRATCH_BYTES = 1 << 18


class Body:
    """One file that is on its way.

    Args:
        length: bytes that are to come, where that is known: memory for them is taken as they come,
            and never moved.
        hashing: whose threads hash.

    Attributes:
        data: what has come, or room for all of it where its length is known.
        count: bytes that have come.
        is_still: whether `data` never moves: of a file whose length is known and not small.
    """

    def __init__(self, length: int | None, hashing: Executor) -> None:
        self.is_still = length is not None and length >= _HASHED_BYTES
        self.data: FileBytes = bytearray()
        if length is not None and self.is_still:
            self.data = memoryview(own_memory(length))
        self._length = length
        self._scratch = memoryview(bytearray(0 if self.is_still else _SCRATCH_BYTES))
        self.count = 0
        self._hashing = hashing
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._under_way: asyncio.Future[None] | None = None

    def room(self) -> memoryview:
        """Where what comes next is to be written; none where all has come that was said before."""
        if self.is_still:
            return memoryview(self.data)[self.count : self.count + _HASHED_BYTES]
        rest = len(self._scratch) if self._length is None else self._length - self.count
        return self._scratch[:rest]

    async def came(self, count: int) -> None:
        """So many bytes were written into `room`."""
        self.count += count
        if not self.is_still:
            assert isinstance(self.data, bytearray)
            self.data += self._scratch[:count]
            self._digest.update(self._scratch[:count])
            return
        if self.count - self._hashed >= _HASHED_BYTES:
            await self._hash_on()

    async def sha256(self) -> str:
        """Of all that has come, hex."""
        if self.is_still:
            await self._hash_on()
            assert self._under_way is not None
            await self._under_way
        return self._digest.hexdigest()

    async def _hash_on(self) -> None:
        """Have what came since hashed, after what came before."""
        if self._under_way is not None:
            await self._under_way
        part = memoryview(self.data)[self._hashed : self.count]
        self._hashed = self.count
        loop = asyncio.get_running_loop()
        self._under_way = loop.run_in_executor(self._hashing, self._digest.update, part)
