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
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError

from app.services.thumbnails import shrink
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
from sdxl_contract.limits import SEED_MAX
from sdxl_contract.pictures import Area
from sdxl_contract.redaction import redact_for_people
from sdxl_contract.request import GenerateRequest, OutputFormat
from sdxl_contract.result import GenerateResult, Health, WorkerEvent

_SIGNATURES = {
    OutputFormat.PNG: b"\x89PNG\r\n\x1a\n",
    OutputFormat.JPEG: b"\xff\xd8\xff",
    OutputFormat.WEBP: b"RIFF",
}
_MODAL = b"modal-http:"
# A gateway says that it got no answer: what it had asked may still be at work on it.
_GATEWAY_STATUSES = frozenset({502, 504, 520, 524, 598, 599})
_REDIRECTS = frozenset({301, 302, 307, 308})
# Of a Retry-After: longer ones say no more than that it is not worth waiting for.
_RETRY_AFTER_MAX_S = 3600.0
# 4096 x 4096: what a picture may unfold to in memory where no size was asked for.
_MAX_PIXELS = 2**24
# Reasons with which an edge answers for itself, not for the run that it was asked about.
_SAYS_NOTHING = frozenset({"bad_answer", "modal_restarting", "modal_no_request", "modal_unclear"})
_ERROR_BODY_MAX_BYTES = 2**16  # a result has a picture in it, and is not read twice
_MAX_TEXT_CHARS = 4000  # of any text that a worker sends, pictures aside
_EVENT = TypeAdapter[WorkerEvent](WorkerEvent)
_EVENT_TYPES = frozenset({"queued", "progress", "preview", "result", "error"})


def error_from_answer(status: int, body: bytes, retry_after_header: str | None) -> ContractError:
    """The contract's error for an answer that is no result.

    Knows the worker's error body, Modal's own bodies (they begin with `modal-http:`), the
    statuses of Modal's proxy, and anything else that an intermediary may say.
    """
    retry_after = _seconds(retry_after_header)
    text = body[:500].decode(errors="replace").lower()
    if body.startswith(_MODAL):
        return _modal_error(status, text, retry_after)
    known = _own_words(body)
    if known is not None:
        error = from_body(known, status=status)
        error.retry_after = error.retry_after if error.retry_after is not None else retry_after
        return error
    if status == 401:
        return _unauthorized()
    if status == 429:
        return Overloaded("the worker takes no more requests now", retry_after=retry_after)
    if status in (408, 502, 503) or status >= 500:
        return GenerationFailed(
            f"the worker's URL answered {status} without the worker's own words",
            details={"reason": "bad_answer", "http_status": status},
            retry_after=retry_after,
        )
    if status in _REDIRECTS:
        return GenerationFailed(
            f"the worker's URL redirects (status {status}): set MODAL_ENDPOINT_URL to the address "
            "that it leads to, with https",
            details={"reason": "redirect", "http_status": status},
        )
    return GenerationFailed(
        f"the worker's URL answered {status} with something that is not a worker's answer: "
        "check MODAL_ENDPOINT_URL",
        details={"reason": "not_json", "http_status": status},
    )


def _own_words(body: bytes) -> ErrorBody | None:
    """The worker's own error, if `body` is one."""
    try:
        known = ErrorBody.model_validate_json(body)
    except ValidationError:
        return None
    return known if known.error_code in ERRORS else None


def leaves_run_open(status: int, body: bytes, *, first: bool) -> bool:
    """Whether an answer that is no result leaves open if the request is still being drawn.

    Args:
        first: it answers the request itself; else the question for a result that is on its way,
            to which an edge that is busy or restarting says nothing of the run.
    """
    if _own_words(body) is not None:
        return False
    error = error_from_answer(status, body, None)
    reason = (error.details or {}).get("reason")
    if first:
        return reason == "modal_unclear" or (reason == "bad_answer" and status in _GATEWAY_STATUSES)
    return isinstance(error, Overloaded) or reason in _SAYS_NOTHING


def redact_error(error: ContractError, known: Iterable[str] = ()) -> None:
    """Take secrets, signed URLs and paths out of a foreign error, `known` secrets included."""
    error.message = redact_for_people(error.message[:_MAX_TEXT_CHARS], known)
    error.args = (error.message,)
    if error.details is not None:
        error.details = _redacted(error.details, known)


