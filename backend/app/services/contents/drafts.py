"""A request held against every limit, on its way to becoming contents.

Must not know: HTTP, and how contents are kept.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.core.db import Database
from app.core.errors import NotFound
from app.models import Content, LoraModel, Status
from app.models.base import utc_now
from app.repositories.contents import ContentRepository, ContentStatements, Usual
from app.schemas.batches import BatchIn
from app.schemas.content import GenerateIn
from app.schemas.grid import Cell, Grid
from app.services.contents.resolve import (
    as_request,
    check_limits,
    find_avatar,
    find_loras,
    given,
)
from app.services.inputs.embeddings import find_embeddings
from app.services.inputs.using import find_pictures
from app.services.inputs.words import may_vary, with_words, written_words
from app.services.worker.base_model import BaseModel
from sdxl_contract.errors import ContractError, InvalidRequest
from sdxl_contract.limits import SEED_MAX
from sdxl_contract.request import GenerateRequest, explain_validation


def digest_of(asked: GenerateIn | BatchIn) -> str:
    """By which the same body is recognised when it comes again."""
    text = json.dumps(asked.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Member(NamedTuple):
    """A part of a batch: what it asks, how often, and by what name the request knows its fields."""

    asked: GenerateIn
    copies: int
    name_of: Callable[[str], str]

    def named(self, error: ContractError | NotFound) -> ContractError | NotFound:
        """`error` by the batch's own name of the field that it is about."""
        if isinstance(error, NotFound):
            error.field = error.field and self.name_of(error.field)
            return error
        details = error.details or {}
        own = str(details.get("field", "" if isinstance(error, InvalidRequest) else "prompt"))
        field = self.name_of(own)
        if field == own:
            return error
        message = error.message.removeprefix(f"{own}: ")
        return type(error)(f"{field}: {message}", details={**details, "field": field})


def members_of(asked: BatchIn, draw_seed: Callable[[], int]) -> Iterator[Member]:
    """A batch's prompts, or a grid's cells. What is on no axis is the same in every cell."""
    common = asked.model_dump(exclude={"prompts", "count", "grid"}, exclude_unset=True)
    if asked.grid is None:
        for number, prompt in enumerate(asked.prompts):
            one = GenerateIn(prompt=prompt, **common)
            name_of = partial(_in_batch, number)
            if not may_vary(one):
                yield Member(one, asked.count, name_of)
                continue
            # Words that a seed may draw: each copy has its own seed before it has its words.
            for copy in range(asked.count):
                seed = draw_seed()
                if asked.seed is not None:
                    seed = (asked.seed + number * asked.count + copy) % (SEED_MAX + 1)
                yield Member(one.model_copy(update={"seed": seed}), 1, name_of)
        return
    common.setdefault("seed", draw_seed())
    first = asked.prompts[0] if asked.prompts else None
    try:
        for cell in asked.grid.cells(GenerateIn(prompt=first, **common)):
            yield Member(cell.asked, 1, partial(_in_grid, asked.grid, cell))
    except ValidationError as error:
        raise explain_validation([dict(item) for item in error.errors()]) from None


def _in_batch(number: int, field: str) -> str:
    return f"prompts[{number}]" if field == "prompt" else field


def _in_grid(grid: Grid, cell: Cell, field: str) -> str:
    return grid.field_of(cell, field) or _in_batch(0, field)


