"""What can go wrong, as exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SdxlError(Exception):
    """The parent of every error of this package."""


class ConnectionLost(SdxlError):
    """The server could not be reached, or broke off; what was asked may have been accepted."""


class ApiError(SdxlError):
    """The server refused: `status` is HTTP's, `code` its `error_code`, `field` the wrong field."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None) -> None:
        self.status = status
        self.code = str(problem.get("error_code", f"HTTP_{status}"))
        self.field = problem.get("field")
        self.detail = str(problem.get("detail", f"the server answered with status {status}"))
        self.details: Mapping[str, Any] = problem.get("details") or {}
        self.retry_after = retry_after  # seconds
        super().__init__(f"{self.detail} ({self.code})")


class Unauthorized(ApiError):
    """The API key is missing or not valid."""


class ContentFailed(SdxlError):
    """A content ended without pictures; `content` says why."""

    def __init__(self, content: Any) -> None:
        self.content = content
        error = content.error
        super().__init__(
            f"{error.message} ({error.code})" if error else f"the content is {content.status}"
        )
