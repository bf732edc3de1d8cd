"""Accepting contents, reading them back, and waiting for their end.

Duty: everything of a content's life but the drawing. What is accepted has been held against the
base model's limits, and its row and its job are written in one transaction.
Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import Conflict, NotFound
from app.models import Avatar, Generation, LoraModel, Status
from app.models.base import utc_now
from app.repositories.avatars import AvatarRepository
from app.repositories.generations import GenerationRepository, JobRepository
from app.repositories.loras import LoraRepository
from app.schemas.content import GenerateIn
from app.services.base_model import BaseModel
from app.services.inference import Inference
from app.services.jobs import JobQueue
from app.services.storage import Storage
from sdxl_contract.errors import InvalidPrompt, InvalidRequest
from sdxl_contract.limits import MAX_LORAS, SEED_MAX
from sdxl_contract.request import GenerateRequest, LoraRef, explain_validation

_LOOK_SECONDS = 1.0  # how often a waiter looks by itself, where another process may draw
_STOP_SECONDS = 0.2
# Stands for a URL that is signed only at dispatch, so that the contract's own checks apply.
_NO_URL = "https://unsigned.invalid/lora.safetensors"


class Accepted(NamedTuple):
    """A content, and whether this call made it (False: an earlier one with the same key did)."""

    generation: Generation
    is_new: bool


class Ends:
    """Who waits in this process for a content's end, and whether the server is stopping."""

    def __init__(self) -> None:
        self._events: dict[uuid.UUID, set[asyncio.Event]] = {}
        self.stopping = False

    def announce(self, content_id: uuid.UUID) -> None:
        """Wake who waits for `content_id`."""
        for event in self._events.get(content_id, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, content_id: uuid.UUID) -> Iterator[asyncio.Event]:
        """An event that is set when `content_id` ends in this process."""
        event = asyncio.Event()
        listeners = self._events.setdefault(content_id, set())
        listeners.add(event)
        try:
            yield event
        finally:
            listeners.discard(event)
            if not listeners:
                self._events.pop(content_id, None)


