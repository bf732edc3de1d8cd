"""One guarded exchange over HTTP: with the address that was checked, and with no other.

Duty: a `Place` → its answer, from a public address, without a memory of earlier exchanges.
Must not know: what is fetched or stored.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from urllib.parse import quote

from sdxl_worker.fetching.addresses import IPAddress, Resolver, is_allowed, pinned_address
from sdxl_worker.fetching.exchange import Asked, Exchange
from sdxl_worker.fetching.urls import Place, look_at, refused

# Until the last of the answer's headers: one that drips them is given up then.
_HEADERS_S = 20.0
# Further ones wait for a thread, as long as their deadline lets them.
_AT_ONCE = 128
_URL_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


@cache
def _tls() -> ssl.SSLContext:
    # Made when it is first needed: it reads every certificate that the system trusts.
    return ssl.create_default_context()


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
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")

    def close(self) -> None:
        """Begin no exchange any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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
    ) -> AsyncIterator[Exchange]:
        """The answer of `place` at `address`; its body is not read yet.

        Raises:
            ExchangeFailed: there is none.
        """
        whole = {
            "Host": place.host_header, "Accept": "*/*", "Accept-Encoding": "identity",
            "Connection": "close", "User-Agent": "modal-sdxl-lora", **headers,
        }  # fmt: skip
        if content is not None:
            whole["Content-Length"] = str(len(content))
        asked = Asked(
            method=method,
            address=address,
            port=place.port,
            # Passed on byte for byte, but for what cannot be sent.
            target=quote(place.target, safe=_URL_SIGNS),
            headers=whole,
            tls_name=place.host if place.scheme == "https" else None,
            content=content,
        )
        exchange = Exchange(self._threads, _tls)
        try:
            async with asyncio.timeout(_HEADERS_S if content is None else None):
                await exchange.ask(asked)
            self._check_peer(exchange, place)
            yield exchange
        finally:
            exchange.close()

    def _check_peer(self, exchange: Exchange, place: Place) -> None:
        """Look at the address at the other end itself, whatever was asked for."""
        address = ipaddress.ip_address(exchange.peer.partition("%")[0])
        if not is_allowed(address, allow_loopback=self._allow_loopback):
            raise refused(
                f"the host {place.host} of the LoRA's URL was reached at an address that is not "
                "public",
                "refused_address",
                place.host,
            )
