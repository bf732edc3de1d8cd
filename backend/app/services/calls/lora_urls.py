"""LoRAs by URL: fetched once, kept in their owner's library, and known again by their URL.

Duty: a stranger's URL leads to public addresses only, and its file is bounded in bytes and seconds
before the library looks at it. Must not know: HTTP's routes, dialects.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import IO, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import httpx2
from sqlalchemy.exc import IntegrityError

from app.core.db import Database
from app.core.errors import RateLimited
from app.core.pools import Duty, in_pool
from app.models import LoraModel
from app.models.base import utc_now
from app.repositories.calls.lora_sources import LoraSourceRepository
from app.services.loras import LoraService
from app.services.outgoing import Outgoing, UrlRefused
from sdxl_contract.addresses import AddressRefused, HostUnknown
from sdxl_contract.errors import InvalidRequest, LoraDownloadFailed

FETCH_SECONDS = 120.0
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FRESH = timedelta(minutes=10)  # for so long a URL is not asked again
_RETRY_SECONDS = 5
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,512}"')
_FILE_NAME = re.compile(r'filename="?([^";/\\]{1,200})"?', re.IGNORECASE)
_IN_MEMORY_BYTES = 1 << 20
_SUFFIX = ".safetensors"


class _Fetched(NamedTuple):
    file: IO[bytes]
    name: str
    etag: str | None


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
        self._outgoing = outgoing
        self._max_bytes = max_bytes
        self._at_once = at_once
        self._seconds = seconds
        self._fetching: Counter[str] = Counter()

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
        try:
            self._outgoing.check(url)
        except UrlRefused as error:
            raise InvalidRequest(f"{field}: {error}", details={"field": field}) from None
        digest = hashlib.sha256(url.encode()).hexdigest()
        async with self._database.session() as session:
            known = await LoraSourceRepository(session, owner).get(digest)
        if known is not None and utc_now() - known[0].looked_at < _FRESH:
            return known[1]
        with self._place(owner):
            fetched = await self._fetch(url, known[0].etag if known else None, field)
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

    @contextlib.contextmanager
    def _place(self, owner: str) -> Iterator[None]:
        if self._fetching[owner] >= self._at_once:
            raise RateLimited(
                f"{self._at_once} LoRAs are being fetched already: wait until one has arrived.",
                free_at=utc_now() + timedelta(seconds=_RETRY_SECONDS),
                retry_after=_RETRY_SECONDS,
            )
        self._fetching[owner] += 1
        try:
            yield
        finally:
            self._fetching[owner] -= 1
            if not self._fetching[owner]:
                del self._fetching[owner]

    async def _fetch(self, url: str, etag: str | None, field: str) -> _Fetched | None:
        """The file; None where its server says that it is the one with `etag`."""
        host = urlsplit(url).hostname or ""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url, etag, field)
        except TimeoutError:
            raise _failed(
                field, host, f"took longer than {self._seconds:g} s", "timeout", 502
            ) from None
        except (HostUnknown, httpx2.HTTPError, httpx2.InvalidURL):
            raise _failed(
                field, host, "could not be reached, or broke off", "unreachable", 502
            ) from None
        except AddressRefused:
            raise _failed(
                field, host, "leads to an address that is not public", "refused_address"
            ) from None
        except UrlRefused as error:
            raise _failed(
                field, host, f"redirects: where it leads, a URL {error}", "redirect"
            ) from None

    async def _follow(self, url: str, etag: str | None, field: str) -> _Fetched | None:
        first = url
        headers = {"If-None-Match": etag} if etag else {}
        for _ in range(_MAX_REDIRECTS + 1):
            host = urlsplit(url).hostname or ""
            async with self._outgoing.get(url, headers) as response:
                location = response.headers.get("location", "")
                if response.status_code in _REDIRECTS and location:
                    try:
                        url = urljoin(url, location)
                    except ValueError:
                        raise UrlRefused("must be a URL with a host") from None
                    continue
                if etag and response.status_code == 304:
                    return None
                if response.status_code != 200:
                    raise _failed(
                        field,
                        host,
                        f"answered with status {response.status_code}",
                        "http_status",
                        502 if response.status_code >= 500 else 400,
                    )
                file = await self._read(response, host, field)
                found = response.headers.get("etag", "")
                return _Fetched(
                    file,
                    name_of(first, response.headers),
                    found if _ETAG.fullmatch(found) else None,
                )
        raise UrlRefused(f"may redirect {_MAX_REDIRECTS} times at most")

    async def _read(self, response: httpx2.Response, host: str, field: str) -> IO[bytes]:
        length = response.headers.get("content-length", "")
        promised = int(length) if length.isascii() and length.isdigit() else None
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller's
        received = 0
        try:
            if promised is not None and promised > self._max_bytes:
                raise self._too_large(field, host)
            async for chunk in response.aiter_raw():
                received += len(chunk)
                if received > self._max_bytes:
                    raise self._too_large(field, host)
                await in_pool(Duty.UPLOADS, file.write, chunk)
            if promised is not None and received != promised:
                raise _failed(field, host, "broke off", "truncated", 502)
        except BaseException:
            file.close()
            raise
        return file

    def _too_large(self, field: str, host: str) -> LoraDownloadFailed:
        return _failed(field, host, f"sends more than {self._max_bytes} bytes", "too_large")


def name_of(url: str, headers: Mapping[str, str]) -> str:
    """What a file is called: by its server, or else by its URL."""
    match = _FILE_NAME.search(headers.get("content-disposition", ""))
    last = match[1] if match else unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    plain = re.sub(r"[^\w .()+-]", "", last.removesuffix(_SUFFIX)).strip()[:100].strip()
    return plain or urlsplit(url).hostname or "LoRA"


def _failed(field: str, host: str, what: str, reason: str, status: int = 400) -> LoraDownloadFailed:
    return LoraDownloadFailed(
        f"{field}: {host[:100]} {what}",
        details={"field": field, "reason": reason, "host": host[:100]},
        status=status,
    )
