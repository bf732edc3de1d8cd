"""From a dialect's call to an ended content: what all dialects share.

Must not know: any dialect's fields or shapes.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.api.deps import Caller, Rights, Services
from app.core.db import DATABASE_LOST
from app.core.errors import BackendError, Fault, NotFound, fault_of
from app.core.settings import Settings
from app.models import Content, Status
from app.schemas.common import storable
from app.schemas.content import GenerateIn, LoraUse
from app.services.contents.drafts import find_same
from sdxl_contract.errors import ERRORS, ContractError, ErrorCode, InvalidRequest
from sdxl_contract.request import explain_validation

WAIT_SECONDS = 600.0
Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request) -> dict[str, Any]:
    """The body's JSON object, whatever its Content-Type says; an empty body is an empty object.

    Raises:
        InvalidRequest: it is none.
    """
    body = await request.body()
    if not body.strip():
        return {}
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InvalidRequest(
            "request: must be a JSON object in UTF-8", details={"field": "request"}
        )
    return data


_ECHO_TEXT_CHARS = 20_000
_ECHO_DEPTH = 20


def echo_of(data: Mapping[str, Any], field: str) -> dict[str, Any]:
    """`data` as it is kept to be answered with; a file in it is shortened.

    Raises:
        InvalidRequest: the database cannot hold it.
    """

    def shortened(value: Any, depth: int) -> Any:
        if depth > _ECHO_DEPTH:
            raise ValueError("is nested too deeply")
        if isinstance(value, dict):
            return {storable(k): shortened(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [shortened(item, depth + 1) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must hold finite numbers")
        if isinstance(value, str):
            cut = value.startswith("data:") and len(value) > 100
            return storable(f"{value[:40]}…" if cut else value[:_ECHO_TEXT_CHARS])
        return value

    try:
        return {storable(key): shortened(value, 1) for key, value in data.items()}
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", details={"field": field}) from None


def own_base(request: Request, settings: Settings) -> str:
    """Where the caller reached this server: PUBLIC_BASE_URL, or else what the call says."""
    if settings.public_base_url:
        return settings.public_base_url
    return f"{request.url.scheme}://{request.url.netloc}"


def read_as(model: type[Model], data: Mapping[str, Any]) -> Model:
    """`data` as `model`.

    Raises:
        InvalidPrompt, InvalidRequest: a field is wrong; the message names it.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise explain_validation([dict(item) for item in found]) from None


async def served_models(services: Services) -> list[str]:
    """The base model's own name, then its aliases."""
    signature = await services.base_model.signature()
    own = [] if signature is None else [signature.name]
    return list(dict.fromkeys([*own, *services.settings.model_aliases]))


async def check_model(services: Services, model: str) -> None:
    """Refuse a model that is none of SDXL's: `model` is `owner/name`, perhaps with more behind.

    Raises:
        NotFound: it is one.
    """
    name = model.partition("/")[2]
    if "sdxl" in name.lower() or "stable-diffusion-xl" in name.lower():
        return
    served = await served_models(services)
    if name not in served and model not in served:
        raise NotFound(
            f"The model {model[:80]!r} is not served here: its name must hold sdxl, or be one of "
            f"{', '.join(served)}.",
            field="model",
        )


@contextlib.contextmanager
def fields_called(names: Mapping[str, str]) -> Iterator[None]:
    """Names a wrong field as the caller called it: our name → the caller's."""
    try:
        yield
    except (ContractError, BackendError) as error:
        fault = fault_of(error)
        theirs = names.get(fault.field or "")
        if theirs is None:
            raise
        message = error.message
        if message.startswith(str(fault.field)):
            message = theirs + message.removeprefix(str(fault.field))
        error.message = message
        if isinstance(error, BackendError):
            error.field = theirs
        else:
            error.details = {**(error.details or {}), "field": theirs}
        raise


def with_loras(asked: GenerateIn, wished: Sequence[LoraUse]) -> GenerateIn:
    """`asked` with more LoRAs.

    Raises:
        InvalidRequest: there are too many.
    """
    if not wished:
        return asked
    values = asked.model_dump(exclude_unset=True, mode="json")
    values["loras"] = [
        use.model_dump(exclude_none=True, mode="json") for use in (*wished, *asked.loras)
    ]
    return read_as(GenerateIn, values)


async def submit(
    services: Services,
    caller: Caller,
    asked: GenerateIn,
    *,
    mark: str | None = None,
    joins: bool = False,
) -> tuple[Content, bool]:
    """The content of `asked`, and whether it is new.

    Args:
        mark: by which the caller's contents of this dialect are found again.
        joins: the call repeats one whose answer was lost: where the same is open or has just
            ended, it is that.
    """
    if joins:
        same = await find_same(services.database, caller.owner, asked)
        if same is not None:
            return same, False
    key = None if mark is None else f"{mark}{uuid.uuid4().hex}"
    accepted = await services.contents.accept(caller.owner, asked, key, caller.allowance)
    return accepted.content, accepted.is_new


async def until_ended(rights: Rights, content: Content, seconds: float = WAIT_SECONDS) -> Content:
    """`content` as it is when it has ended, or when `seconds` are over.

    Raises:
        Unauthorized: the caller's rights ended before.
    """
    contents = rights.services.contents
    with contextlib.suppress(*DATABASE_LOST):
        await rights.until(contents.wait(content.id, seconds))
    return await contents.get(rights.caller.owner, content.id)


def failure_of(content: Content) -> Fault | None:
    """Why `content` has no pictures; None where it has them.

    Asking again would not help, or would draw it twice: the fault says nothing of a retry.
    """
    if content.status == Status.SUCCEEDED:
        return None
    where = f"content {content.id}"
    if not Status(content.status).is_final:
        return Fault(504, ErrorCode.TIMEOUT, f"It is still being drawn: {where}.")
    error = content.error or {}
    code = str(error.get("code", ErrorCode.GENERATION_FAILED))
    known = code in tuple(ErrorCode)
    status = ERRORS[ErrorCode(code)].default_status if known else 500
    return Fault(status, code, f"{error.get('message', 'It failed')} ({where})")


async def read_images(services: Services, content: Content) -> Sequence[bytes]:
    """The bytes of the content's pictures, in order."""
    if not content.images:
        raise NotFound("This content has no pictures.")
    return [await services.storage.get(image.object_key) for image in content.images]
