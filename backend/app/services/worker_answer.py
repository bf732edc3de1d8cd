"""Reading what came back from a worker's URL: the worker's own answer, or somebody else's.

Duty: map every foreign failure to the contract's errors once, and believe no image unseen.
Must not know: retries, connections.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import warnings

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from sdxl_contract.errors import (
    ERRORS,
    ContractError,
    ErrorBody,
    GenerationFailed,
    ModelLoadFailed,
    Overloaded,
    RequestTimeout,
    Unauthorized,
    from_body,
)
from sdxl_contract.request import GenerateRequest, OutputFormat
from sdxl_contract.result import GenerateResult

_SIGNATURES = {
    OutputFormat.PNG: b"\x89PNG\r\n\x1a\n",
    OutputFormat.JPEG: b"\xff\xd8\xff",
    OutputFormat.WEBP: b"RIFF",
}
_MODAL = b"modal-http:"


def error_from_answer(status: int, body: bytes, retry_after_header: str | None) -> ContractError:
    """The contract's error for an answer that is no result.

    Knows the worker's error body, Modal's own bodies (they begin with `modal-http:`), the
    statuses of Modal's proxy, and anything else that an intermediary may say.
    """
    retry_after = _seconds(retry_after_header)
    text = body[:500].decode(errors="replace").lower()
    if body.startswith(_MODAL):
        return _modal_error(status, text, retry_after)
    try:
        known = ErrorBody.model_validate_json(body)
    except ValidationError:
        known = None
    if known is not None and known.error_code in ERRORS:
        error = from_body(known, status=status)
        error.retry_after = error.retry_after if error.retry_after is not None else retry_after
        return error
    if status == 401:
        return Unauthorized(
            "the worker's URL refused the credentials: check MODAL_API_TOKEN, MODAL_PROXY_KEY "
            "and MODAL_PROXY_SECRET"
        )
    if status == 429:
        return Overloaded("the worker takes no more requests now", retry_after=retry_after)
    if status in (408, 502, 503) or status >= 500:
        return GenerationFailed(
            f"the worker's URL answered {status} without the worker's own words",
            details={"reason": "bad_answer", "http_status": status},
            retry_after=retry_after,
        )
    return GenerationFailed(
        f"the worker's URL answered {status} with something that is not a worker's answer: "
        "check MODAL_ENDPOINT_URL",
        details={"reason": "not_json", "http_status": status},
    )


def _modal_error(status: int, text: str, retry_after: float | None) -> ContractError:
    if "disabled" in text:
        return ModelLoadFailed(
            "Modal says that the workspace is disabled: look at its billing page",
            details={"reason": "modal_disabled"},
        )
    if status == 404:
        # Also seen while a crashed container starts again, so it is worth one more look.
        crashed = "crash" in text or "restart" in text
        return ModelLoadFailed(
            "Modal does not know the worker: deploy it, or check MODAL_ENDPOINT_URL",
            details={"reason": "modal_restarting" if crashed else "modal_not_deployed"},
            retry_after=retry_after,
        )
    if status == 429:
        return Overloaded("Modal takes no more requests now", retry_after=retry_after)
    if "timed out" in text or status == 408:
        return RequestTimeout(
            "Modal ended the worker's function: it took too long",
            details={"reason": "modal_function_ended"},
        )
    return GenerationFailed(
        f"Modal ended the request with status {status}",
        details={"reason": "modal_function_ended", "http_status": status},
        retry_after=retry_after,
    )


def _seconds(header: str | None) -> float | None:
    try:
        value = float(header) if header else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 3600 else None


def read_result(body: bytes) -> GenerateResult:
    """The worker's 200 answer.

    Raises:
        GenerationFailed: it is not one; `details["reason"]` is `not_json` for something that is
            no JSON at all (a wrong URL), `bad_answer` for a damaged answer.
    """
    stripped = body.lstrip()[:1]
    if stripped != b"{":
        raise GenerationFailed(
            "the worker's URL answered with something that is not JSON: check MODAL_ENDPOINT_URL",
            details={"reason": "not_json"},
        )
    try:
        return GenerateResult.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise GenerationFailed(
            "the worker's answer is damaged or lacks a field", details={"reason": "bad_answer"}
        ) from error


def decode_images(result: GenerateResult, request: GenerateRequest) -> list[bytes]:
    """Every image of `result`, decoded and looked at.

    Raises:
        GenerationFailed: an image is missing, no image of the promised format and size, damaged,
            or not the one its hash promises.
    """
    texts: list[tuple[str | None, str | None]] = [
        (image.image_base64, image.image_sha256) for image in result.images
    ]
    if not texts:
        texts = [(result.image_base64, result.image_sha256)]
    if len(texts) != request.num_images:
        raise _bad_image(f"{request.num_images} images were asked for and {len(texts)} came")
    return [_checked(text, digest, result, request) for text, digest in texts]


def _checked(
    text: str | None, digest: str | None, result: GenerateResult, request: GenerateRequest
) -> bytes:
    if text is None:
        raise _bad_image("the answer holds no image")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_image("the image is not base64") from error
    kind = request.output_format
    if not data.startswith(_SIGNATURES[kind]):
        raise _bad_image(f"the image is no {kind.value.upper()}")
    try:
        # Two passes: `verify` checks PNG's checksums, `load` that every row can be decoded.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data)).verify()
            image = Image.open(io.BytesIO(data))
            image.load()
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise _bad_image(f"the {kind.value.upper()} is damaged") from error
    width, height = image.size
    if (width, height) != tuple(result.image_size):
        raise _bad_image(f"the image is {width}x{height}, not the size that the answer says")
    if (request.width or width, request.height or height) != (width, height):
        raise _bad_image(
            f"the image is {width}x{height}, but {request.width}x{request.height} was asked for"
        )
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise _bad_image("the image is not the one that its SHA-256 promises")
    return data


def _bad_image(what: str) -> GenerationFailed:
    return GenerationFailed(
        f"the worker sent an image that cannot be used: {what}", details={"reason": "bad_image"}
    )
