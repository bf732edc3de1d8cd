"""Presigned URLs as text: whether their time is over, what they may be.

Duty: everything about a URL that can be known without a connection. Must not know: sockets,
responses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, parse_qs, urlsplit

from sdxl_contract.errors import LoraDownloadFailed
from sdxl_contract.limits import URL_MAX_CHARS
from sdxl_contract.routing.object_key import DEFAULT_PORTS
from sdxl_worker.fetching.addresses import is_host_name, is_number_host, literal_address

# Control characters and halves of surrogate pairs.
_NOT_IN_URLS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Ports of services that speak something else than HTTP: a request there could be read as commands.
_OTHER_SERVICES = frozenset(
    {
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101,
        102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 138, 139, 143, 161, 162,
        179, 389, 427, 445, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563,
        587, 601, 636, 873, 989, 990, 993, 995, 1433, 1521, 1719, 1720, 1723, 2049, 2375, 2376,
        2379, 2380, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432, 5900, 6000, 6379, 6566, 6665,
        6666, 6667, 6668, 6669, 6679, 6697, 10080, 10250, 10255, 11211, 27017,
    }
)  # fmt: skip


def has_expired(url: str, now: datetime | None = None) -> bool:
    """Whether the URL itself says that its time is over (SigV4 as S3, Google's or Alibaba's
    storage spell it, Azure's `se`, or an `expires` in Unix time)."""
    now = now or datetime.now(UTC)
    query = {key.lower(): values[0] for key, values in parse_qs(urlsplit(url).query).items()}
    try:
        for vendor in ("x-amz", "x-goog", "x-oss"):
            date, seconds = query.get(f"{vendor}-date"), query.get(f"{vendor}-expires")
            if date is not None and seconds is not None:
                signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return now > signed + timedelta(seconds=int(seconds))
        if "sig" in query and "se" in query:
            ends = datetime.fromisoformat(query["se"])
            return now > (ends if ends.tzinfo else ends.replace(tzinfo=UTC))
        if "expires" in query:
            return now.timestamp() > int(query["expires"])
    except (ValueError, OverflowError):
        return False
    return False


@dataclass(frozen=True)
class Place:
    """A URL that was looked at: where to connect, and what to ask for there.

    Attributes:
        host: the name in ASCII and lower case without a final dot, or an address without brackets.
        target: path and query, byte for byte as the URL has them: a signature covers the spelling.
    """

    url: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """What the `Host` header holds."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if self.port == DEFAULT_PORTS[self.scheme] else f"{shown}:{self.port}"


def refused(message: str, reason: str, host: str, *, status: int = 400) -> LoraDownloadFailed:
    """The error for a download that is not made, or failed."""
    return LoraDownloadFailed(message, details={"reason": reason, "host": host}, status=status)


def look_at(url: str, *, http_too: bool, allowed_hosts: tuple[str, ...]) -> Place:
    """Where `url` leads, if it may lead there.

    Args:
        http_too: take `http://` as well; the address then must be loopback, which is for whoever
            connects to find out.
        allowed_hosts: names, or `.suffixes`; empty: every host.

    Raises:
        LoraDownloadFailed: it is no https URL, has a user name, a port of another service, or a
            host that is none or not among the allowed ones.
    """
    try:
        parts = urlsplit(url)
        raw_host, port = parts.hostname, parts.port
    except ValueError:
        raw_host = port = None
    if not raw_host or len(url) > URL_MAX_CHARS:
        raise refused(
            "the LoRA's URL is not a URL with a host, its port is no port, or it is too long",
            "refused_scheme",
            "",
        )
    host = _ascii_host(raw_host, parts)
    if _NOT_IN_URLS.search(url):
        raise refused(
            "the LoRA's URL holds a control character or half a surrogate pair",
            "refused_scheme",
            host,
        )
    if parts.username is not None or parts.password is not None:
        raise refused("the LoRA's URL holds a user name", "refused_host", host)
    if parts.scheme != "https" and not (parts.scheme == "http" and http_too):
        raise refused(
            f"the LoRA's URL must begin with https://, not {parts.scheme[:20]}:",
            "refused_scheme",
            host,
        )
    if port in _OTHER_SERVICES:
        raise refused(
            f"the port {port} of the LoRA's URL belongs to a service that is no web server",
            "refused_host",
            host,
        )
    if allowed_hosts and not any(
        host == allowed or (allowed.startswith(".") and host.endswith(allowed))
        for allowed in allowed_hosts
    ):
        raise refused(
            f"the host {host} of the LoRA's URL is not among the allowed ones", "refused_host", host
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(url, parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], target)


def _ascii_host(raw: str, parts: SplitResult) -> str:
    """The host as it is resolved, compared and sent: one spelling for all three."""
    literal = literal_address(raw)
    if literal is not None and ("[" in parts.netloc) == (literal.version == 6):
        return str(literal)
    name = raw.removesuffix(".")
    if not is_host_name(name):
        raise refused(
            "the host of the LoRA's URL is no host name: letters, digits, '-', '_' and '.', a name "
            "in another script in its xn-- form",
            "refused_host",
            "",
        )
    if is_number_host(name):
        raise refused(
            f"the host {name} of the LoRA's URL is a number, but no address in its usual spelling",
            "refused_address",
            name,
        )
    return name
