"""Downloads and uploads by presigned URL: guarded, bounded, hashed.

Duty: get the bytes of an untrusted URL without being led to an inner address, filled up, slowed
down or lied to; and say why when it fails, never with the URL itself.
Must not know: what a LoRA is.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import string
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

import httpx2

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_worker.fetching.addresses import IPAddress, Resolver, pinned_address, resolve

_CONNECT_S = 10.0
_READ_S = 15.0
_SLOW_AFTER_S = 5.0
_ERROR_BODY_BYTES = 4096
_URL_SIGNS = string.punctuation
# What an ETag may be made of; others could not be sent back.
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,512}"')
_NOT_IN_URLS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class FetchPolicy:
    """What a fetch may do. Bytes and seconds."""

    max_bytes: int
    timeout_s: float = 60.0
    min_bytes_per_second: int = 64 * 1024
    allow_loopback: bool = False
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fetched:
    """A downloaded file: its bytes, their SHA-256 (hex) and the server's ETag, if well-formed."""

    data: bytearray
    sha256: str
    etag: str | None


def _failed(message: str, reason: str, host: str, *, status: int = 400) -> LoraDownloadFailed:
    return LoraDownloadFailed(message, details={"reason": reason, "host": host}, status=status)


def stable_key(url: str) -> str:
    """Scheme, host and path of `url`: the same for every signature of one object."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def has_expired(url: str, now: datetime | None = None) -> bool:
    """Whether the URL itself says that its time is over (SigV4 as S3 or Google's storage spell
    it, or an `expires` in Unix time)."""
    now = now or datetime.now(UTC)
    query = {key.lower(): values[0] for key, values in parse_qs(urlsplit(url).query).items()}
    try:
        for vendor in ("x-amz", "x-goog"):
            date, seconds = query.get(f"{vendor}-date"), query.get(f"{vendor}-expires")
            if date is not None and seconds is not None:
                signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return now > signed + timedelta(seconds=int(seconds))
        if "expires" in query:
            return now.timestamp() > int(query["expires"])
    except (ValueError, OverflowError):
        return False
    return False


def _upload_timeout(host: str, seconds: float) -> LoraDownloadFailed:
    return _failed(
        f"the image's upload to {host} took longer than {seconds:g} s", "timeout", host, status=502
    )


def _check_stored(status: int, url: str, host: str) -> None:
    if status in (200, 201, 204):
        return
    if 300 <= status < 400:
        raise _failed(
            f"{host} redirects the image's upload (status {status}): redirects are not followed",
            "redirect",
            host,
        )
    raise _failed(
        f"{host} refused the image with status {status}",
        "expired" if has_expired(url) else "http_status",
        host,
        status=502 if status >= 500 else 400,
    )


@contextmanager
def _of_output_url() -> Iterator[None]:
    """Makes errors of the block speak of `output_url` instead of the LoRA's URL."""
    try:
        yield
    except LoraDownloadFailed as error:
        error.details = {**(error.details or {}), "field": "output_url"}
        error.message = error.message.replace("the LoRA's URL", "output_url")
        raise


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


