"""One guarded exchange over HTTP: with the address that was checked, and with no other.

Duty: a `Place` → its response, from a public address, without a memory of earlier exchanges.
Must not know: what is fetched or stored.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2

from sdxl_worker.fetching.addresses import IPAddress, Resolver, is_allowed, pinned_address
from sdxl_worker.fetching.urls import Place, look_at, refused

_CONNECT_S = 10.0
_READ_S = 15.0
# Until the last of the answer's headers: one that drips them is given up then.
_HEADERS_S = 20.0
_URL_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def _no_cookies() -> http.cookiejar.CookieJar:
    # Connections go to addresses, which many hosts share: a cookie would reach another host, and
    # one caller's would be sent for the next.
    return http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


class Connections:
    """Guarded HTTP without redirects, cookies, proxies and connections that are used again.

    Args:
        allow_loopback: also connect to loopback, there by http as well.
        allowed_hosts: names, or `.suffixes`; empty: every public host.
        resolver: host → addresses.
    """

    def __init__(
        self, *, allow_loopback: bool, allowed_hosts: tuple[str, ...], resolver: Resolver
    ) -> None:
        self._allow_loopback = allow_loopback
        self._allowed_hosts = allowed_hosts
        self._resolver = resolver
        self._client = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            cookies=_no_cookies(),
            timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def look_at(self, url: str) -> Place:
        """Where `url` leads; see `urls.look_at`."""
        return look_at(url, http_too=self._allow_loopback, allowed_hosts=self._allowed_hosts)

    async def address(self, place: Place, *, loopback: bool = True) -> IPAddress:
        """The address that the place's host is connected to, where that is allowed.

        Args:
            loopback: False refuses loopback whatever the setting is.
        """
        address = await pinned_address(
            place.host,
            place.port,
            allow_loopback=self._allow_loopback and loopback,
            resolver=self._resolver,
        )
        if place.scheme == "http" and not address.is_loopback:
            raise refused(
                "plain http is for loopback only: the LoRA's URL must begin with https://",
                "refused_scheme",
                place.host,
            )
        return address

    @asynccontextmanager
    async def open(
        self,
        method: str,
        place: Place,
        address: IPAddress,
        headers: dict[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """The response of `place` at `address`; its body is not read yet."""
        literal = f"[{address}]" if address.version == 6 else str(address)
        # Path and query are passed on byte for byte: the client would resolve `..` and respell
        # some signs.
        extensions: dict[str, Any] = {"target": quote(place.target, safe=_URL_SIGNS).encode()}
        if place.scheme == "https":
            extensions["sni_hostname"] = place.host
        request = self._client.build_request(
            method,
            f"{place.scheme}://{literal}:{place.port}/",
            headers={"Host": place.host_header, "Accept-Encoding": "identity", **headers},
            content=content,
            extensions=extensions,
        )
        # What is sent takes as long as it takes; its deadline is the caller's.
        async with asyncio.timeout(_HEADERS_S if content is None else None):
            response = await self._client.send(request, stream=True)
        try:
            self._check_peer(response, place)
            yield response
        finally:
            await response.aclose()

    def _check_peer(self, response: httpx2.Response, place: Place) -> None:
        """Look at the address at the other end itself, whatever was asked for."""
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        if peer is None:
            return
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
        if not is_allowed(address, allow_loopback=self._allow_loopback):
            raise refused(
                f"the host {place.host} of the LoRA's URL was reached at an address that is not "
                "public",
                "refused_address",
                place.host,
            )