def _redacted(value: Any, known: Iterable[str]) -> Any:
    """Foreign JSON without secrets; pictures stay as they are."""
    if isinstance(value, str):
        return redact_for_people(value[:_MAX_TEXT_CHARS], known)
    if isinstance(value, dict):
        return {
            redact_for_people(str(key), known): (
                item if key == "image_base64" else _redacted(item, known)
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(item, known) for item in value]
    return value


def _modal_error(status: int, text: str, retry_after: float | None) -> ContractError:
    if "disabled" in text:
        return ModelLoadFailed(
            "Modal says that the workspace is disabled: look at its billing page",
            details={"reason": "modal_disabled"},
        )
    if status == 401:
        return _unauthorized()
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
    if status == 408 and "timed out" not in text:
        return GenerationFailed(
            "Modal lost the request on its way to the worker",
            details={"reason": "modal_no_request"},
            retry_after=retry_after,
        )
    if "timed out" in text:
        return RequestTimeout(
            "Modal ended the worker's function: it took too long",
            details={"reason": "modal_function_ended"},
        )
    if 400 <= status < 500:
        return GenerationFailed(
            f"Modal refused the request with status {status}: check MODAL_ENDPOINT_URL",
            details={"reason": "modal_refused", "http_status": status},
        )
    ended = any(word in text for word in ("terminated", "signal", "crash", "exited"))
    return GenerationFailed(
        f"Modal ended the request with status {status}"
        if ended
        else f"Modal answered {status}, and not what became of the request",
        details={
            "reason": "modal_function_ended" if ended else "modal_unclear",
            "http_status": status,
        },
        retry_after=retry_after,
    )


def _unauthorized() -> Unauthorized:
    return Unauthorized(
        "the worker's URL refused the credentials: check MODAL_API_TOKEN, MODAL_PROXY_KEY and "
        "MODAL_PROXY_SECRET"
    )


def _seconds(header: str | None) -> float | None:
    """What a Retry-After says, which is a number of seconds or a date; None if it says nothing."""
    if not header:
        return None
    try:
        value = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        # A date without a zone is meant in UTC, as all of HTTP's are.
        value = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        value = max(value, 0.0)
    return min(value, _RETRY_AFTER_MAX_S) if value >= 0 else None


def read_result(body: bytes, known: Iterable[str] = ()) -> GenerateResult:
    """The worker's 200 answer, `known` secrets taken out of its texts.

    Raises:
        ContractError: it is the worker's word for a failure, whose status got lost on its way.
        GenerationFailed: it is not one; `details["reason"]` is `not_json` for something that is
            no JSON at all (a wrong URL), `bad_answer` for a damaged answer.
    """
    stripped = body.lstrip()[:1]
    if stripped != b"{":
        raise GenerationFailed(
            "the worker's URL answered with something that is not JSON: check MODAL_ENDPOINT_URL",
            details={"reason": "not_json"},
        )
    failure = _own_words(body) if len(body) <= _ERROR_BODY_MAX_BYTES else None
    if failure is not None:
        raise from_body(failure)
    try:
        return _trusted(GenerateResult.model_validate(_redacted(json.loads(body), known)))
    except (ValueError, RecursionError) as error:
        raise _damaged() from error


def read_event(data: str, known: Iterable[str] = ()) -> WorkerEvent | None:
    """One event of the worker's stream; None for a kind that this version does not know.

    Raises:
        GenerationFailed: a kind that it knows, but damaged.
    """
    try:
        event = json.loads(data)
        if not isinstance(event, dict) or event.get("type") not in _EVENT_TYPES:
            return None
        read = _EVENT.validate_python(_redacted(event, known))
        if read.type == "result":
            _trusted(read.result)
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged() from error
    return read


def read_health(body: bytes, known: Iterable[str] = ()) -> Health:
    """The worker's answer to `GET /health`.

    Raises:
        ValueError: it is not one.
    """
    try:
        return Health.model_validate(_redacted(json.loads(body), known))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _damaged() -> GenerationFailed:
    return GenerationFailed(
        "the worker's answer is damaged or lacks a field", details={"reason": "bad_answer"}
    )


def _trusted(result: GenerateResult) -> GenerateResult:
    """`result`, if a database can hold it.

    Raises:
        ValueError: a number is not finite or no seed, or a text holds what no text may.
    """
    _check_plain(
        result.model_dump(exclude={"image_base64": True, "images": {"__all__": {"image_base64"}}})
    )
    seeds = [result.metadata.seed_used, *result.metadata.seeds]
    seeds += [image.seed for image in result.images]
    if not all(0 <= seed <= SEED_MAX for seed in seeds):
        raise ValueError("no seed")
    return result


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif isinstance(value, str):
        value.encode()  # half a surrogate pair raises UnicodeEncodeError, a ValueError
        if "\x00" in value:
            raise ValueError("a NUL in a text")
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 2**63):
        raise ValueError("not a finite number")


class DecodedImage(NamedTuple):
    """A picture that was looked at: its file, and its small copy's pixels, if it is to have one.

    To decode a picture of 1024 px takes longer than all else that is done to it.
    """

    file: bytes
    shrunk: Image.Image | None


def decode_images(result: GenerateResult, request: GenerateRequest) -> list[DecodedImage]:
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
) -> DecodedImage:
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
        image = Image.open(io.BytesIO(data), formats=[kind.value.upper()])
        check_size(image.size, result, request)  # before anything is unpacked
        # Two passes: `verify` checks PNG's checksums, `load` that every row can be decoded.
        image.verify()
        with Image.open(io.BytesIO(data), formats=[kind.value.upper()]) as decoded:
            decoded.load()
            shrunk = shrink(decoded)
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        OverflowError,
        Image.DecompressionBombError,
    ) as error:
        raise _bad_image(f"the {kind.value.upper()} is damaged") from error
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise _bad_image("the image is not the one that its SHA-256 promises")
    return DecodedImage(data, shrunk)


def check_size(size: tuple[int, int], result: GenerateResult, request: GenerateRequest) -> None:
    """Hold a picture's size against what the answer says and the request asks.

    Raises:
        GenerationFailed: it is another.
    """
    width, height = size
    if size != tuple(result.image_size):
        raise _bad_image(f"the image is {width}x{height}, not the size that the answer says")
    # The source's own sides, whatever they are; or those of a second pass, rounded by the worker.
    is_open = request.area is Area.MASKED or request.hires is not None
    if not is_open and (request.width or width, request.height or height) != size:
        raise _bad_image(
            f"the image is {width}x{height}, but {request.width}x{request.height} was asked for"
        )
    if request.hires is not None and not all(
        asked is None or asked < got <= asked * request.hires.scale + 1
        for asked, got in zip((request.width, request.height), size, strict=True)
    ):
        raise _bad_image(f"the image is {width}x{height}, which is not what the second pass makes")
    if (is_open or None in (request.width, request.height)) and width * height > _MAX_PIXELS:
        raise _bad_image(f"the image is {width}x{height}: too large")


def _bad_image(what: str) -> GenerationFailed:
    return GenerationFailed(
        f"the worker sent an image that cannot be used: {what}", details={"reason": "bad_image"}
    )
