"""What an attempt asks of the worker, and what the worker tells while it draws.

Must not know: how an attempt ends, and where pictures go.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.core.db import DATABASE_LOST, Database
from app.core.errors import Conflict
from app.core.settings import Settings
from app.models import Content, GenerationRecord, Image
from app.models.base import utc_now
from app.repositories.events import EventRepository
from app.repositories.loras import LoraRepository
from app.services.contents.resolve import asked_of, is_part_of_its_source
from app.services.costs import QUEUE, CallClock
from app.services.inputs.embeddings import check_there
from app.services.inputs.likeness import as_hex
from app.services.inputs.using import embedding_field, find_picture, pictures_in, with_urls
from app.services.storage import Storage
from sdxl_contract.errors import ErrorCode, GenerationFailed
from sdxl_contract.limits import TIMEOUT_MAX_S
from sdxl_contract.request import GenerateRequest, LoraRef, explain_validation
from sdxl_contract.result import (
    GenerateResult,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    WorkerEvent,
)

# Progress is written at most this often: a picture of a moment needs none.
_PROGRESS_SECONDS = 0.5
_PREVIEW_MAX_CHARS = 200_000
_MESSAGE_MAX_CHARS = 2000
# Facts of a failure that a page can put into a sentence of its own.
_KEPT_DETAILS = frozenset(
    {"reason", "field", "width", "height", "http_status", "timeout_seconds", "maximum", "nearest"}
)


class JobFailed(Exception):
    """A reason of our own for a content's failure; the message is shown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def failure(code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Why a content failed, as its row holds it."""
    return {
        "code": str(code),
        "message": _storable(message)[:_MESSAGE_MAX_CHARS],
        "details": _facts(details),
    }


