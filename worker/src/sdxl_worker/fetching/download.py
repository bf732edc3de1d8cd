"""Downloads and uploads by presigned URL: guarded, bounded, hashed.

Duty: get the bytes of an untrusted URL without being led to an inner address, filled up, slowed
down or lied to; and say why when it fails, never with the URL itself.
Must not know: what a LoRA is.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_worker.fetching.addresses import Resolver, resolve
from sdxl_worker.fetching.body import Body, FileBytes
from sdxl_worker.fetching.budget import Share
from sdxl_worker.fetching.connection import Connections
from sdxl_worker.fetching.exchange import Exchange, ExchangeFailed, ExchangeTimedOut
from sdxl_worker.fetching.proof import Piece
from sdxl_worker.fetching.urls import Place, has_expired, refused

MAX_REDIRECTS = 3
_SLOW_AFTER_S = 5.0
_HASHING_THREADS = 4
_ERROR_BODY_BYTES = 4096
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What an ETag may be made of; others could not be sent back.
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,512}"')
# Words for "as it is". Stores keep what an uploader claimed: newer AWS SDKs upload in chunks, and
# many servers then say so of the whole file too.
_NO_ENCODINGS = frozenset(
    {"", "identity", "aws-chunked", "none", "binary", "8bit", "utf-8", "utf8"}
)


@dataclass(frozen=True)
class FetchPolicy:
    """What a fetch may do. Bytes and seconds."""

    max_bytes: int
    timeout_s: float = 60.0
    min_bytes_per_second: int = 64 * 1024
    allow_loopback: bool = False
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Taking:
    """How a body is taken: as `Fetcher.download` says."""

    share: Share | None
    max_bytes: int
    watch: Callable[[memoryview, int], None] | None


@dataclass(frozen=True)
class Fetched:
    """A downloaded file: its bytes, their SHA-256 (hex) and the server's ETag, if well-formed.

    Nobody else holds or changes the bytes.
    """

    data: FileBytes
    sha256: str
    etag: str | None


def _cut(host: str, promised: int, sent: int) -> LoraDownloadFailed:
    return refused(
        f"{host} promised {promised} bytes and sent {sent}", "truncated", host, status=502
    )


class _AnotherFile(Exception):
    """The URL does not serve the file that is held."""


def _upload_timeout(host: str, seconds: float) -> LoraDownloadFailed:
    return refused(
        f"the image's upload to {host} took longer than {seconds:g} s", "timeout", host, status=502
    )


def _check_stored(status: int, url: str, host: str) -> None:
    if status in (200, 201, 204):
        return
    if 300 <= status < 400:
        raise refused(
            f"{host} redirects the image's upload (status {status}): redirects are not followed",
            "redirect",
            host,
        )
    raise refused(
        f"{host} refused the image with status {status}",
        "expired" if has_expired(url) else "http_status",
        host,
        status=502 if status >= 500 else 400,
    )


@contextmanager
def _of(field: str) -> Iterator[None]:
    """Makes errors of the block speak of that field instead of the LoRA's URL."""
    try:
        yield
    except LoraDownloadFailed as error:
        error.details = {**(error.details or {}), "field": field}
        error.message = error.message.replace("the LoRA's URL", field)
        raise


