"""`/v1/images/generations` and `/v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.api.deps import CallerDep, Rights, Services, ServicesDep
from app.core.errors import BackendError
from app.dialects.asking import (
    failure_of,
    fields_called,
    read_as,
    read_json,
    served_models,
    submit,
    until_ended,
)
from app.dialects.openai.answers import images_response, request_id, stream
from app.dialects.openai.errors import MODEL_NOT_FOUND, REQUEST_ID, as_openai
from app.dialects.openai.schemas import ImagesIn

OWNED_BY = "modal-sdxl-lora"
RETRY_COUNT = "x-stainless-retry-count"
FIELDS = {"num_images": "n", "width": "size", "height": "size"}
# A day without meaning: which moment a model's file was made is not known.
_CREATED = 1_690_000_000

router = APIRouter()


class ModelNotFound(BackendError):
    """A model's name that is not served here."""

    status = 404
    code = MODEL_NOT_FOUND  # type: ignore[assignment]


async def check_model(services: Services, model: str | None) -> None:
    """Refuse a model that is not served here.

    Raises:
        ModelNotFound: it is none.
    """
    if not model:
        return
    models = await served_models(services)
    # Before any worker was seen nobody knows what its model is called.
    is_known = services.base_model.known is not None
    if is_known and model not in models:
        raise ModelNotFound(
            f"The model {model[:80]!r} is not served here; served: {', '.join(models)}.",
            field="model",
        )


@router.post(
    "/images/generations",
    response_model=None,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ImagesIn.model_json_schema()}},
        }
    },
)
async def generate(request: Request, caller: CallerDep, services: ServicesDep) -> Response:
    """Draw, and answer with the pictures: all at once, or as a stream."""
    with fields_called(FIELDS):
        asked = read_as(ImagesIn, await read_json(request))
        await check_model(services, asked.model)
        retries = request.headers.get(RETRY_COUNT, "0")
        content, _ = await submit(services, caller, asked.as_asked(), joins=retries != "0")
    rights = Rights(request, services, caller)
    if asked.stream:
        return StreamingResponse(
            stream(rights, content, asked),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", REQUEST_ID: request_id(content)},
        )
    content = await until_ended(rights, content)
    failure = failure_of(content)
    if failure is not None:
        return as_openai(failure, retries=False)
    body = await images_response(services, content, asked)
    return JSONResponse(body, headers={REQUEST_ID: request_id(content)})


@router.options("/images/generations", status_code=204, include_in_schema=False)
async def ping() -> Response:
    """SillyTavern asks so whether anybody is there."""
    return Response(status_code=204, headers={"Allow": "OPTIONS, POST"})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": OWNED_BY}


@router.get("/models")
async def list_models(caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """The base model, and the names that clients have built in."""
    return {"object": "list", "data": [_model(name) for name in await served_models(services)]}


@router.get("/models/{model}")
async def read_model(model: str, caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """One of them."""
    if model not in await served_models(services):
        raise ModelNotFound(f"The model {model[:80]!r} is not served here.", field="model")
    return _model(model)
