"""LoRAs by URL: fetched once, kept in their owner's library, and known again by their URL.

Must not know: HTTP's routes, dialects.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import tempfile
from datetime import timedelta
from typing import IO

from sqlalchemy.exc import IntegrityError

from app.core.db import Database
from app.models import LoraModel
from app.models.base import utc_now
from app.repositories.calls.lora_sources import LoraSourceRepository
from app.services.calls.fetching import Fetcher
from app.services.loras import LoraService
from app.services.outgoing import Outgoing
from sdxl_contract.errors import InvalidRequest, LoraDownloadFailed

FETCH_SECONDS = 120.0
_FRESH = timedelta(minutes=10)  # for so long a URL is not asked again
_IN_MEMORY_BYTES = 1 << 20


class LoraUrls:
    """LoRAs by URL.

    Args:
        max_bytes: of a file.
        at_once: files that may be on their way for one owner.
    """

    def __init__(
        self,
        database: Database,
        loras: LoraService,
        outgoing: Outgoing,
        *,
        max_bytes: int,
        at_once: int,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._database = database
        self._loras = loras
        self._files = Fetcher(
            outgoing,
            LoraDownloadFailed,
            "LoRAs",
            max_bytes=max_bytes,
            at_once=at_once,
            seconds=seconds,
        )

    async def lora_at(self, owner: str, url: str, field: str) -> LoraModel:
        """The LoRA behind an https or data URL, in the owner's library from now on.

        Args:
            field: what the caller calls the URL; errors name it.

        Raises:
            InvalidRequest: it is no URL that may be asked.
            LoraDownloadFailed: its server does not give the file.
            LoraLoadFailed, TooLarge, StorageFailed: as an upload of the file.
            RateLimited: the owner waits for enough files already.
        """
        if url.startswith("data:"):
            return await self._from_data(owner, url, field)
        self._files.check(url, field)
        digest = hashlib.sha256(url.encode()).hexdigest()
        async with self._database.session() as session:
            known = await LoraSourceRepository(session, owner).get(digest)
        if known is not None and utc_now() - known[0].looked_at < _FRESH:
            return known[1]
        with self._files.place(owner):
            fetched = await self._files.fetch(url, field, known[0].etag if known else None)
            if fetched is None:
                assert known is not None
                lora, etag = known[1], known[0].etag
            else:
                with fetched.file:
                    lora = await self._keep(owner, fetched.file, fetched.name)
                etag = fetched.etag
        with contextlib.suppress(IntegrityError):  # the LoRA was deleted meanwhile
            async with self._database.session() as session:
                await LoraSourceRepository(session, owner).put(digest, lora.id, etag, utc_now())
        return lora

    async def _from_data(self, owner: str, url: str, field: str) -> LoraModel:
        _, comma, encoded = url.partition(",")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not comma or not data:
            raise InvalidRequest(
                f"{field}: must be data:application/octet-stream;base64,…", details={"field": field}
            )
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
            file.write(data)
            return await self._keep(owner, file, f"LoRA {hashlib.sha256(data).hexdigest()[:10]}")

    async def _keep(self, owner: str, file: IO[bytes], name: str) -> LoraModel:
        return (await self._loras.upload(owner, file, name=name, description="", tags=[])).lora
