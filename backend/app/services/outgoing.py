"""Calls to URLs of somebody else's: to public addresses only, bounded in bytes and time.

Duty: connect to the address that was checked, under the name's own certificate; follow nothing.
Must not know: what is sent.
"""

from __future__ import annotations

import asyncio
import functools
import http.cookiejar
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import httpx2

from sdxl_contract.addresses import (
    AddressRefused,
    HostUnknown,
    Resolver,
    checked_address,
    is_allowed,
    is_host_name,
    is_inside_name,
    is_number_host,
    literal_address,
    resolve,
)

ATTEMPT_SECONDS = 20.0
_CONNECT_SECONDS = 5.0
_HEAD_BYTES = 1024
URL_MAX_CHARS = 2048
_VISIBLE = re.compile("[\x21-\x7e]+")


class UrlRefused(ValueError):
    """The URL may not be called; the message says why, without the URL."""


class OutgoingFailed(Exception):
    """There was no answer; the message is safe to show."""


class Answer(NamedTuple):
    """What the receiver said: the first bytes of its body only."""

    status: int
    head: str
    retry_after: float | None  # seconds


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The public authorities; reading them takes 40 ms, once."""
    return httpx2.create_ssl_context(trust_env=False)


class Outgoing:
    """Calls to receivers.

    Args:
        allow_loopback: also http and any port of this computer's own, for trying things out.
        proxy_url: an egress proxy that every call goes through, and which then resolves the names.
    """

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        proxy_url: str | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
        resolver: Resolver = resolve,
    ) -> None:
        self._allow_loopback = allow_loopback
        self._has_proxy = proxy_url is not None
        self._resolver = resolver
        self._attempt_seconds = attempt_seconds
        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            verify=_certificates(),
            # Connections go to addresses, which many hosts share: a cookie would reach others.
            cookies=http.cookiejar.CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            proxy=proxy_url,
            timeout=httpx2.Timeout(ATTEMPT_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def check(self, url: str) -> SplitResult:
        """The URL's parts, if it may be called as far as it can be told without a look-up.

        Raises:
            UrlRefused: it may not.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UrlRefused("must be a URL with a host") from None
        if (
            len(url) > URL_MAX_CHARS
            or not url.isascii()
            or any(c <= " " or c == "\x7f" for c in url)
        ):
            raise UrlRefused(f"must have at most {URL_MAX_CHARS} ASCII characters, without blanks")
        if parts.scheme not in ("https", "http") or not host:
            raise UrlRefused("must begin with https:// and a host")
        if "@" in parts.netloc:
            raise UrlRefused("must hold no user name")
        literal = literal_address(host)
        local = self._allow_loopback and (
            host == "localhost" or (literal is not None and literal.is_loopback)
        )
        if literal is None and not local:
            # A proxy resolves by itself, so a name alone must not lead inside either.
            name = host.removesuffix(".")
            if not is_host_name(name):
                raise UrlRefused("must have a host name in ASCII, or an address")
            if is_number_host(name) or is_inside_name(name):
                raise UrlRefused("must lead to a public address, in its usual spelling")
        if literal is not None and not is_allowed(literal, allow_loopback=self._allow_loopback):
            raise UrlRefused("must lead to a public address")
        if not local and (parts.scheme != "https" or port not in (None, 443)):
            raise UrlRefused("must begin with https:// and use port 443")
        return parts

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send `body`.

        Raises:
            OutgoingFailed: there was no answer in time, or the URL leads where it may not.
        """
        try:
            async with asyncio.timeout(self._attempt_seconds):
                async with self._open("POST", url, body, headers) as response:
                    return Answer(
                        response.status_code, await _head(response), _retry_after(response)
                    )
        except TimeoutError:
            raise OutgoingFailed(f"no answer within {self._attempt_seconds:g} s") from None
        except UrlRefused as error:
            raise OutgoingFailed(f"the URL {error}") from None
        except HostUnknown:
            raise OutgoingFailed("the host could not be found") from None
        except AddressRefused:
            raise OutgoingFailed("the host has an address that is not public") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise OutgoingFailed(f"the connection failed ({type(error).__name__})") from None

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """What `url` answers, a redirection too; the caller bounds what it reads, and for how long.

        Raises:
            UrlRefused, HostUnknown, AddressRefused: the URL leads where it may not.
            httpx2.HTTPError, httpx2.InvalidURL: the connection failed.
        """
        async with self._open("GET", url, None, headers) as response:
            yield response

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        parts = self.check(url)
        host = str(parts.hostname)
        target, extensions = url, {}
        headers = {**headers, "Accept-Encoding": "identity"}
        if not self._has_proxy:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            address = await checked_address(
                host, port, allow_loopback=self._allow_loopback, resolver=self._resolver
            )
            if parts.scheme == "http" and not address.is_loopback:
                raise UrlRefused("must begin with https://")
            literal = f"[{address}]" if address.version == 6 else str(address)
            query = f"?{parts.query}" if parts.query else ""
            target = f"{parts.scheme}://{literal}:{port}{parts.path or '/'}{query}"
            headers["Host"] = parts.netloc
            if parts.scheme == "https":
                extensions["sni_hostname"] = host
        request = self._client.build_request(
            method, target, content=body, headers=headers, extensions=extensions
        )
        response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()


async def _head(response: httpx2.Response) -> str:
    head = b""
    async for chunk in response.aiter_raw():
        head += chunk
        if len(head) >= _HEAD_BYTES:
            break
    return head[:_HEAD_BYTES].decode("utf-8", "replace").replace("\x00", "")


def _retry_after(response: httpx2.Response) -> float | None:
    text: Any = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