class GenerationService:
    """Contents."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        base_model: BaseModel,
        inference: Inference,
        ends: Ends,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEED_MAX + 1),
    ) -> None:
        self._database = database
        self._storage = storage
        self._base_model = base_model
        self._inference = inference
        self._ends = ends
        self._draw_seed = draw_seed
        self.queue: JobQueue | None = None  # set once both are there: the queue runs contents

    async def accept(
        self, owner: str, asked: GenerateIn, idempotency_key: str | None = None
    ) -> Accepted:
        """Hold `asked` against every limit, and put it in the queue.

        Raises:
            InvalidPrompt, InvalidRequest: a field is wrong; the message names it.
            NotFound: the avatar or a LoRA is not there.
            Conflict: `idempotency_key` was used for something else.
        """
        digest = hashlib.sha256(
            json.dumps(asked.model_dump(mode="json", exclude_unset=True), sort_keys=True).encode()
        ).hexdigest()
        if idempotency_key is not None:
            earlier = await self._earlier(owner, idempotency_key, digest)
            if earlier is not None:
                return Accepted(earlier, is_new=False)
        limits = await self._base_model.limits()
        try:
            async with self._database.session() as session:
                avatar = await _find_avatar(session, owner, asked.avatar_id)
                loras = await _find_loras(session, owner, asked, avatar)
                request = _as_request(asked, avatar, loras)
                request.check_limits(limits)
                width, height = request.size(limits)
                usual = await GenerationRepository(session, owner).usual_usd()
                generation = Generation(
                    id=uuid.uuid4(),
                    owner=owner,
                    status=Status.QUEUED,
                    attempt=0,
                    avatar_id=avatar.id if avatar else None,
                    prompt=request.prompt,
                    negative_prompt=request.negative_prompt,
                    parameters={
                        "width": width,
                        "height": height,
                        "steps": request.steps,
                        "cfg": request.cfg,
                        # Kept with the row, so that a second attempt draws the same picture.
                        "seed": self._draw_seed() if request.seed is None else request.seed,
                        "num_images": request.num_images,
                    },
                    loras=[
                        {
                            "lora_model_id": str(lora.id),
                            "name": lora.name,
                            "sha256": lora.sha256,
                            "scale": scale,
                        }
                        for lora, scale in loras
                    ],
                    idempotency_key=idempotency_key,
                    request_sha256=digest,
                    estimated_usd=None if usual is None else usual * request.num_images,
                    created_at=utc_now(),
                    pieces=[],
                )
                await GenerationRepository(session, owner).add(generation)
                assert self.queue is not None
                await self.queue.enqueue(session, generation.id)
        except IntegrityError:
            if idempotency_key is None:
                raise
            earlier = await self._earlier(owner, idempotency_key, digest)
            if earlier is None:
                raise
            return Accepted(earlier, is_new=False)
        return Accepted(generation, is_new=True)

    async def _earlier(self, owner: str, key: str, digest: str) -> Generation | None:
        async with self._database.session() as session:
            earlier = await GenerationRepository(session, owner).by_idempotency_key(key)
        if earlier is not None and earlier.request_sha256 != digest:
            raise Conflict(
                "This Idempotency-Key was used with another body.", field="Idempotency-Key"
            )
        return earlier

    async def wait(self, content_id: uuid.UUID, seconds: float) -> None:
        """Return when the content has ended, is gone, `seconds` are over or the server stops."""
        deadline = time.monotonic() + seconds
        look_at = 0.0
        with self._ends.listening(content_id) as event:
            while not self._ends.stopping:
                now = time.monotonic()
                if event.is_set() or now >= look_at:
                    async with self._database.session() as session:
                        status = await JobRepository(session).status(content_id)
                    if status is None or Status(status).is_final:
                        return
                    event.clear()
                    look_at = now + _LOOK_SECONDS
                if now >= deadline:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(_STOP_SECONDS, deadline - now))

    async def get(self, owner: str, content_id: uuid.UUID) -> Generation:
        """One content with its pictures.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            generation = await GenerationRepository(session, owner).get(content_id)
        if generation is None:
            raise NotFound("There is no content with this id.")
        return generation

    async def page(
        self,
        owner: str,
        *,
        limit: int,
        cursor: str | None,
        avatar_id: uuid.UUID | None,
        status: Status | None,
    ) -> tuple[list[Generation], str | None]:
        """Newest first, and the cursor of the next page."""
        after = None if cursor is None else _read_cursor(cursor)
        async with self._database.session() as session:
            rows = await GenerationRepository(session, owner).page(
                limit=limit + 1, after=after, avatar_id=avatar_id, status=status
            )
        page = list(rows[:limit])
        return page, _write_cursor(page[-1]) if len(rows) > limit else None

    async def delete(self, owner: str, content_id: uuid.UUID) -> None:
        """Remove a content and its pictures; one that is being drawn is stopped.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            found = await GenerationRepository(session, owner).delete(content_id)
        if found is None:
            raise NotFound("There is no content with this id.")
        status, keys = found
        if status == Status.RUNNING:
            # Whether it stops or not, its attempt finds no row and removes what it stored.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await self._inference.cancel(str(content_id))
        self._ends.announce(content_id)
        for key in keys:
            await self._storage.delete(key)


async def _find_avatar(
    session: AsyncSession, owner: str, avatar_id: uuid.UUID | None
) -> Avatar | None:
    if avatar_id is None:
        return None
    avatar = await AvatarRepository(session, owner).get(avatar_id)
    if avatar is None:
        raise NotFound("There is no avatar with this id.", field="avatar_id")
    return avatar


async def _find_loras(
    session: AsyncSession, owner: str, asked: GenerateIn, avatar: Avatar | None
) -> list[tuple[LoraModel, float]]:
    """The avatar's LoRA first, then the caller's; of the same one twice the caller's scale."""
    scales: dict[uuid.UUID, float] = {}
    if avatar is not None and avatar.lora_model_id is not None:
        scales[avatar.lora_model_id] = avatar.lora_scale
    for position, use in enumerate(asked.loras):
        if any(use.lora_model_id == other.lora_model_id for other in asked.loras[:position]):
            raise InvalidRequest(
                f"loras[{position}].lora_model_id: this LoRA is named twice",
                details={"field": f"loras[{position}].lora_model_id"},
            )
        scales[use.lora_model_id] = use.scale
    found = await LoraRepository(session, owner).get_many(scales) if scales else {}
    for position, use in enumerate(asked.loras):
        if use.lora_model_id not in found:
            raise NotFound(
                "There is no LoRA with this id.", field=f"loras[{position}].lora_model_id"
            )
    if len(scales) > MAX_LORAS:
        raise InvalidRequest(
            f"loras: with the avatar's there are {len(scales)}: at most {MAX_LORAS}",
            details={"field": "loras", "maximum": MAX_LORAS},
        )
    return [(found[lora_id], scale) for lora_id, scale in scales.items()]


def _as_request(
    asked: GenerateIn, avatar: Avatar | None, loras: list[tuple[LoraModel, float]]
) -> GenerateRequest:
    """What the worker will be asked, as far as it is known now; ranges are checked here."""
    try:
        return GenerateRequest(
            prompt=_join(avatar.base_prompt if avatar else "", _prompt(asked, avatar)),
            negative_prompt=_join(avatar.negative_prompt if avatar else "", asked.negative_prompt),
            width=asked.width,
            height=asked.height,
            steps=asked.steps,
            cfg=asked.cfg,
            seed=asked.seed,
            num_images=asked.num_images,
            loras=[LoraRef(url=_NO_URL, scale=scale, sha256=lora.sha256) for lora, scale in loras],
        )
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        raise explain_validation([dict(item) for item in found]) from None


def _prompt(asked: GenerateIn, avatar: Avatar | None) -> str:
    field = "prompt"
    prompt = asked.prompt
    if asked.custom_prompt is not None:
        if prompt is not None and prompt != asked.custom_prompt:
            raise InvalidRequest(
                "custom_prompt: send either prompt or custom_prompt",
                details={"field": "custom_prompt"},
            )
        field, prompt = "custom_prompt", asked.custom_prompt
    if prompt is None and avatar is not None:
        return ""
    if prompt is None or not prompt.strip():
        raise InvalidPrompt(
            f"{field} is blank: say what the picture shows", details={"field": field}
        )
    return prompt


def _join(first: str, second: str) -> str:
    return ", ".join(part.strip() for part in (first, second) if part.strip())


def _write_cursor(last: Generation) -> str:
    text = f"{last.created_at.isoformat()}|{last.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, uuid.UUID]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, content_id = text.partition("|")
        created = datetime.fromisoformat(moment)
        if created.tzinfo is None:
            raise ValueError("no zone")
        return created, uuid.UUID(content_id)
    except ValueError:
        raise InvalidRequest(
            "cursor: is not one that this server gave", details={"field": "cursor"}
        ) from None
