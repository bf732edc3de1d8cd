"""The backend's own errors, and every error as one JSON shape (RFC 9457).

Duty: map what can go wrong to `application/problem+json` with `error_code`. Unexpected errors say
nothing of themselves to the caller; their trace goes to the log.
Must not know: routes and services.
"""

from __future__ import annotations

import errno
import http
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.core.db import DATABASE_LOST
from sdxl_contract.errors import ContractError, InvalidRequest
from sdxl_contract.request import explain_validation

PROBLEM_JSON = "application/problem+json"
_DATABASE_RETRY_SECONDS = 2
_DISK_RETRY_SECONDS = 30
_STATUS_TITLES = {499: "Client Closed Request"}
_UNREADABLE = {
    "There was an error parsing the body": "cannot be read: it must be a JSON object in UTF-8"
}

log = logging.getLogger(__name__)


class ProblemCode(StrEnum):
    """`error_code` of what only the backend can find wrong; the contract's codes come on top."""

    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    FORBIDDEN = "FORBIDDEN"
    TOO_LARGE = "TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    RANGE_NOT_SATISFIABLE = "RANGE_NOT_SATISFIABLE"
    STORAGE_FAILED = "STORAGE_FAILED"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class BackendError(Exception):
    """An error with a message that the caller may read."""

    status = 500
    code = ProblemCode.INTERNAL_ERROR

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after  # seconds
        self.details: dict[str, Any] = dict(details or {})


class NotFound(BackendError):
    """There is no such thing, or it is another key's."""

    status = 404
    code = ProblemCode.NOT_FOUND


class Conflict(BackendError):
    """It does not go with what is there."""

    status = 409
    code = ProblemCode.CONFLICT


class Forbidden(BackendError):
    """Not allowed, whoever asks: a signed URL that expired, a page of another site."""

    status = 403
    code = ProblemCode.FORBIDDEN


class TooLarge(BackendError):
    """The request has more bytes than are taken."""

    status = 413
    code = ProblemCode.TOO_LARGE


class RangeNotSatisfiable(BackendError):
    """The part that was asked for cannot be had."""

    status = 416
    code = ProblemCode.RANGE_NOT_SATISFIABLE


class LimitReached(BackendError):
    """A limit is reached; at `free_at` it no longer is."""

    def __init__(self, message: str, *, free_at: datetime, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self.details = {"free_at": free_at.isoformat(timespec="seconds")}


class RateLimited(LimitReached):
    """Too many calls, or too many contents at the same time."""

    status = 429
    code = ProblemCode.RATE_LIMITED


class BudgetExhausted(LimitReached):
    """The day's money is spent."""

    status = 402
    code = ProblemCode.BUDGET_EXHAUSTED


class StorageFailed(BackendError):
    """The object store refused or has no space."""

    status = 507
    code = ProblemCode.STORAGE_FAILED


class Fault(NamedTuple):
    """What went wrong, before it takes the shape that the caller's dialect has for errors."""

    status: int
    code: str
    detail: str
    field: str | None = None
    details: Mapping[str, Any] | None = None
    retry_after: float | None = None  # seconds


Shape = Callable[[Fault], JSONResponse]


def as_problem(fault: Fault) -> JSONResponse:
    """`fault` as `application/problem+json`: the shape of the API's own paths."""
    status = fault.status
    try:
        title = http.HTTPStatus(status).phrase
    except ValueError:
        title = _STATUS_TITLES.get(status, "Error")
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": fault.detail,
        "error_code": fault.code,
    }
    if fault.field is not None:
        body["field"] = fault.field
    if fault.details:
        body["details"] = dict(fault.details)
    headers = retry_header(fault)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers, media_type=PROBLEM_JSON)


def retry_header(fault: Fault) -> dict[str, str]:
    """`Retry-After`, where the fault says when to come again."""
    if fault.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, round(fault.retry_after)))}


