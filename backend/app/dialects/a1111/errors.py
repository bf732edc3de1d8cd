"""Errors as A1111's clients read them: most show `detail`."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from app.core.errors import Fault, retry_header

_TEXTS = ("error", "detail", "body", "errors")
SCHEMA: dict[str, Any] = {
    "application/json": {
        "type": "object",
        "required": list(_TEXTS),
        "properties": {name: {"type": "string"} for name in _TEXTS},
    }
}


def as_a1111(fault: Fault) -> JSONResponse:
    """`fault` in A1111's shape."""
    body = {
        "error": fault.code,
        "detail": fault.detail,
        "body": "",
        "errors": str((fault.details or {}).get("hint", "")),
    }
    headers = retry_header(fault)
    if fault.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="API key as the password", charset="UTF-8"'
    status = {402: 429, 499: 500}.get(fault.status, fault.status)
    return JSONResponse(body, status, headers)
