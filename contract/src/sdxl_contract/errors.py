"""The one tree of errors that backend and worker share, with each code's HTTP status.

Duty: name what can go wrong, and turn it into the JSON body that crosses the wire.
Must not know: HTTP frameworks, torch, where a message is shown.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

# JSON that may stand in an error's `details`. Never a signed URL, a token or a server path.
Details = dict[str, Any]


class ErrorCode(StrEnum):
    """Machine-readable reason of a failure; the text of `error` is for people and may change."""

    INVALID_PROMPT = "INVALID_PROMPT"
    INVALID_REQUEST = "INVALID_REQUEST"
    UNAUTHORIZED = "UNAUTHORIZED"
    LORA_DOWNLOAD_FAILED = "LORA_DOWNLOAD_FAILED"
    LORA_LOAD_FAILED = "LORA_LOAD_FAILED"
    IMAGE_DOWNLOAD_FAILED = "IMAGE_DOWNLOAD_FAILED"
    IMAGE_LOAD_FAILED = "IMAGE_LOAD_FAILED"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    GENERATION_FAILED = "GENERATION_FAILED"
    TIMEOUT = "TIMEOUT"
    CUDA_OOM = "CUDA_OOM"
    OVERLOADED = "OVERLOADED"
    CANCELLED = "CANCELLED"
    CONTENT_REFUSED = "CONTENT_REFUSED"


class ErrorBody(BaseModel):
    """The JSON of every 4xx and 5xx answer of a worker."""

    model_config = ConfigDict(extra="ignore")

    error: str
    error_code: ErrorCode
    details: Details | None = None
    retry_after: float | None = Field(default=None, ge=0, description="seconds")


class ContractError(Exception):
    """A failure with a code of the contract.

    Args:
        message: one sentence for people; says which field is wrong and what would be right.
        details: JSON-ready facts. Never a signed URL, a token or a path of the server.
        retry_after: seconds after which a retry makes sense, if that is known.
        status: HTTP status where a code has more than one (`LORA_DOWNLOAD_FAILED`).
    """

    code: ClassVar[ErrorCode]
    default_status: ClassVar[int]

    def __init__(
        self,
        message: str,
        *,
        details: Details | None = None,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after = retry_after
        self.status = self.default_status if status is None else status

    def body(self) -> ErrorBody:
        """The answer's JSON body."""
        return ErrorBody(
            error=self.message,
            error_code=self.code,
            details=self.details,
            retry_after=self.retry_after,
        )


class InvalidPrompt(ContractError):
    """The prompt is blank, too long or forbidden."""

    code = ErrorCode.INVALID_PROMPT
    default_status = 400


class InvalidRequest(ContractError):
    """A field is missing, of the wrong type or out of range; `details["field"]` names it."""

    code = ErrorCode.INVALID_REQUEST
    default_status = 422


class Unauthorized(ContractError):
    """The bearer token is missing or wrong."""

    code = ErrorCode.UNAUTHORIZED
    default_status = 401


class LoraDownloadFailed(ContractError):
    """The LoRA's URL is bad (400) or its server failed (502, `status=502`).

    `details["reason"]` is one of: `expired`, `refused_address`, `refused_scheme`,
    `refused_host`, `unreachable`, `http_status`, `too_large`, `timeout`, `hash_mismatch`,
    `redirect`, `encoding`, `truncated`.
    """

    code = ErrorCode.LORA_DOWNLOAD_FAILED
    default_status = 400


class LoraLoadFailed(ContractError):
    """The file is not safetensors, not a LoRA for this base model, or does not fit it exactly."""

    code = ErrorCode.LORA_LOAD_FAILED
    default_status = 422


class ImageDownloadFailed(ContractError):
    """A source's or mask's URL is bad (400) or its server failed (502, `status=502`).

    `details["field"]` names it, `details["reason"]` is one of `LoraDownloadFailed`'s.
    """

    code = ErrorCode.IMAGE_DOWNLOAD_FAILED
    default_status = 400


class ImageLoadFailed(ContractError):
    """The file behind `details["field"]` is no picture that can be drawn from.

    `details["reason"]` is one of: `format`, `damaged`, `too_large`, `too_small`, `empty_mask`.
    """

    code = ErrorCode.IMAGE_LOAD_FAILED
    default_status = 422


class ModelLoadFailed(ContractError):
    """The base model is not loaded: still loading, failed, or found changed after a restore."""

    code = ErrorCode.MODEL_LOAD_FAILED
    default_status = 503


class GenerationFailed(ContractError):
    """Inference raised or made an image that is not finite."""

    code = ErrorCode.GENERATION_FAILED
    default_status = 500


class RequestTimeout(ContractError):
    """The request's own `timeout` ran out."""

    code = ErrorCode.TIMEOUT
    default_status = 504


class CudaOutOfMemory(ContractError):
    """The GPU's memory did not suffice; the message says which size to try."""

    code = ErrorCode.CUDA_OOM
    default_status = 507


class Overloaded(ContractError):
    """The waiting line is full; `retry_after` says when to come again."""

    code = ErrorCode.OVERLOADED
    default_status = 429


class Cancelled(ContractError):
    """The client went away or asked to stop."""

    code = ErrorCode.CANCELLED
    default_status = 499


class ContentRefused(ContractError):
    """The operator does not allow what the prompt asks for, or what the picture shows.

    `details["reason"]` is `prompt` (with `field`), `picture` (with the checker's `score`) or
    `taken_down`.
    """

    code = ErrorCode.CONTENT_REFUSED
    default_status = 422


ERRORS: dict[ErrorCode, type[ContractError]] = {
    cls.code: cls
    for cls in (
        InvalidPrompt,
        InvalidRequest,
        Unauthorized,
        LoraDownloadFailed,
        LoraLoadFailed,
        ImageDownloadFailed,
        ImageLoadFailed,
        ModelLoadFailed,
        GenerationFailed,
        RequestTimeout,
        CudaOutOfMemory,
        Overloaded,
        Cancelled,
        ContentRefused,
    )
}


def from_body(body: ErrorBody, status: int | None = None) -> ContractError:
    """The exception that `body` stands for; the inverse of `ContractError.body`."""
    cls = ERRORS[body.error_code]
    return cls(
        body.error,
        details=body.details,
        retry_after=body.retry_after,
        status=status,
    )
