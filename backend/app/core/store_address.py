"""An object store's settings as people copy them out of a dashboard, made what the client needs.

Duty: address, bucket and public address in the spellings that providers display → one spelling, or
one sentence that says what to write. A value that half fits would store under other names.
Must not know: where the values come from.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,61}[A-Za-z0-9]|[A-Za-z0-9]")
_R2 = ".r2.cloudflarestorage.com"
# Stores that display an address with the bucket's name in front of the host.
_KNOWN_HOSTS = (
    _R2,
    ".amazonaws.com",
    ".digitaloceanspaces.com",
    ".backblazeb2.com",
    ".wasabisys.com",
    ".linodeobjects.com",
    ".scw.cloud",
    ".storage.googleapis.com",
    ".cloud.ovh.net",
    ".your-objectstorage.com",
    ".t3.storage.dev",
)
_AWS_REGION = re.compile(r"s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")
_WRAPPING = " \t\r\n\u00a0\u200b\u2060\ufeff"
_QUOTES = ('""', "''", "``", "“”", "‘’", "<>")


class Store(NamedTuple):
    """Where a bucket is: the address without the bucket, the bucket, and its region."""

    endpoint: str
    bucket: str
    region: str


def unwrapped(text: str) -> str:
    """`text` without the blanks and the pair of quotes that were copied along with it."""
    text = text.strip(_WRAPPING)
    if len(text) >= 2 and text[0] + text[-1] in _QUOTES:
        text = text[1:-1].strip(_WRAPPING)
    return text


def clean_url(text: str, *, example: str) -> str:
    """A base address: http or https, a host, perhaps a path; no slash at its end.

    Raises:
        ValueError: it is something else; the text says what to write.
    """
    if re.search(r"[\s\x00-\x1f]", text):
        raise ValueError(f"must not hold a blank or a line break: write {example}")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"is not an address: write {example}") from None
    if url.scheme not in ("http", "https"):
        raise ValueError(f"must start with https:// or http://: write {example}")
    if not url.hostname or port == 0:
        raise ValueError(f"names no host: write {example}")
    if url.username is not None or url.password is not None:
        raise ValueError(f"must not hold a user or a password: write {example}")
    if url.query or url.fragment or text.endswith(("?", "#")):
        raise ValueError(f"must be without what follows ? or #: write {example}")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def store(endpoint: str, bucket: str, region: str) -> Store:
    """The store that these settings mean.

    An address may hold the bucket's name, at its path's end (as R2 displays it) or in front of
    its host (as others do): it is taken off, since the client adds it.

    Raises:
        ValueError: they do not go together; the text says what to write.
    """
    name = bucket_name(bucket)
    if "://" not in endpoint and urlsplit(f"//{endpoint}").netloc.lower().endswith(_KNOWN_HOSTS):
        endpoint = f"https://{endpoint}"
    example = "https://<account>.r2.cloudflarestorage.com"
    try:
        url = urlsplit(clean_url(endpoint, example=example))
    except ValueError as error:
        raise ValueError(f"R2_ENDPOINT_URL {error}") from None
    host = (url.hostname or "").lower()
    _refuse_other_addresses(url, host)
    segments = [unquote(part) for part in url.path.split("/") if part]
    if segments and segments[-1] == name:
        segments.pop()
    if segments and host.endswith(_KNOWN_HOSTS):
        raise ValueError(
            "R2_ENDPOINT_URL names another bucket in its path than R2_BUCKET_NAME: write "
            f"{url.scheme}://<host> alone there, and the bucket's name into R2_BUCKET_NAME"
        )
    netloc = url.netloc
    if host.endswith(_KNOWN_HOSTS) and host.startswith(f"{name}."):
        netloc = netloc[len(name) + 1 :]
        host = host[len(name) + 1 :]
    if region == "auto" and host.endswith(".amazonaws.com"):
        found = _AWS_REGION.search(host)
        region = found[1] if found else "us-east-1"
    path = "".join(f"/{segment}" for segment in segments)
    return Store(f"{url.scheme}://{netloc}{path}", name, region)


def bucket_name(text: str) -> str:
    """A bucket's name, also where it was written as `s3://name/`.

    Raises:
        ValueError: it is no name.
    """
    name = re.sub(r"^(?:s3|r2)://", "", text, flags=re.IGNORECASE).strip("/")
    if not _BUCKET.fullmatch(name):
        raise ValueError(
            "R2_BUCKET_NAME must be the bucket's name alone: letters, digits, dots and dashes"
        )
    return name


def public_url(text: str) -> str:
    """The address that a bucket's objects are public under.

    Raises:
        ValueError: it cannot be; the text says what to write.
    """
    example = "https://pub-<id>.r2.dev or https://pictures.example.com"
    # The dashboard displays a host alone.
    if "://" not in text and re.fullmatch(r"[\w-]+(\.[\w-]+)+(/.*)?", text):
        text = f"https://{text}"
    url = clean_url(text, example=example)
    if (urlsplit(url).hostname or "").lower().endswith(_R2):
        raise ValueError(
            "is the S3 API's address, which answers no unsigned request: write the bucket's own "
            f"public address, such as {example}, or leave it unset"
        )
    return url


def _refuse_other_addresses(url: SplitResult, host: str) -> None:
    account = "https://<account>.r2.cloudflarestorage.com"
    if host.endswith(".r2.dev"):
        raise ValueError(
            "R2_ENDPOINT_URL is a bucket's public address: it belongs into R2_PUBLIC_URL; write "
            f"{account}"
        )
    if host == "cloudflare.com" or host.endswith(".cloudflare.com"):
        raise ValueError(
            f"R2_ENDPOINT_URL is the address of Cloudflare's dashboard or API: write {account}"
        )
    if host.endswith(_KNOWN_HOSTS) and url.scheme == "http":
        raise ValueError(f"R2_ENDPOINT_URL must start with https:// at this host: write {account}")
    if host == _R2[1:]:
        raise ValueError(f"R2_ENDPOINT_URL lacks the account's id: write {account}")
