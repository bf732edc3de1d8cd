"""Keeps secrets and signatures out of logs and messages.

Duty: rewrite text so that what signs or authorises is gone. Must not know: who logs.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

_URL = re.compile(r"(https?://)([^\s/?#@\"'<>]*@)?([^\s/?#\"'<>]+)([^\s\"'<>]*)", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_PAIR = re.compile(
    r"\b(X-Amz-[A-Za-z-]+|signature|sig|token|api[_-]?key|secret|password|authorization"
    r"|modal-key|modal-secret)\b([\"']?\s*[=:]\s*[\"']?)([^\s&\"',}]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with every URL cut to its scheme and host, and every token replaced by `***`."""
    text = _URL.sub(lambda m: f"{m[1]}{m[3]}/***" if m[4] or m[2] else m[0], text)
    text = _BEARER.sub(lambda m: f"{m[1]} ***", text)
    return _PAIR.sub(lambda m: f"{m[1]}{m[2]}***", text)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return value


def redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: `redact` on every text of the event."""
    return {key: _redacted(value) for key, value in event.items()}