@dataclass(frozen=True)
class Draft:
    """A request that was held against every limit, ready to become contents."""

    owner: str
    avatar_id: uuid.UUID | None
    request: GenerateRequest
    given: dict[str, Any]
    deadline_s: float
    loras: list[tuple[LoraModel, float]]
    draw_seed: Callable[[], int]
    estimated_usd: float | None
    watermark: str | None = None
    written: dict[str, Any] | None = None

    def content(self, seed: int | None, digest: str, idempotency_key: str | None) -> Content:
        """A new content. Its seed is kept with it, so that each attempt draws the same picture."""
        request = self.request
        chosen = request.seed if seed is None else seed
        now = utc_now()
        asked = {
            **self.given,
            "seed": self.draw_seed() if chosen is None else chosen,
            "num_images": request.num_images,
        }
        return Content.transient(
            id=uuid.uuid4(),
            owner=self.owner,
            status=Status.QUEUED,
            attempt=0,
            releases=0,
            avatar_id=self.avatar_id,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            written=self.written,
            parameters=asked,
            asked=asked,
            deadline_at=now + timedelta(seconds=self.deadline_s),
            loras=[
                {
                    "lora_model_id": str(lora.id),
                    "name": lora.name,
                    "sha256": lora.sha256,
                    "scale": scale,
                }
                for lora, scale in self.loras
            ],
            watermark=self.watermark,
            idempotency_key=idempotency_key,
            request_sha256=digest,
            estimated_usd=self.estimated_usd,
            created_at=now,
            images=[],
        )


async def draft_content(
    database: Database,
    owner: str,
    asked: GenerateIn,
    base_model: BaseModel,
    deadline_s: float,
    draw_seed: Callable[[], int],
) -> Draft:
    """Resolve `asked` and hold it against what the worker was seen to allow.

    `deadline_s`: for those that name none.

    Raises:
        InvalidPrompt, InvalidRequest: a field is wrong; the message names it.
        NotFound: the avatar, a LoRA or an embedding is not there.
    """
    async with database.reading() as session:
        as_written = asked
        asked = await with_words(session, owner, asked, draw_seed)
        avatar = await find_avatar(session, owner, asked.avatar_id)
        loras = await find_loras(session, owner, asked, avatar)
        embeddings = await find_embeddings(session, owner, asked, avatar)
    pictures: dict[str, Any] = {}
    if asked.names_pictures:
        async with database.session() as session:
            pictures = await find_pictures(session, owner, asked)
    parameters = {**given(asked, avatar), **pictures}
    if embeddings:
        parameters["embeddings"] = embeddings
    request = as_request(asked, avatar, loras, parameters)
    try:
        await check_limits(request, base_model)
    except InvalidRequest as error:
        details = error.details or {}
        if avatar is None or asked.scheduler is not None or details.get("field") != "scheduler":
            raise
        raise InvalidRequest(
            f"avatar_id: the sampler of the avatar {avatar.name!r}: {error.message}",
            details=details | {"field": "avatar_id"},
        ) from None
    async with database.direct() as connection:
        usual = await ContentStatements(connection, owner).usual()
    return Draft(
        owner=owner,
        avatar_id=avatar.id if avatar else None,
        request=request,
        given=parameters,
        deadline_s=asked.deadline_seconds or deadline_s,
        loras=loras,
        draw_seed=draw_seed,
        estimated_usd=estimate(request, usual),
        written=written_words(as_written, asked),
    )


def estimate(request: GenerateRequest, usual: Usual | None) -> float | None:
    """USD that `request` may cost where a picture of one pass is `usual`.

    What was left open is taken to be as usual.
    """
    if usual is None:
        return None
    if request.upscale is not None:
        return usual.usd  # no more than a picture, mostly
    usd = usual.usd * request.num_images * request.cost() / request.steps_to_draw()
    if usual.pixels and request.width and request.height:
        usd *= request.width * request.height / usual.pixels
    if usual.steps and "steps" in request.model_fields_set:
        usd *= request.steps_to_draw() / usual.steps
    return usd


# A client without an idempotency key repeats a call whose answer was lost.
_OPENED_WITHIN = timedelta(minutes=20)
# An answer may be lost just as the content ends; later, the same words are a new wish.
_ENDED_WITHIN = timedelta(seconds=60)


async def find_same(database: Database, owner: str, asked: GenerateIn) -> Content | None:
    """The owner's newest content of the same words that is open, or was drawn just now."""
    now = utc_now()
    async with database.snapshot() as session:
        return await ContentRepository(session, owner).same(
            digest_of(asked), opened_after=now - _OPENED_WITHIN, ended_after=now - _ENDED_WITHIN
        )
