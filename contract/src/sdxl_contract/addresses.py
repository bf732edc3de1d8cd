"""Which network addresses a URL of somebody else's may lead to, for worker and backend alike.

Duty: the one rule about addresses, and the resolution of a name under it. Must not know: HTTP, and
what is fetched or sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

# Written down rather than asked of `ipaddress`, whose answers differ between versions of Python.
# Sources: IANA's registries of special-purpose addresses; the clouds' own documentation.
_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by providers; Alibaba's metadata service
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; most clouds' metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        # Look public, but answer only inside of a cloud, with that cloud's own services.
        "168.63.129.16/32",  # Azure's platform
        "161.26.0.0/16",  # IBM's services
        "166.8.0.0/14",  # IBM's services
        "192.80.8.124/32",  # Equinix Metal's metadata
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise, and nobody's way any more
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
# A network without IPv4 of its own reaches the IPv4 world through these.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Interface identifiers of ISATAP, which carry an IPv4 address.
_ISATAP = (0x00005EFE, 0x02005EFE)
_LOOPBACK_6 = ipaddress.IPv6Address("::1")
_LOOPBACK_4 = ipaddress.IPv4Network("127.0.0.0/8")

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_HOST_MAX_CHARS = 253
# Resolvers read these as addresses: 127.1, 0x7f000001, 0177.0.0.1.
_NUMBER_HOST = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
# Names that are never public: a single label, and what RFC 6761, 6762, 8375 and ICANN set aside.
_INSIDE = re.compile(r"[^.]*|(.*\.)(localhost|local|internal|home\.arpa)")

# Threads of their own: a name server that does not answer must not hold up anything else.
_RESOLVING = ThreadPoolExecutor(32, thread_name_prefix="resolve")
_RESOLVE_S = 10.0


class HostUnknown(Exception):
    """The name does not resolve."""


class AddressRefused(Exception):
    """An address behind the name may not be connected to."""


def literal_address(host: str) -> IPAddress | None:
    """The address that `host` is, in the usual spelling and without a zone; else None."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if "%" in host else address


def is_host_name(name: str) -> bool:
    """Whether `name` (in lower case, without a final dot) can be a host's name in ASCII."""
    return len(name) <= _HOST_MAX_CHARS and _HOST_NAME.fullmatch(name) is not None


def is_number_host(name: str) -> bool:
    """Whether resolvers may read `name` as an address, in a spelling that is not the usual one."""
    return _NUMBER_HOST.fullmatch(name) is not None


def is_inside_name(name: str) -> bool:
    """Whether `name` means something only on a computer or in a network of its own."""
    return _INSIDE.fullmatch(name) is not None


def is_allowed(address: IPAddress, *, allow_loopback: bool) -> bool:
    """Whether somebody else's URL may lead to `address`.

    Only public unicast addresses are: private, shared (CGNAT), link-local, multicast, reserved
    and unspecified ones are not, nor the metadata services of clouds, nor the forms of IPv6 that
    carry another address; loopback is by setting.
    """
    if isinstance(address, ipaddress.IPv4Address):
        if address in _LOOPBACK_4:
            return allow_loopback
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_allowed(address.ipv4_mapped, allow_loopback=allow_loopback)
    if address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return is_allowed(inner, allow_loopback=False)
    if address == _LOOPBACK_6:
        return allow_loopback
    if address not in _GLOBAL_6 or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


async def resolve(host: str, port: int) -> list[str]:
    """Addresses of `host`, as text, in the resolver's order."""
    found = await asyncio.get_running_loop().run_in_executor(
        _RESOLVING, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(item[4][0]) for item in found))


async def checked_address(
    host: str, port: int, *, allow_loopback: bool, resolver: Resolver = resolve
) -> IPAddress:
    """The address to connect to for `host`; connecting to it, not to the name, is what keeps a
    second answer of the name server from leading elsewhere.

    Raises:
        HostUnknown: the name does not resolve.
        AddressRefused: *any* of its addresses is not allowed.
    """
    literal = literal_address(host)
    if literal is None:
        try:
            async with asyncio.timeout(_RESOLVE_S):
                texts = await resolver(host, port)
        # TimeoutError is an OSError; UnicodeError is for a name that no name server can hold.
        except (OSError, UnicodeError) as error:
            raise HostUnknown(host) from error
        addresses = [ipaddress.ip_address(text) for text in texts]
    else:
        addresses = [literal]
    if not addresses or not all(is_allowed(a, allow_loopback=allow_loopback) for a in addresses):
        raise AddressRefused(host)
    return addresses[0]
