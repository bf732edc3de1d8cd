"""Errors as fal's clients read them: `detail` is a text, or of a wrong field a list."""

from __future__ import annotations

import re
import uuid
from typing import Any

from fastapi.responses import JSONResponse

from app.core.errors import Fault, retry_header

REQUEST_ID = "x-fal-request-id"
ERROR_TYPE = "x-fal-error-type"
SCHEMA: dict[str, Any] = {
    "application/json": {
        "type": "object",
        "required": ["detail", "error_type"],
        "properties": {
            "detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {}}]},
            "error_type": {"type": "string"},
        },
    }
}
_PARTS = re.compile(r"[^.\[\]]+")


def as_fal(fault: Fault) -> JSONResponse:
    """`fault` in fal's shape. Its clients repeat 502 to 504 where no request's id is sent."""
    detail: Any = fault.detail
    status = {402: 403, 499: 400}.get(fault.status, fault.status)
    if fault.field is not None and status in (400, 422):
        status = 422
        place = [int(part) if part.isdigit() else part for part in _PARTS.findall(fault.field)]
        detail = [{"loc": ["body", *place], "msg": fault.detail, "type": "value_error"}]
    headers = retry_header(fault) | {
        REQUEST_ID: str(uuid.uuid4()),
        ERROR_TYPE: fault.code.lower(),
    }
    if status == 401:
        headers["WWW-Authenticate"] = "Key"
    return JSONResponse({"detail": detail, "error_type": fault.code.lower()}, status, headers)