def _facts(details: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of an error's details is kept with the content: short, and nothing but what is known."""
    kept: dict[str, Any] = {}
    for name in _KEPT_DETAILS & set(details or {}):
        value = (details or {})[name]
        if isinstance(value, str):
            kept[name] = _storable(value)[:200]
        elif isinstance(value, bool | int) and abs(value) < 2**53:
            kept[name] = value
    return kept


def _storable(text: str) -> str:
    """A worker's text is not ours: PostgreSQL's JSON holds no NUL and no half surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


async def build_request(
    content: Content, database: Database, storage: Storage, settings: Settings
) -> GenerateRequest:
    """The worker's request; the URLs of its LoRAs, embeddings and pictures are signed now.

    What the caller left open is left out: the worker that draws decides it.

    Raises:
        JobFailed: a LoRA, an embedding or a picture was deleted.
        ContractError: it was accepted by another version, and is none that this one can ask for.
    """
    loras = await _lora_refs(content, database, storage, settings)
    urls = await _input_urls(content, database, storage, settings)
    try:
        return GenerateRequest(
            prompt=content.prompt,
            negative_prompt=content.negative_prompt,
            loras=loras,
            timeout=max(1, min(TIMEOUT_MAX_S, int(settings.modal_timeout_seconds))),
            request_id=str(content.id),
            **with_urls(asked_of(content), urls.__getitem__),
        )
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        raise explain_validation([dict(item) for item in found]) from None


async def _lora_refs(
    content: Content, database: Database, storage: Storage, settings: Settings
) -> list[LoraRef]:
    if not content.loras:
        return []
    ids = [uuid.UUID(wanted["lora_model_id"]) for wanted in content.loras]
    async with database.session() as session:
        found = await LoraRepository(session, content.owner).get_many(ids)
    refs = []
    for lora_id, wanted in zip(ids, content.loras, strict=True):
        lora = found.get(lora_id)
        if lora is None:
            raise JobFailed(
                ErrorCode.LORA_DOWNLOAD_FAILED, f"the LoRA {wanted['name']!r} was deleted"
            )
        refs.append(
            LoraRef(
                url=storage.sign_get(lora.object_key, settings.lora_url_seconds),
                scale=wanted["scale"],
                sha256=lora.sha256,
                name=wanted["name"],  # it is written into the file: a new name, another file
            )
        )
    return refs


async def _input_urls(
    content: Content, database: Database, storage: Storage, settings: Settings
) -> dict[str, str]:
    """A URL for each picture that the content is drawn from and each embedding, by field."""
    asked = asked_of(content)
    named = pictures_in(asked)
    if not named and not asked.get("embeddings"):
        return {}
    urls = {}
    async with database.session() as session:
        try:
            embeddings = await check_there(session, content.owner, asked)
        except Conflict as error:
            raise JobFailed(ErrorCode.LORA_DOWNLOAD_FAILED, error.message) from None
        for number, kept in enumerate(asked.get("embeddings") or ()):
            key = embeddings[uuid.UUID(kept["embedding_id"])].object_key
            urls[embedding_field(number)] = storage.sign_get(key, settings.lora_url_seconds)
        for field, kept in named.items():
            found = await find_picture(session, content.owner, uuid.UUID(kept["image_id"]))
            if found is None:
                raise JobFailed(
                    ErrorCode.IMAGE_DOWNLOAD_FAILED, f"the picture of its {field} was deleted"
                )
            urls[field] = storage.sign_get(found.object_key, settings.lora_url_seconds)
    return urls


def check_as_asked(content: Content, result: GenerateResult) -> None:
    """Hold the worker's answer against the request: no other seed, and no LoRA left out.

    Raises:
        GenerationFailed: it drew something else.
    """
    if result.metadata.seed_used != content.parameters["seed"]:
        raise GenerationFailed(
            "the worker drew with another seed than was asked for", details={"field": "seed"}
        )
    wanted = sorted(lora["sha256"] for lora in content.loras)
    # An answer of the first version has no list, only whether there was one at all.
    told = sorted(report.sha256 for report in result.loras)
    if told != wanted and (told or (wanted and not result.model_info.lora_applied)):
        raise GenerationFailed(
            "the worker drew with other LoRAs than were asked for", details={"field": "loras"}
        )


def parameters_used(content: Content, result: GenerateResult) -> dict[str, Any]:
    """Every value that the picture was drawn with, as the worker states it."""
    metadata = result.metadata
    width, height = metadata.first_size or result.image_size
    sides = {} if is_part_of_its_source(content.parameters) else {"width": width, "height": height}
    used = {
        **content.parameters,
        **sides,
        "steps": metadata.actual_steps,
        "cfg": metadata.actual_cfg,
        "seed": metadata.seed_used,
    }
    used.setdefault("output_format", "png")
    if metadata.scheduler is not None:
        used["scheduler"] = metadata.scheduler
    return used


def record_of(
    content: Content, result: GenerateResult, images: Sequence[Image], settings: Settings
) -> GenerationRecord | None:
    """What is kept of a content when it is gone; None where the operator keeps no records."""
    if settings.generation_log_days is None:
        return None
    return GenerationRecord(
        content_id=content.id,
        owner=content.owner,
        prompt=content.prompt if settings.generation_log_prompts else None,
        parameters=parameters_used(content, result),
        base_model=result.model_info.base_model,
        loras=[{"sha256": lora["sha256"], "scale": lora["scale"]} for lora in content.loras],
        images=[
            {
                "sha256": image.sha256,
                "file_sha256": image.file_sha256,
                "watermark": image.watermark,
                "likeness": None if image.likeness is None else as_hex(image.likeness),
                "seed": image.seed,
            }
            for image in images
        ],
        created_at=utc_now(),
    )


def progress_writer(
    content: Content, database: Database, clock: CallClock, stop: Callable[[uuid.UUID], None]
) -> Callable[[WorkerEvent], Awaitable[None]]:
    """Writes down what the worker tells, now and then; never fails the picture."""
    write_at: dict[str, float] = dict.fromkeys(
        ("progress", "preview"), time.monotonic() + _PROGRESS_SECONDS
    )

    async def write(event: WorkerEvent) -> None:
        clock.heard(_phase(event))
        data: dict[str, Any]
        if isinstance(event, ProgressEvent):
            data = event.model_dump(mode="json", exclude={"type"})
        elif isinstance(event, PreviewEvent) and len(event.image_base64) <= _PREVIEW_MAX_CHARS:
            data = {"image": f"data:image/jpeg;base64,{event.image_base64}", "step": event.step}
        else:
            return
        now = time.monotonic()
        if now < write_at[event.type]:
            return
        write_at[event.type] = now + _PROGRESS_SECONDS
        with contextlib.suppress(*DATABASE_LOST):
            async with database.direct() as connection:
                is_unwanted = await EventRepository(connection).add_passing(
                    content.id, content.attempt, event.type, data
                )
            if is_unwanted:
                stop(content.id)

    return write


def _phase(event: WorkerEvent) -> str | None:
    if isinstance(event, QueuedEvent):
        return QUEUE
    return event.phase.value if isinstance(event, ProgressEvent) else None
