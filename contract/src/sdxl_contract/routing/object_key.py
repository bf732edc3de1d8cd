"""Which object a presigned URL names, whatever its signature.

Duty: one name for all URLs of one object. Must not know: what is fetched, or by whom.
"""

from __future__ import annotations

from urllib.parse import unquote_plus, urlsplit

DEFAULT_PORTS = {"https": 443, "http": 80}
# What signing adds to a query, in lower case. All names of one group must be there, then those and
# the group's others are no part of what the URL names. Anything else names the object.
_SIGNATURES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(must.split()), frozenset((f"{must} {others}").split()))
    for must, others in (
        (  # Amazon's version 4, as S3, R2, MinIO and others have it
            "x-amz-signature",
            "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-signedheaders "
            "x-amz-security-token x-amz-content-sha256",
        ),
        (  # Google's version 4
            "x-goog-signature",
            "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signedheaders",
        ),
        ("signature expires awsaccesskeyid", "x-amz-security-token"),
        ("signature expires googleaccessid", ""),
        ("signature expires ossaccesskeyid", "security-token"),
        (
            "x-oss-signature",
            "x-oss-signature-version x-oss-credential x-oss-date x-oss-expires "
            "x-oss-additional-headers x-oss-security-token",
        ),
        (
            "q-signature",
            "q-sign-algorithm q-ak q-sign-time q-key-time q-header-list q-url-param-list "
            "x-cos-security-token",
        ),
        ("signature key-pair-id", "expires policy"),  # CloudFront
        (  # Azure's shared access signatures
            "sig sv",
            "ss srt sr sp se st spr sip si ses skoid sktid skt ske sks skv saoid suoid scid",
        ),
        ("signature", "expires"),  # whoever else signs: by these names it is no name of a file
        ("sig", "expires"),
    )
)


def object_key(url: str) -> str:
    """What `url` names: the same for every signature of one object, another for another object.

    Scheme, host, port, path and query are kept as they are spelled, but for what a known way of
    signing adds to the query. A version, an id or a token that is no such signature counts: two
    URLs that differ in it may be two files.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return url
    netloc = host if port in (None, DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{port}"
    pairs = parts.query.split("&") if parts.query else []
    names = [unquote_plus(pair.partition("=")[0]).lower() for pair in pairs]
    signing: frozenset[str] = frozenset()
    for must, all_of_them in _SIGNATURES:
        if must <= set(names):
            signing = all_of_them
            break
    kept = [pair for pair, name in zip(pairs, names, strict=True) if name not in signing]
    return f"{parts.scheme}://{netloc}{parts.path or '/'}" + (f"?{'&'.join(kept)}" if kept else "")
