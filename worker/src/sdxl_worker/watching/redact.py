"""Keeps secrets and signatures out of logs and messages.

Duty: rewrite text so that what signs or authorises is gone. Must not know: who logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

_MASK = "***"
# Each begins only where a word begins: so no text takes more than linear time.
_URL = re.compile(
    r"(?<![a-z0-9+.-])([a-z0-9+.-]*://)([^\s/?#@\"'<>]*@)?([^\s/?#\"'<>]+)([^\s\"'<>]*)",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
# What names a secret: alone, or at the end of a longer name such as HUGGINGFACE_HUB_TOKEN.
_SECRET_NAME = (
    r"(?:[A-Za-z0-9]+[_-])*(?:signature|sig|token|secret|password|passwd|credential|credentials"
    r"|authorization|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|modal-key)"
    r"(?:[_-]id)?"
)
_PAIR = re.compile(
    rf"(?<![A-Za-z0-9_-])(X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+|{_SECRET_NAME})"
    r"([\"']?\s*(?:[=:]|%3D|%3A)\s*[\"']?)([^\s&\"',}]+)",
    re.IGNORECASE,
)
_KEY = re.compile(_SECRET_NAME, re.IGNORECASE)
# Secrets that are known by their look: hub, AWS and Modal tokens, and signed JSON (JWT).
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|A[KS]IA[0-9A-Z]{16}|(?:ak|as|wk|ws)-[A-Za-z0-9]{16,}"
    r"|(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)


def redact(text: str) -> str:
    """`text` with every URL cut to its scheme and host, and every token replaced by `***`."""
    text = _URL.sub(lambda m: f"{m[1]}{m[3]}/{_MASK}" if m[4] or m[2] else m[0], text)
    text = _SCHEME.sub(lambda m: f"{m[1]} {_MASK}", text)
    text = _PAIR.sub(lambda m: f"{m[1]}{m[2]}{_MASK}", text)
    return _SHAPES.sub(_MASK, text)


def _redacted(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return _redacted_items(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(item) for item in value]
    # Whatever else a renderer would write by its repr: an exception, bytes, a model.
    return redact(repr(value))


def _redacted_items(items: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: _MASK
        if isinstance(value, str | bytes) and _KEY.fullmatch(str(key))
        else _redacted(value)
        for key, value in items.items()
    }


def redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: `redact` on every text of the event, and on what is named a secret."""
    return _redacted_items(event)
