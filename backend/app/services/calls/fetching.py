"""Files by URL: a stranger's URL leads to public addresses only, and its file is bounded.

Duty: bytes, seconds, redirections, and how many an owner may wait for at a time.
Must not know: what a file is, HTTP's routes, dialects.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import IO, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import httpx2

from app.core.errors import RateLimited
from app.core.pools import Duty, in_pool
from app.models.base import utc_now
from app.services.outgoing import Outgoing, UrlRefused
from sdxl_contract.addresses import AddressRefused, HostUnknown
from sdxl_contract.errors import ImageDownloadFailed, InvalidRequest, LoraDownloadFailed

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRY_SECONDS = 5
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,512}"')
_FILE_NAME = re.compile(r'filename="?([^";/\\]{1,200})"?', re.IGNORECASE)
_IN_MEMORY_BYTES = 1 << 20
_SUFFIX = ".safetensors"

DownloadFailed = type[LoraDownloadFailed] | type[ImageDownloadFailed]


class Fetched(NamedTuple):
    """A file, which is the caller's to close; what its server calls it, and its version."""

    file: IO[bytes]
    name: str
    etag: str | None


class Fetcher:
    """Files of one kind.

    Args:
        failed: what is raised where a file cannot be had.
        what: the files, in words.
        max_bytes: of a file.
        at_once: files that may be on their way for one owner.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        failed: DownloadFailed,
        what: str,
        *,
        max_bytes: int,
        at_once: int,
        seconds: float,
    ) -> None:
        self._outgoing = outgoing
        self._failure = failed
        self._what = what
        self._max_bytes = max_bytes
        self._at_once = at_once
        self._seconds = seconds
        self._fetching: Counter[str] = Counter()

    def check(self, url: str, field: str) -> None:
        """Refuse a URL that may not be asked.

        Raises:
            InvalidRequest: it is one.
        """
        try:
            self._outgoing.check(url)
        except UrlRefused as error:
            raise InvalidRequest(f"{field}: {error}", details={"field": field}) from None

    @contextlib.contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """One of the files that an owner may wait for.

        Raises:
            RateLimited: there are enough already.
        """
        if self._fetching[owner] >= self._at_once:
            raise RateLimited(
                f"{self._at_once} {self._what} are being fetched already: wait until one has "
                "arrived.",
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

    async def fetch(self, url: str, field: str, etag: str | None = None) -> Fetched | None:
        """The file; None where its server says that it is the one with `etag`.

        Raises:
            LoraDownloadFailed, ImageDownloadFailed: its server does not give it.
        """
        host = urlsplit(url).hostname or ""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url, etag, field)
        except TimeoutError:
            raise self._failed(
                field, host, f"took longer than {self._seconds:g} s", "timeout", 502
            ) from None
        except (HostUnknown, httpx2.HTTPError, httpx2.InvalidURL):
            raise self._failed(
                field, host, "could not be reached, or broke off", "unreachable", 502
            ) from None
        except AddressRefused:
            raise self._failed(
                field, host, "leads to an address that is not public", "refused_address"
            ) from None
        except UrlRefused as error:
            raise self._failed(
                field, host, f"redirects: where it leads, a URL {error}", "redirect"
            ) from None

    async def _follow(self, url: str, etag: str | None, field: str) -> Fetched | None:
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
                    raise self._failed(
                        field,
                        host,
                        f"answered with status {response.status_code}",
                        "http_status",
                        502 if response.status_code >= 500 else 400,
                    )
                file = await self._read(response, host, field)
                found = response.headers.get("etag", "")
                return Fetched(
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
                raise self._failed(field, host, "broke off", "truncated", 502)
        except BaseException:
            file.close()
            raise
        return file

    def _too_large(self, field: str, host: str) -> LoraDownloadFailed | ImageDownloadFailed:
        return self._failed(field, host, f"sends more than {self._max_bytes} bytes", "too_large")

    def _failed(
        self, field: str, host: str, what: str, reason: str, status: int = 400
    ) -> LoraDownloadFailed | ImageDownloadFailed:
        return self._failure(
            f"{field}: {host[:100]} {what}",
            details={"field": field, "reason": reason, "host": host[:100]},
            status=status,
        )


def name_of(url: str, headers: Mapping[str, str]) -> str:
    """What a file is called: by its server, or else by its URL."""
    match = _FILE_NAME.search(headers.get("content-disposition", ""))
    last = match[1] if match else unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    plain = re.sub(r"[^\w .()+-]", "", last.removesuffix(_SUFFIX)).strip()[:100].strip()
    return plain or urlsplit(url).hostname or "LoRA"
