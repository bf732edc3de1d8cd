"""The contract's rule about addresses, in the words of a LoRA's download.

Must not know: HTTP.
"""

from __future__ import annotations

from sdxl_contract.addresses import (
    AddressRefused,
    HostUnknown,
    IPAddress,
    Resolver,
    checked_address,
    is_allowed,
    is_host_name,
    is_number_host,
    literal_address,
    resolve,
)
from sdxl_contract.errors import LoraDownloadFailed

__all__ = [
    "IPAddress",
    "Resolver",
    "is_allowed",
    "is_host_name",
    "is_number_host",
    "literal_address",
    "pinned_address",
    "resolve",
]


async def pinned_address(
    host: str, port: int, *, allow_loopback: bool, resolver: Resolver = resolve
) -> IPAddress:
    """The address to connect to for `host`, and to no other.

    Raises:
        LoraDownloadFailed: the name does not resolve, or *any* of its addresses is not allowed.
    """
    try:
        return await checked_address(host, port, allow_loopback=allow_loopback, resolver=resolver)
    except HostUnknown as error:
        raise LoraDownloadFailed(
            f"the host {host} of the LoRA's URL could not be found",
            details={"reason": "unreachable", "host": host},
        ) from error
    except AddressRefused as error:
        raise LoraDownloadFailed(
            f"the host {host} of the LoRA's URL has an address that is not public: private, "
            "loopback, link-local and reserved addresses are refused",
            details={"reason": "refused_address", "host": host},
        ) from error
