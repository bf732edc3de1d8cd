"""Accepting contents, stopping and removing them.

Duty: everything that changes a content but the drawing. What is accepted has been held against what
the worker was seen to allow, and its row and its job are written in one transaction.
Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

import psycopg
from sqlalchemy.exc import IntegrityError

from app.core.db import Database, DriverConnection, driver_connection
from app.core.errors import Conflict, LimitReached, NotFound, StorageFailed
from app.core.tracing import span
from app.models import Batch, Content, Status
from app.models.base import utc_now
from app.repositories.access.limits import LimitRepository
from app.repositories.batches import BatchRepository
from app.repositories.contents import ContentRepository, ContentStatements
from app.repositories.events import EventRepository
from app.repositories.loras import LoraRepository
from app.schemas.batches import BatchIn
from app.schemas.content import GenerateIn
from app.services.contents.drafts import Draft, digest_of, draft_content, estimate, members_of
from app.services.contents.listener import Waiters
from app.services.contents.queue import JobQueue
from app.services.contents.reading import ContentReading
from app.services.contents.resolve import again_request, asked_again, asked_of, check_limits
from app.services.inputs.embeddings import check_there
from app.services.inputs.using import find_picture, pictures_in
from app.services.limits import UNLIMITED, Allowance, admit, admit_directly, day_start
from app.services.marking.forbidden_words import ForbiddenWords
from app.services.storage import Storage
from app.services.worker.base_model import BaseModel
from app.services.worker.inference import Inference
from sdxl_contract.errors import ContentRefused, InvalidPrompt, InvalidRequest
from sdxl_contract.limits import SEED_MAX

Beside = Callable[[DriverConnection, Content], Awaitable[None]]

log = logging.getLogger(__name__)


class Accepted(NamedTuple):
    """A content, and whether this call made it (False: an earlier one with the same key did)."""

    content: Content
    is_new: bool


class ContentService(ContentReading):
    """Contents, accepted and changed."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        base_model: BaseModel,
        inference: Inference,
        waiters: Waiters,
        deadline_s: float,
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEED_MAX + 1),
        forbidden: ForbiddenWords = ForbiddenWords(),  # noqa: B008  # it never changes
        watermark: str | None = None,
    ) -> None:
        super().__init__(database, waiters)
        self._storage = storage
        self._base_model = base_model
        self._inference = inference
        self._deadline_s = deadline_s
        self._draw_seed = draw_seed
        self._forbidden = forbidden
        self._watermark = watermark
        self.queue: JobQueue | None = None  # set once both are there: the queue runs contents

    async def accept(
        self,
        owner: str,
        asked: GenerateIn,
        idempotency_key: str | None = None,
        allowance: Allowance = UNLIMITED,
        beside: Beside | None = None,
        adjust: Callable[[Content], None] = lambda _: None,
    ) -> Accepted:
        """Hold `asked` against every limit, and put it in the queue.

        Args:
            beside: writes what belongs to a new content, in the same transaction.
            adjust: changes a new content before it is kept.

        Raises:
            InvalidPrompt, InvalidRequest: a field is wrong; the message names it.
            NotFound: the avatar or a LoRA is not there.
            Conflict: `idempotency_key` was used for something else.
            RateLimited, BudgetExhausted: `allowance` is used up.
        """
        with span("content.accept"):
            return await self._accept(owner, asked, idempotency_key, allowance, beside, adjust)

    async def _accept(
        self,
        owner: str,
        asked: GenerateIn,
        idempotency_key: str | None,
        allowance: Allowance,
        beside: Beside | None,
        adjust: Callable[[Content], None],
    ) -> Accepted:
        digest = digest_of(asked)
        if idempotency_key is not None:
            earlier = await self._earlier(owner, idempotency_key, digest)
            if earlier is not None:
                return Accepted(earlier, is_new=False)
        draft = await self._draft(owner, asked)
        content = draft.content(None, digest, idempotency_key)
        adjust(content)
        try:
            async with self._admitted(owner, allowance, 1, draft.estimated_usd) as connection:
                await self._add(connection, owner, content)
                if beside is not None:
                    await beside(connection, content)
        except (psycopg.IntegrityError, LimitReached):
            # The same call at the same time came first, and may have used the last place up.
            if idempotency_key is None:
                raise
            earlier = await self._earlier(owner, idempotency_key, digest)
            if earlier is None:
                raise
            return Accepted(earlier, is_new=False)
        return Accepted(content, is_new=True)

    async def _draft(self, owner: str, asked: GenerateIn) -> Draft:
        draft = await draft_content(
            self._database, owner, asked, self._base_model, self._deadline_s, self._draw_seed
        )
        self._forbidden.check_request(draft.request)
        return replace(draft, watermark=self._watermark)

    async def accept_batch(
        self,
        owner: str,
        asked: BatchIn,
        idempotency_key: str | None = None,
        allowance: Allowance = UNLIMITED,
    ) -> tuple[Batch, list[uuid.UUID]]:
        """Put every prompt `count` times in the queue, all or none. A given seed counts upwards.

        A grid is put there cell by cell.

        Raises:
            As `accept`; the message names the prompt.
        """
        with span("content.accept_batch", contents=asked.size):
            return await self._accept_batch(owner, asked, idempotency_key, allowance)

    async def _accept_batch(
        self,
        owner: str,
        asked: BatchIn,
        idempotency_key: str | None,
        allowance: Allowance,
    ) -> tuple[Batch, list[uuid.UUID]]:
        digest = digest_of(asked)
        if idempotency_key is not None:
            earlier = await self._earlier_batch(owner, idempotency_key, digest)
            if earlier is not None:
                return earlier
        try:
            return await self._add_batch(owner, asked, digest, idempotency_key, allowance)
        except (IntegrityError, psycopg.IntegrityError, LimitReached):
            if idempotency_key is None:
                raise
            earlier = await self._earlier_batch(owner, idempotency_key, digest)
            if earlier is None:
                raise
            return earlier

    async def _add_batch(
        self,
        owner: str,
        asked: BatchIn,
        digest: str,
        idempotency_key: str | None,
        allowance: Allowance,
    ) -> tuple[Batch, list[uuid.UUID]]:
        batch = Batch(
            id=uuid.uuid4(),
            owner=owner,
            total=asked.size,
            request=asked.model_dump(mode="json", exclude_unset=True),
            request_sha256=digest,
            idempotency_key=idempotency_key,
            created_at=utc_now(),
        )
        contents: list[Content] = []
        expected_usd = 0.0
        for member in members_of(asked, self._draw_seed):
            try:
                draft = await self._draft(owner, member.asked)
            except (InvalidPrompt, ContentRefused, InvalidRequest, NotFound) as error:
                raise member.named(error) from error
            for _ in range(member.copies):
                seed = None
                if asked.seed is not None and asked.grid is None:
                    seed = (asked.seed + len(contents)) % (SEED_MAX + 1)
                content = draft.content(seed, digest, None)
                content.batch_id, content.batch_place = batch.id, len(contents)
                contents.append(content)
                expected_usd += draft.estimated_usd or 0.0
        async with self._database.session() as session:
            await admit(session, owner, allowance, len(contents), expected_usd)
            session.add(batch)
            await session.flush()
            connection = await driver_connection(session)
            for content in contents:
                await self._add(connection, owner, content)
        return batch, [content.id for content in contents]

    async def _earlier_batch(
        self, owner: str, key: str, digest: str
    ) -> tuple[Batch, list[uuid.UUID]] | None:
        async with self._database.snapshot() as session:
            repository = BatchRepository(session, owner)
            batch = await repository.by_idempotency_key(key)
            if batch is None:
                return None
            if batch.request_sha256 != digest:
                raise Conflict(
                    "This Idempotency-Key was used with another body.", field="Idempotency-Key"
                )
            return batch, list(await repository.content_ids(batch.id))

    async def replay(
        self, owner: str, content_id: uuid.UUID, allowance: Allowance = UNLIMITED
    ) -> Content:
        """The same request again, its seed included, as a new content.

        Raises:
            NotFound: there is no such content.
            Conflict: one of its LoRAs, embeddings or pictures was deleted.
            RateLimited, BudgetExhausted: `allowance` is used up.
        """
        async with self._database.session() as session:
            connection = await driver_connection(session)
            repository = ContentStatements(connection, owner)
            old = await repository.get(content_id)
            if old is None:
                raise NotFound("There is no content with this id.")
            ids = [uuid.UUID(lora["lora_model_id"]) for lora in old.loras]
            found = await LoraRepository(session, owner).get_many(ids) if ids else {}
            for lora_id, lora in zip(ids, old.loras, strict=True):
                if lora_id not in found:
                    raise Conflict(
                        f"The LoRA {lora['name']!r} of this content was deleted.",
                        details={"reason": "lora_deleted", "name": lora["name"]},
                    )
            await check_there(session, owner, asked_of(old))
            for field, kept in pictures_in(asked_of(old)).items():
                if not await find_picture(session, owner, uuid.UUID(kept["image_id"])):
                    raise Conflict(
                        f"The picture of this content's {field} was deleted.",
                        details={"reason": "picture_deleted", "field": field},
                    )
            request = again_request(old)
            request.check_prompts()
            self._forbidden.check_request(request)
            await check_limits(request, self._base_model)
            usual = await repository.usual()
            asked, now = asked_again(old), utc_now()
            content = Content.transient(
                id=uuid.uuid4(),
                owner=owner,
                status=Status.QUEUED,
                attempt=0,
                releases=0,
                avatar_id=old.avatar_id,
                prompt=old.prompt,
                negative_prompt=old.negative_prompt,
                written=old.written,
                parameters=asked,
                asked=asked,
                deadline_at=now + timedelta(seconds=self._deadline_s),
                loras=[dict(lora) for lora in old.loras],
                watermark=old.watermark,
                request_sha256=old.request_sha256,
                estimated_usd=estimate(request, usual),
                created_at=now,
                images=[],
            )
            await admit(session, owner, allowance, 1, content.estimated_usd)
            await self._add(connection, owner, content)
        return content

    async def cancel(self, owner: str, content_id: uuid.UUID) -> Content:
        """Stop a content: at once where it waits, within a step where it is being drawn.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: it has ended otherwise.
        """
        async with self._database.session() as session:
            content = await ContentRepository(session, owner).locked(content_id)
            if content is None:
                raise NotFound("There is no content with this id.")
            if content.status == Status.QUEUED:
                content.status = Status.CANCELLED
                content.finished_at = content.cancel_requested_at = utc_now()
                content.error = {"code": "CANCELLED", "message": "stopped before it was drawn"}
                await EventRepository(await driver_connection(session)).add_end(
                    content_id, Status.CANCELLED
                )
            elif content.status == Status.RUNNING:
                content.cancel_requested_at = content.cancel_requested_at or utc_now()
                await EventRepository(await driver_connection(session)).ask_to_stop(content_id)
            elif content.status != Status.CANCELLED:
                raise Conflict(
                    f"This content has ended already: {content.status}.",
                    details={"reason": "ended", "status": content.status},
                )
        self._waiters.announce(content_id, ended=Status(content.status).is_final)
        return content

    @contextlib.asynccontextmanager
    async def _admitted(
        self, owner: str, allowance: Allowance, contents: int, usd: float | None
    ) -> AsyncIterator[DriverConnection]:
        """A transaction in which so many new contents are within what the owner may use."""
        if allowance.daily_budget_usd is None:
            async with self._database.direct() as connection, connection.transaction():
                await admit_directly(connection, owner, allowance, contents)
                yield connection
            return
        async with self._database.session() as session:
            await admit(session, owner, allowance, contents, usd)
            yield await driver_connection(session)

    async def _add(self, connection: DriverConnection, owner: str, content: Content) -> None:
        """Row and job, in `connection`'s transaction."""
        assert self.queue is not None
        content.job_id = await self.queue.defer(connection, content.id)
        try:
            await ContentStatements(connection, owner).add(content)
        except psycopg.errors.ForeignKeyViolation:
            # It was there a moment ago, when the request was held against it.
            raise NotFound("There is no avatar with this id.", field="avatar_id") from None

    async def _earlier(self, owner: str, key: str, digest: str) -> Content | None:
        async with self._database.snapshot() as session:
            earlier = await ContentRepository(session, owner).by_idempotency_key(key)
        if earlier is not None and earlier.request_sha256 != digest:
            raise Conflict(
                "This Idempotency-Key was used with another body.", field="Idempotency-Key"
            )
        return earlier

    async def delete(self, owner: str, content_id: uuid.UUID) -> None:
        """Remove a content and its pictures; one that is being drawn is stopped.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            found = await ContentRepository(session, owner).delete(content_id)
            if found is None:
                raise NotFound("There is no content with this id.")
            content, keys = found
            if content.cost_usd:
                day = day_start(content.created_at).date()
                await LimitRepository(session).keep_cost(owner, day, content.cost_usd)
        if content.status == Status.RUNNING:
            # Whether it stops or not, its attempt finds no row and removes what it stored.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await self._inference.cancel(str(content_id))
        self._waiters.announce(content_id)
        for key in keys:
            try:
                await self._storage.delete(key)
            except StorageFailed:
                log.warning("content %s: a picture stays until the next sweep", content_id)