class Fetcher:
    """Guarded HTTP. Safe to use for several requests at once.

    Args:
        policy: what is allowed.
        resolver: host → addresses; the system's unless a test gives another.
    """

    def __init__(self, policy: FetchPolicy, resolver: Resolver = resolve) -> None:
        self.policy = policy
        self._resolver = resolver
        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def download(
        self, url: str, *, sha256: str | None = None, etag: str | None = None
    ) -> Fetched | None:
        """The file behind `url`; None if `etag` is given and the server says it is unchanged.

        Raises:
            LoraDownloadFailed: for every reason that its docstring lists.
        """
        parts = self._checked(url)
        host = str(parts.hostname)
        headers = {"If-None-Match": etag} if etag else {}
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                async with self._open("GET", parts, headers) as response:
                    if etag and response.status_code == 304:
                        return None
                    await self._check_status(response, url, host)
                    data, digest = await self._read(response, host)
        except TimeoutError as error:
            raise _failed(
                f"the LoRA's download from {host} took longer than {self.policy.timeout_s:g} s",
                "timeout",
                host,
                status=502,
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _failed(
                f"{host} could not be reached, or broke off ({type(error).__name__})",
                "unreachable",
                host,
                status=502,
            ) from error
        if sha256 is not None and digest != sha256:
            raise LoraDownloadFailed(
                f"the file from {host} is not the one that was promised: its SHA-256 is {digest}",
                details={"reason": "hash_mismatch", "host": host, "sha256": digest},
            )
        found = response.headers.get("etag", "")
        return Fetched(data, digest, found if _ETAG.fullmatch(found) else None)

    async def check_output(self, url: str) -> None:
        """Look whether `upload` may go to `url` at all, before there is anything to upload.

        Raises:
            LoraDownloadFailed: it may not; `details["field"]` is `output_url`.
        """
        with _of_output_url():
            parts = self._checked(url)
            try:
                async with asyncio.timeout(self.policy.timeout_s):
                    await self._address(parts)
            except TimeoutError as error:
                raise _upload_timeout(str(parts.hostname), self.policy.timeout_s) from error

    async def upload(self, url: str, data: bytes, content_type: str) -> None:
        """PUT `data` to a presigned URL, under the same guard as a download.

        Raises:
            LoraDownloadFailed: the address is refused or the server does not take it;
                `details["field"]` is `output_url`.
        """
        with _of_output_url():
            parts = self._checked(url)
            host = str(parts.hostname)
            try:
                async with asyncio.timeout(self.policy.timeout_s):
                    async with self._open(
                        "PUT", parts, {"Content-Type": content_type}, content=data
                    ) as response:
                        _check_stored(response.status_code, url, host)
            except (TimeoutError, httpx2.TimeoutException) as error:
                raise _upload_timeout(host, self.policy.timeout_s) from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise _failed(
                    f"the image could not be uploaded to {host} ({type(error).__name__})",
                    "unreachable",
                    host,
                    status=502,
                ) from error

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, _port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host:
            raise _failed(
                "the LoRA's URL is not a URL with a host, or its port is no port",
                "refused_scheme",
                "",
            )
        if _NOT_IN_URLS.search(url):
            raise _failed(
                "the LoRA's URL holds a control character or half a surrogate pair",
                "refused_scheme",
                host,
            )
        if parts.username is not None or parts.password is not None:
            raise _failed("the LoRA's URL holds a user name", "refused_host", host)
        if parts.scheme != "https" and not (parts.scheme == "http" and self.policy.allow_loopback):
            raise _failed(
                f"the LoRA's URL must begin with https://, not {parts.scheme}:",
                "refused_scheme",
                host,
            )
        if self.policy.allowed_hosts and not any(
            host == allowed or (allowed.startswith(".") and host.endswith(allowed))
            for allowed in self.policy.allowed_hosts
        ):
            raise _failed(
                f"the host {host} of the LoRA's URL is not among the allowed ones",
                "refused_host",
                host,
            )
        return parts

    async def _address(self, parts: SplitResult) -> IPAddress:
        """The address that the URL's host is connected to, where that is allowed."""
        host = str(parts.hostname)
        address = await pinned_address(
            host, _port(parts), allow_loopback=self.policy.allow_loopback, resolver=self._resolver
        )
        if parts.scheme == "http" and not address.is_loopback:
            raise _failed(
                "plain http is for loopback only: the LoRA's URL must begin with https://",
                "refused_scheme",
                host,
            )
        return address

    @asynccontextmanager
    async def _open(
        self, method: str, parts: SplitResult, headers: dict[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """A response from the pinned address of the URL's host."""
        host, port = str(parts.hostname), _port(parts)
        address = await self._address(parts)
        literal = f"[{address}]" if address.version == 6 else str(address)
        # Path and query are passed on byte for byte: a signature covers their exact spelling, and
        # the client would resolve `..` and respell some signs.
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        default = (parts.scheme, port) in (("https", 443), ("http", 80))
        host_header = parts.netloc
        if parts.port is not None and default:
            host_header = host_header.rpartition(":")[0]
        extensions: dict[str, Any] = {"target": quote(target, safe=_URL_SIGNS).encode()}
        if parts.scheme == "https":
            extensions["sni_hostname"] = host
        request = self._client.build_request(
            method,
            f"{parts.scheme}://{literal}:{port}/",
            headers={"Host": host_header, "Accept-Encoding": "identity", **headers},
            content=content,
            extensions=extensions,
        )
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _check_status(self, response: httpx2.Response, url: str, host: str) -> None:
        status = response.status_code
        if status == 200:
            return
        if 300 <= status < 400 and status != 304:
            raise _failed(
                f"{host} redirects (status {status}): redirects are not followed",
                "redirect",
                host,
            )
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _ERROR_BODY_BYTES:
                break
        if status in (400, 401, 403, 410) and (has_expired(url) or b"expired" in body.lower()):
            raise _failed("the LoRA's URL has expired: sign it anew", "expired", host, status=400)
        raise LoraDownloadFailed(
            f"{host} answered the LoRA's download with status {status}",
            details={"reason": "http_status", "host": host, "http_status": status},
            status=502 if status >= 500 else 400,
        )

    async def _read(self, response: httpx2.Response, host: str) -> tuple[bytearray, str]:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in ("", "identity"):
            raise _failed(
                f"{host} sent the LoRA compressed ({encoding[:20]}), which was not asked for",
                "encoding",
                host,
            )
        length_text = response.headers.get("content-length")
        length = int(length_text) if length_text and length_text.isdigit() else None
        if length is not None and length > self.policy.max_bytes:
            raise self._too_large(host)
        data, digest, started = bytearray(), hashlib.sha256(), time.monotonic()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self.policy.max_bytes:
                raise self._too_large(host)
            digest.update(chunk)
            elapsed = time.monotonic() - started
            if elapsed > _SLOW_AFTER_S and len(data) < elapsed * self.policy.min_bytes_per_second:
                raise _failed(
                    f"{host} sends the LoRA too slowly: less than "
                    f"{self.policy.min_bytes_per_second} bytes a second",
                    "timeout",
                    host,
                    status=502,
                )
        if length is not None and len(data) != length:
            raise _failed(
                f"{host} promised {length} bytes and sent {len(data)}",
                "truncated",
                host,
                status=502,
            )
        return data, digest.hexdigest()

    def _too_large(self, host: str) -> LoraDownloadFailed:
        return _failed(
            f"the LoRA from {host} is larger than {self.policy.max_bytes} bytes",
            "too_large",
            host,
        )