def fault_of(error: ContractError | BackendError) -> Fault:
    """An error that a caller may read, as a fault."""
    if isinstance(error, ContractError):
        field = (error.details or {}).get("field")
        field = field if isinstance(field, str) else None
    else:
        field = error.field
    return Fault(
        error.status, str(error.code), error.message, field, error.details, error.retry_after
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, says that there is no space."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__
    return False


def _allowed_methods(request: Request) -> list[str]:
    """What this path answers to: the framework names one route's methods, not all of them."""
    app: FastAPI = request.app
    paths = app.openapi()["paths"]
    here = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    matching = [here] if here in paths else [p for p in paths if compile_path(p)[0].match(here)]
    return sorted({method.upper() for path in matching for method in paths[path]})


def _says_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _plain(found: Mapping[str, Any]) -> str:
    """What is wrong, in words for callers rather than for who wrote the schema."""
    limits: Mapping[str, Any] = found.get("ctx") or {}
    unit = "characters" if isinstance(found.get("input"), str) else "items"
    for bound, words in (("max_length", "at most"), ("min_length", "at least")):
        if bound in limits:
            return f"must have {words} {limits[bound]} {unit}"
    message = str(found["msg"])
    if "Expected UploadFile" in message:
        return "must be a file: a form's part with a file name"
    return message.replace("Input should be", "must be", 1)


def install_error_handlers(app: FastAPI, shape: Shape = as_problem) -> None:
    """Answer every error of `app` in one shape."""

    def on_contract(_: Request, error: Exception) -> Response:
        assert isinstance(error, ContractError)
        return shape(fault_of(error))

    def on_backend(request: Request, error: Exception) -> Response:
        assert isinstance(error, BackendError)
        if isinstance(error, LimitReached):
            request.app.state.metrics.refused.labels(error.code.value).inc()
        return shape(fault_of(error))

    def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [dict(item) for item in error.errors()]
        if found[0]["loc"][0] == "path":
            return shape(Fault(404, ProblemCode.NOT_FOUND, "There is nothing with this id."))
        if found[0]["loc"] == ("body",) and not _says_json(request):
            return shape(
                Fault(
                    415,
                    ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                    "The body must be JSON, and its header Content-Type: application/json.",
                    field="Content-Type",
                )
            )
        for item in found:
            place = tuple(item["loc"])
            item["loc"] = place[1:] if place[0] in ("query", "header") else place
            item["msg"] = _plain(item)
        return shape(fault_of(explain_validation(found)))

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400:  # the framework could not read the body
            if isinstance(error.__cause__, OSError):  # and that is the server's fault
                return on_os_error(request, error.__cause__)
            reason = _UNREADABLE.get(str(error.detail), str(error.detail))
            error = InvalidRequest(f"request: {reason}", details={"field": "request"})
            return shape(fault_of(error))
        code = {
            401: "UNAUTHORIZED",
            403: ProblemCode.FORBIDDEN,
            404: ProblemCode.NOT_FOUND,
            405: ProblemCode.METHOD_NOT_ALLOWED,
            413: ProblemCode.TOO_LARGE,
        }.get(error.status_code, "INVALID_REQUEST")
        detail = str(error.detail)
        if error.status_code == 404 and detail == "Not Found":
            detail = "There is nothing here: a wrong path, or an id that is none."
        answer = shape(Fault(error.status_code, code, detail))
        answer.headers.update(error.headers or {})
        if error.status_code == 405 and (methods := _allowed_methods(request)):
            answer.headers["Allow"] = ", ".join(methods)
        return answer

    def on_database(_: Request, error: Exception) -> Response:
        log.error("the database does not answer: %s", type(error).__name__)
        return shape(
            Fault(
                503,
                ProblemCode.DATABASE_UNAVAILABLE,
                "The database does not answer at the moment. Please try again.",
                retry_after=_DATABASE_RETRY_SECONDS,
            )
        )

    def on_os_error(request: Request, error: Exception) -> Response:
        if is_disk_full(error):
            log.error("no space left on the server's disk or in its temporary folder")
            full = "There is no space left on the server's disk or in its temporary folder."
            again = _DISK_RETRY_SECONDS
            return shape(Fault(507, ProblemCode.STORAGE_FAILED, full, retry_after=again))
        return on_unexpected(request, error)

    def on_unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected error at %s", request.scope["path"], exc_info=error)
        hidden = "The server has a fault here; its log says what."
        return shape(Fault(500, ProblemCode.INTERNAL_ERROR, hidden))

    app.add_exception_handler(ContractError, on_contract)
    app.add_exception_handler(BackendError, on_backend)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    for lost in DATABASE_LOST:
        app.add_exception_handler(lost, on_database)
    app.add_exception_handler(OSError, on_os_error)
    app.add_exception_handler(Exception, on_unexpected)
