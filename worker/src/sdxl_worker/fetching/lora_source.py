"""From a request's LoRA references to parsed LoRAs, each downloaded once.

Duty: memory cache, then disk tier, then the guarded download; by content hash where one is given,
else by origin + path + ETag with a conditional GET. Must not know: the model's state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sdxl_contract.request import LoraRef
from sdxl_contract.result import Phase
from sdxl_worker.fetching.download import Fetcher, stable_key
from sdxl_worker.lora import DiskTier, LoraCache, ModelTargets, ParsedLora, parse_lora
from sdxl_worker.run import Origin, Run, RunLora

_ALIASES_MAX = 10_000


class LoraSource:
    """Gets LoRAs ready to apply. Lives on one event loop; parsing runs in threads.

    Args:
        targets: the model that the LoRAs must fit.
        prepare: called on a freshly parsed LoRA, for example to move it to the GPU.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        cache: LoraCache,
        targets: ModelTargets,
        disk: DiskTier | None = None,
        prepare: Callable[[ParsedLora], ParsedLora] = lambda lora: lora,
    ) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._targets = targets
        self._disk = disk
        self._prepare = prepare
        # scheme+host+path → (ETag, sha256): lets a URL without a given hash hit the cache.
        self._aliases: dict[str, tuple[str, str]] = {}
        self._in_flight: dict[str, asyncio.Task[tuple[ParsedLora, Origin]]] = {}

    async def get(self, ref: LoraRef, run: Run) -> RunLora:
        """The LoRA that `ref` names, ready to apply. Phases count for `run`, or for the run that
        began to fetch the same file before.

        Raises:
            LoraDownloadFailed, LoraLoadFailed: see the contract; nothing is cached then.
        """
        if ref.sha256 is not None:
            held = self._cache.get(ref.sha256)
            if held is not None:
                return RunLora(ref, held, "memory")
        key = ref.sha256 or stable_key(ref.url)
        task = self._in_flight.get(key)
        if task is None:
            task = asyncio.create_task(self._fetch(ref, run))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
            # A caller that left must not make the failure an unread exception.
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
        return RunLora(ref, *await asyncio.shield(task))

    async def _fetch(self, ref: LoraRef, run: Run) -> tuple[ParsedLora, Origin]:
        if ref.sha256 is not None:
            on_disk = await self._from_disk(ref.sha256, ref, run)
            if on_disk is not None:
                return on_disk, "disk"
        # Without a hash: what this address served last, if its server confirms it.
        alias = self._aliases.get(stable_key(ref.url)) if ref.sha256 is None else None
        if alias is not None and self._disk is None and self._cache.get(alias[1]) is None:
            alias = None
        with run.phase(Phase.DOWNLOAD):
            fetched = await self._fetcher.download(
                ref.url, sha256=ref.sha256, etag=alias[0] if alias else None
            )
        if fetched is None:
            assert alias is not None
            held = self._cache.get(alias[1])
            if held is not None:
                return held, "memory"
            on_disk = await self._from_disk(alias[1], ref, run)
            if on_disk is not None:
                return on_disk, "disk"
            # Held nowhere any more: fetch it whole.
            with run.phase(Phase.DOWNLOAD):
                fetched = await self._fetcher.download(ref.url)
            assert fetched is not None
        held = self._cache.get(fetched.sha256)
        lora = held or await self._parse(fetched.data, fetched.sha256, ref.name, run)
        if held is None and self._disk is not None:
            await asyncio.to_thread(self._disk.put, fetched.sha256, fetched.data)
        if fetched.etag and ref.sha256 is None:
            if len(self._aliases) >= _ALIASES_MAX:
                self._aliases.clear()
            self._aliases[stable_key(ref.url)] = (fetched.etag, fetched.sha256)
        return lora, "miss"

    async def _from_disk(self, sha256: str, ref: LoraRef, run: Run) -> ParsedLora | None:
        """The LoRA from the disk tier, which hashes what it reads; None if not there whole."""
        if self._disk is None:
            return None
        with run.phase(Phase.DOWNLOAD):
            data = await asyncio.to_thread(self._disk.get, sha256)
        if data is None:
            return None
        return await self._parse(data, sha256, ref.name, run)

    async def _parse(
        self, data: bytes | bytearray, sha256: str, name: str | None, run: Run
    ) -> ParsedLora:
        with run.phase(Phase.PARSE):
            lora = await asyncio.to_thread(
                lambda: self._prepare(parse_lora(data, self._targets, sha256=sha256, name=name))
            )
        self._cache.put(lora)
        return lora
