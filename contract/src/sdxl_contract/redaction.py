"""Keeps secrets and signatures out of logs and messages, for every room alike.

Duty: rewrite text so that what signs, authorises or names a stored object is gone. Must not know:
who logs, which settings there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
_SHORTEST_SECRET = 6  # characters; shorter ones stand in ordinary words too
# Words that name a secret, alone or at the end of a longer name such as HUGGINGFACE_HUB_TOKEN.
_NAMES = (
    r"(?:password|passwd|secret|token|signature|credentials?|authorization"
    r"|(?:api|access|secret|private)[_-]?key|modal-key)(?:[_-]id)?"
)
# Repetitions begin only where a word begins or are bounded: no text takes more than linear time.
_NAMED = (
    # A path's query: signed links carry their signature there.
    (r"(?<![^\s\"'<>?])([^\s\"'<>?/]*/[^\s\"'<>?]*)\?[^\s\"'<>)]+", rf"\1?{MASK}"),
    # "Bearer s3cret", but not the words "bearer token".
    (r"\b(bearer[\s:=]+)(?!tokens?\b|auth)[\w.~+/=-]{6,}", rf"\1{MASK}"),
    (r"(authorization[\"']?[\s:=,]+[\"']?(?:basic|token)\s+)[\w.~+/=-]+", rf"\1{MASK}"),
    # name=value, name: value, the same as JSON or a Python dict, and percent-encoded.
    (
        rf"({_NAMES}|\bsig|X-(?:Amz|Goog)-[a-z-]{{1,40}})"
        r"([\"']?\s*(?:[=:]|%3D|%3A)\s*[\"']?)(?!(?:bearer|basic|token)\b)[^\s&\"',}]+",
        rf"\1\2{MASK}",
    ),
    (r"([\"']?modal-(?:key|secret)[\"']?[\s:=,]+[\"']?)(?!\*)[\w-]{4,}", rf"\1{MASK}"),
)
# Secrets that are known by their look: of Modal, Replicate, Hugging Face, AWS and this server, and
# signed JSON (JWT).
_SHAPED = (
    r"\b(?:(?:wk|ws|ak|as)-|r8_|hf_|AKIA|ASIA)[A-Za-z0-9_-]{12,}",
    r"\bsdxl_[A-Za-z0-9_-]{43}\b",
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",
)
_PATTERNS = (
    *((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _NAMED),
    *((re.compile(pattern), MASK) for pattern in _SHAPED),
)
_URL = re.compile(
    r"(?<![a-z0-9+.-])([a-z0-9+.-]*://)([^\s/?#@\"'<>]*@)?([^\s/?#\"'<>]+)([^\s\"'<>]*)",
    re.IGNORECASE,
)
_KEY = re.compile(rf"(?:[A-Za-z0-9]+[_-])*(?:sig|{_NAMES})", re.IGNORECASE)
# Nothing of the above is in these: short words without a separator, names of fields, hex digits.
# Most of a worker's answer is made of them.
_HARMLESS = re.compile(r"[\w.-]{0,14}|(?!hf_|sdxl_)[a-z_]+|[0-9a-f]+")
_PATHS = re.compile(r"(?<![\w/:.*])(?:/[\w.@+-]+){2,}/?|\b[A-Za-z]:\\[^\s\"']+")


def redact(text: str, known: Iterable[str] = ()) -> str:
    """`text` with every URL cut to its scheme and host, and every secret replaced by `***`.

    Args:
        known: secrets to remove wherever they stand, whatever surrounds them.
    """
    for secret in known:
        text = text.replace(secret, MASK)
    if _HARMLESS.fullmatch(text):
        return text
    text = _URL.sub(lambda m: f"{m[1]}{m[3]}/{MASK}" if m[4] or m[2] else m[0], text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_for_people(text: str, known: Iterable[str] = ()) -> str:
    """As `redact`, and without absolute paths: for foreign text that callers will read."""
    return _PATHS.sub(MASK, redact(text, known))


def redact_value(value: Any, known: Iterable[str] = ()) -> Any:
    """`redact` on every text within `value`, a log event's for example.

    What a mapping names as a secret is masked whole. Whatever is no text, number or collection
    becomes text.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, Mapping):
        return {
            key: MASK
            if isinstance(inner, str | bytes) and _KEY.fullmatch(str(key))
            else redact_value(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item, known) for item in value]
    shown = repr(value) if isinstance(value, BaseException | bytes) else str(value)
    return redact(shown, known)


def long_enough(*values: str | None) -> tuple[str, ...]:
    """The secrets that can be told from ordinary words, for `redact`'s `known`."""
    return tuple(value for value in values if value and len(value) >= _SHORTEST_SECRET)
