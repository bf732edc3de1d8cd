"""Which network addresses a download may reach.

Duty: the one rule about addresses, and the resolution of a name under it. Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from sdxl_contract.errors import LoraDownloadFailed

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

# Prefixes that carry an IPv4 address inside an IPv6 one: NAT64 and 6to4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not public, but `is_global` to some versions of Python: local NAT64, documentation, site-local.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text) for text in ("64:ff9b:1::/48", "3fff::/20", "fec0::/10")
)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_allowed(address: IPAddress, *, allow_loopback: bool) -> bool:
    """Whether a download may connect to `address`.

    Only public unicast addresses are: private, shared (CGNAT), link-local (so also the metadata
    services of clouds), multicast, reserved and unspecified ones are not; loopback is by setting.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded_ipv4(address)
        if inner is not None:
            return is_allowed(inner, allow_loopback=allow_loopback)
        if any(address in network for network in _NOT_PUBLIC):
            return False
    if address.is_loopback:
        return allow_loopback
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """Addresses of `host`, as text, in the resolver's order."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


async def pinned_address(
    host: str, port: int, *, allow_loopback: bool, resolver: Resolver = resolve
) -> IPAddress:
    """The address to connect to for `host`; connecting to it, not to the name, is what keeps a
    second answer of the name server from leading elsewhere.

    Raises:
        LoraDownloadFailed: the name does not resolve, or *any* of its addresses is not allowed.
    """
    try:
        literal = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        try:
            texts = await resolver(host, port)
        except (OSError, UnicodeError) as error:  # the latter for a name that no DNS can hold
            raise LoraDownloadFailed(
                f"the host {host} of the LoRA's URL could not be found",
                details={"reason": "unreachable", "host": host},
            ) from error
        addresses = [ipaddress.ip_address(text.split("%")[0]) for text in texts]
    else:
        addresses = [literal]
    if not addresses or not all(is_allowed(a, allow_loopback=allow_loopback) for a in addresses):
        raise LoraDownloadFailed(
            f"the host {host} of the LoRA's URL has an address that is not public: private, "
            "loopback, link-local and reserved addresses are refused",
            details={"reason": "refused_address", "host": host},
        )
    return addresses[0]
