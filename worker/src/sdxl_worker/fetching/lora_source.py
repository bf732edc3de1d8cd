"""From a request's LoRA references to parsed LoRAs, each caller by its own right.

Duty: what is in memory or on disk is used again, by content hash where one is given, else by the
object that a URL names and its ETag; but only for a caller whose own URL serves that very file: by
a conditional GET, or by a piece of it that is asked for at random. Two that want one object at the
same time download it once where the first one succeeds; nobody gets another's failure.
Must not know: the model's state.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from torch import Tensor

from sdxl_contract.lora.layout import LoraLayout
from sdxl_contract.request import LoraRef
from sdxl_contract.result import Phase
from sdxl_contract.routing.object_key import object_key
from sdxl_worker.fetching.ahead import HeaderAhead
from sdxl_worker.fetching.body import FileBytes
from sdxl_worker.fetching.budget import ByteBudget, Share
from sdxl_worker.fetching.download import Fetcher
from sdxl_worker.fetching.proof import Proof
from sdxl_worker.lora import DiskTier, LoraCache, ModelTargets, ParsedLora, parse_lora
from sdxl_worker.out_of_memory import clear_frames
from sdxl_worker.run import Run, RunLora

T = TypeVar("T")
# A file's bytes, and what parses them: it takes what `parse_lora` takes as `elsewhere`.
Prepare = Callable[[FileBytes, Callable[[Callable[[Tensor], Tensor]], ParsedLora]], ParsedLora]
_REMEMBERED = 10_000
_PARSING_THREADS = 4


class _Held(NamedTuple):
    """A file that is here already: parsed, or as its bytes from the disk."""

    sha256: str
    parsed: ParsedLora | None
    data: bytearray | None


class LoraSource:
    """Gets LoRAs ready to apply. Lives on one event loop; parsing runs in threads of its own.

    Args:
        targets: the model that the LoRAs must fit.
        prepare: has a file's bytes parsed, by what it is given, where the LoRA is kept, such as on
            the GPU; without it, a LoRA gets memory of its own in the computer.
        budget: bytes of files that may be on their way at once; without a bound unless given.

    Attributes:
        budget: the same.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        cache: LoraCache,
        targets: ModelTargets,
        disk: DiskTier | None = None,
        prepare: Prepare | None = None,
        budget: ByteBudget | None = None,
    ) -> None:
        self.budget = budget or ByteBudget(1 << 62)
        self._fetcher = fetcher
        self._cache = cache
        self._targets = targets
        self._disk = disk
        self._prepare = prepare
        # Foreign files keep nothing else waiting, however long one takes to be read.
        self._parsing = ThreadPoolExecutor(_PARSING_THREADS, thread_name_prefix="parse")
        # What a URL names → (ETag, sha256) that it had last.
        self._aliases: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._proofs: OrderedDict[str, Proof] = OrderedDict()
        self._under_way: dict[str, asyncio.Event] = {}

    async def get_all(self, run: Run, share: Share) -> list[RunLora]:
        """The LoRAs of `run`'s request, in its order. When this ends, nothing of it goes on but
        the reading of files that are here already, whose bytes count until then.

        Raises:
            LoraDownloadFailed, LoraLoadFailed, Overloaded: of the first one that fails.
        """
        tasks = [
            asyncio.ensure_future(self.get(ref, run, share)) for ref in run.request.lora_refs()
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except Exception as error:
            # What it came through holds the file, whose bytes count no more from here on.
            clear_frames(error)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def get(self, ref: LoraRef, run: Run, share: Share) -> RunLora:
        """The LoRA that `ref` names, ready to apply.

        Raises:
            LoraDownloadFailed, LoraLoadFailed, Overloaded: as the contract says; nothing is kept.
        """
        key = object_key(ref.url)
        held = await self._held(ref, key, run, share)
        other = self._under_way.get(key)
        if held is None and other is not None:
            # It may bring the file. Waited for once: a failure of another is nobody else's.
            await other.wait()
            held = await self._held(ref, key, run, share)
        if held is not None or key in self._under_way:
            return await self._get(ref, key, held, run, share)
        self._under_way[key] = asyncio.Event()
        try:
            return await self._get(ref, key, None, run, share)
        finally:
            self._under_way.pop(key).set()

    async def _held(self, ref: LoraRef, key: str, run: Run, share: Share) -> _Held | None:
        """The file that `ref` asks for or had last, if it is here; still to be shown a right to."""
        sha256 = ref.sha256 or self._aliases.get(key, ("", None))[1]
        if sha256 is None:
            return None
        parsed = self._cache.get(sha256)
        if parsed is not None:
            return _Held(sha256, parsed, None)
        if self._disk is None:
            return None
        with run.phase(Phase.DOWNLOAD):
            data = await asyncio.to_thread(self._disk.get, sha256)
        if data is None:
            return None
        share.take(len(data))
        self._remember_proof(sha256, data)
        return _Held(sha256, None, data)

    async def _get(
        self, ref: LoraRef, key: str, held: _Held | None, run: Run, share: Share
    ) -> RunLora:
        etag = piece = None
        if held is not None:
            alias = self._aliases.get(key)
            etag = alias[0] if alias is not None and alias[1] == held.sha256 else None
            proof = self._proofs.get(held.sha256)
            # A piece shows that it is the file with that hash, not that the object is unchanged.
            piece = proof.any_piece() if proof is not None and ref.sha256 is not None else None
        ahead = HeaderAhead(self._parsing, self._targets, tells=ref.sha256 is None)
        try:
            with run.phase(Phase.DOWNLOAD):
                fetched = await self._fetcher.download(
                    ref.url,
                    sha256=ref.sha256,
                    etag=etag,
                    piece=piece,
                    share=share,
                    watch=ahead.came,
                )
            if fetched is None:
                assert held is not None
                if held.parsed is not None:
                    return RunLora(ref, held.parsed, "memory")
                assert held.data is not None
                return RunLora(ref, await self._parse(held.data, held.sha256, run), "disk")
            parsed = self._cache.get(fetched.sha256)
            if parsed is None:
                parsed = await self._parse(fetched.data, fetched.sha256, run, ahead)
                if self._disk is not None:
                    await asyncio.to_thread(self._disk.put, fetched.sha256, fetched.data)
        finally:
            ahead.give_up(self.budget)
        self._remember_proof(fetched.sha256, fetched.data)
        if fetched.etag:
            _remember(self._aliases, key, (fetched.etag, fetched.sha256))
        return RunLora(ref, parsed, "miss")

    def _remember_proof(self, sha256: str, data: FileBytes) -> None:
        if sha256 not in self._proofs:
            _remember(self._proofs, sha256, Proof.of(data))

    def _read(self, held: list[FileBytes], sha256: str, layout: LoraLayout | None) -> ParsedLora:
        """The LoRA in the one file `held`, which nobody writes to any more, where it is kept."""
        data = held.pop()
        parse = partial(parse_lora, data, self._targets, sha256=sha256, layout=layout)
        if self._prepare is None:
            return parse()
        return self._prepare(data, lambda there: parse(given_away=True, elsewhere=there))

    async def _parse(
        self, data: FileBytes, sha256: str, run: Run, ahead: HeaderAhead | None = None
    ) -> ParsedLora:
        with run.phase(Phase.PARSE):
            layout = await ahead.layout() if ahead is not None else None
            # In a list, of which it can be taken back: what waits for a thread is held by the pool.
            held = [data]
            reading = self._parsing.submit(self._read, held, sha256, layout)
            try:
                lora = await asyncio.wrap_future(reading)
            except asyncio.CancelledError:
                if reading.cancelled():
                    held.clear()
                else:
                    # A thread cannot be stopped: what it holds counts until it has ended.
                    self.budget.lingers(len(data), reading, asyncio.get_running_loop())
                raise
        self._cache.put(lora)
        return lora


def _remember(known: OrderedDict[str, T], key: str, value: T) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