class Fetcher:
    """Guarded HTTP. Safe to use for several requests at once.

    Args:
        policy: what is allowed.
        resolver: host → addresses; the system's unless a test gives another.
    """

    def __init__(self, policy: FetchPolicy, resolver: Resolver = resolve) -> None:
        self.policy = policy
        self._hashing = ThreadPoolExecutor(_HASHING_THREADS, thread_name_prefix="hash")
        self._connections = Connections(
            allow_loopback=policy.allow_loopback,
            allowed_hosts=policy.allowed_hosts,
            resolver=resolver,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        self._connections.close()
        self._hashing.shutdown(wait=False)

    async def download(
        self,
        url: str,
        *,
        sha256: str | None = None,
        etag: str | None = None,
        piece: Piece | None = None,
        share: Share | None = None,
        max_bytes: int | None = None,
        watch: Callable[[memoryview, int], None] | None = None,
    ) -> Fetched | None:
        """The file behind `url`; None if its server shows that it is the one held already.

        Args:
            sha256: what the file must be; hex.
            etag: of a file that this URL's object had: unchanged is enough.
            piece: of a file that is held: to have that piece is enough.
            share: where the bytes are counted that are read.
            max_bytes: of the file; the policy's unless given.
            watch: is shown what has come so far of a file whose size, its second argument, is known
                and not small; what it raises ends the download.

        Raises:
            LoraDownloadFailed: for every reason that its docstring lists.
            Overloaded: too many bytes of other requests are on their way.
        """
        place = self._connections.look_at(url)
        most = self.policy.max_bytes if max_bytes is None else max_bytes
        taking = _Taking(share, most, watch)
        taken = share.held if share is not None else 0
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                try:
                    fetched = await self._follow(place, etag, piece, taking)
                except _AnotherFile:
                    # Fetch it whole, to say what it is.
                    fetched = await self._follow(place, None, None, taking)
        except TimeoutError as error:
            raise refused(
                f"the LoRA's download from {place.host} took longer than "
                f"{self.policy.timeout_s:g} s, or did not begin in time",
                "timeout",
                place.host,
                status=502,
            ) from error
        except ExchangeFailed as error:
            raise refused(
                f"{place.host} could not be reached, or broke off ({error})",
                "unreachable",
                place.host,
                status=502,
            ) from error
        if fetched is not None and sha256 is not None and fetched.sha256 != sha256:
            if share is not None:
                share.give_back(share.held - taken)
            raise LoraDownloadFailed(
                f"the file from {place.host} is not the one that was promised: its SHA-256 is "
                f"{fetched.sha256}",
                details={
                    "reason": "hash_mismatch",
                    "host": place.host,
                    "sha256": fetched.sha256,
                },
            )
        return fetched

    async def check_output(self, url: str, field: str = "output_url") -> None:
        """Look whether `upload` may go to `url` at all, before there is anything to upload.

        Raises:
            LoraDownloadFailed: it may not; `details["field"]` is `field`.
        """
        with _of(field):
            place = self._connections.look_at(url)
            try:
                async with asyncio.timeout(self.policy.timeout_s):
                    await self._connections.address(place)
            except TimeoutError as error:
                raise _upload_timeout(place.host, self.policy.timeout_s) from error

    async def upload(
        self, url: str, data: bytes, content_type: str, field: str = "output_url"
    ) -> None:
        """PUT `data` to a presigned URL, under the same guard as a download; no redirects.

        Raises:
            LoraDownloadFailed: the address is refused or the server does not take it;
                `details["field"]` is `field`.
        """
        with _of(field):
            place = self._connections.look_at(url)
            host = place.host
            headers = {"Content-Type": content_type}
            try:
                async with asyncio.timeout(self.policy.timeout_s):
                    address = await self._connections.address(place)
                    async with self._connections.open(
                        "PUT", place, address, headers, data
                    ) as exchange:
                        _check_stored(exchange.status, url, host)
            except (TimeoutError, ExchangeTimedOut) as error:
                raise _upload_timeout(host, self.policy.timeout_s) from error
            except ExchangeFailed as error:
                raise refused(
                    f"the image could not be uploaded to {host} ({error})",
                    "unreachable",
                    host,
                    status=502,
                ) from error

    async def _follow(
        self, place: Place, etag: str | None, piece: Piece | None, taking: _Taking
    ) -> Fetched | None:
        """`download` without its deadline: through redirects, each under the whole guard.

        Nothing but the URL itself ever authorises a request, so there is nothing to carry over.
        """
        headers = {"If-None-Match": etag} if etag else {}
        if piece is not None:
            headers["Range"] = f"bytes={piece.start}-{piece.end - 1}"
        from_loopback = True
        for hop in range(MAX_REDIRECTS + 1):
            # A public host must not lead to this computer, not even where loopback is allowed.
            address = await self._connections.address(place, loopback=from_loopback)
            from_loopback = address.is_loopback
            async with self._connections.open("GET", place, address, headers) as exchange:
                if exchange.status not in _REDIRECTS:
                    return await self._answer(exchange, place, etag, piece, taking)
                place = self._redirected(exchange, place, hop)
        raise AssertionError("the last redirect is refused")

    def _redirected(self, exchange: Exchange, place: Place, hop: int) -> Place:
        location = exchange.header("location")
        if not location or hop == MAX_REDIRECTS:
            raise refused(
                f"{place.host} redirects (status {exchange.status}) "
                + (f"more than {MAX_REDIRECTS} times" if location else "without saying where to"),
                "redirect",
                place.host,
            )
        try:
            return self._connections.look_at(urljoin(place.url, location))
        except ValueError as error:
            raise refused(
                f"{place.host} redirects to what is no URL", "redirect", place.host
            ) from error

    async def _answer(
        self,
        exchange: Exchange,
        place: Place,
        etag: str | None,
        piece: Piece | None,
        taking: _Taking,
    ) -> Fetched | None:
        if etag and exchange.status == 304:
            return None
        if piece is not None and exchange.status in (206, 416):
            if exchange.status == 206 and await self._is_piece(exchange, place, piece):
                return None
            raise _AnotherFile
        await self._check_status(exchange, place)
        data, digest = await self._read(exchange, place.host, taking)
        found = exchange.header("etag")
        return Fetched(data, digest, found if _ETAG.fullmatch(found) else None)

    async def _is_piece(self, exchange: Exchange, place: Place, piece: Piece) -> bool:
        self._check_encoding(exchange, place.host)
        return piece.matches(await exchange.read(piece.end - piece.start + 1))

    async def _check_status(self, exchange: Exchange, place: Place) -> None:
        status, host = exchange.status, place.host
        if status == 200:
            return
        body = await exchange.read(_ERROR_BODY_BYTES)
        if status in (400, 401, 403, 410) and (
            has_expired(place.url) or b"expired" in body.lower()
        ):
            raise refused("the LoRA's URL has expired: sign it anew", "expired", host, status=400)
        raise LoraDownloadFailed(
            f"{host} answered the LoRA's download with status {status}",
            details={"reason": "http_status", "host": host, "http_status": status},
            status=502 if status >= 500 else 400,
        )

    def _check_encoding(self, exchange: Exchange, host: str) -> None:
        said = exchange.header("content-encoding")
        words = {word.strip().lower() for word in said.split(",")}
        if not words <= _NO_ENCODINGS:
            raise refused(
                f"{host} sent the LoRA compressed ({', '.join(sorted(words))[:40]}), which was not "
                "asked for",
                "encoding",
                host,
            )

    async def _read(self, exchange: Exchange, host: str, taking: _Taking) -> tuple[FileBytes, str]:
        self._check_encoding(exchange, host)
        share, most = taking.share, taking.max_bytes
        length = exchange.length
        if length is not None and length > most:
            raise self._too_large(host, most)
        body = Body(length, self._hashing)
        started = time.monotonic()
        try:
            while count := await exchange.fill(body.room()):
                if body.count + count > most:
                    raise self._too_large(host, most)
                if share is not None:
                    share.take(count)
                await body.came(count)
                if taking.watch is not None and length is not None and body.is_still:
                    taking.watch(memoryview(body.data)[: body.count], length)
                self._check_speed(body.count, time.monotonic() - started, host)
            if length is not None and body.count != length:
                raise _cut(host, length, body.count)
            return body.data, await body.sha256()
        except BaseException:
            if share is not None:
                share.give_back(body.count)
            raise

    def _check_speed(self, count: int, elapsed: float, host: str) -> None:
        if elapsed > _SLOW_AFTER_S and count < elapsed * self.policy.min_bytes_per_second:
            raise refused(
                f"{host} sends the LoRA too slowly: less than "
                f"{self.policy.min_bytes_per_second} bytes a second",
                "timeout",
                host,
                status=502,
            )

    def _too_large(self, host: str, most: int) -> LoraDownloadFailed:
        return refused(f"the LoRA from {host} is larger than {most} bytes", "too_large", host)
