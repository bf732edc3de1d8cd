"""Errors as OpenAI's clients read them.

Their clients repeat a call twice on 408, 409, 429 and from 500 on, unless told not to.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi.responses import JSONResponse

from app.core.errors import Fault, ProblemCode, retry_header
from sdxl_contract.errors import ErrorCode

REQUEST_ID = "x-request-id"
SCHEMA: dict[str, Any] = {
    "application/json": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string"},
                },
            }
        },
    }
}
_NO_RETRY = {"x-should-retry": "false"}
_TYPES = {
    401: "invalid_request_error",
    403: "permission_error",
    429: "rate_limit_error",
}
MODEL_NOT_FOUND = "model_not_found"
_CODES: dict[str, str] = {
    ErrorCode.UNAUTHORIZED: "invalid_api_key",
    ProblemCode.RATE_LIMITED: "rate_limit_exceeded",
    ErrorCode.OVERLOADED: "rate_limit_exceeded",
    ErrorCode.CONTENT_REFUSED: "content_policy_violation",
    ProblemCode.BUDGET_EXHAUSTED: "insufficient_quota",
    MODEL_NOT_FOUND: MODEL_NOT_FOUND,
}


def as_openai(fault: Fault, *, retries: bool = True) -> JSONResponse:
    """`fault` in OpenAI's shape; `retries`: whether a repeated call may end better."""
    status = {402: 429, 422: 400, 499: 400}.get(fault.status, fault.status)
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if fault.code == ProblemCode.BUDGET_EXHAUSTED:
        kind, retries = "insufficient_quota", False
    error = {
        "message": fault.detail,
        "type": kind,
        "param": fault.field,
        "code": _CODES.get(fault.code, fault.code.lower()),
    }
    headers = retry_header(fault) if retries else dict(_NO_RETRY)
    headers[REQUEST_ID] = f"req_{uuid.uuid4().hex}"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error}, status, headers)
