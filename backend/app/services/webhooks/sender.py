"""Works off the outbox: each message at least once, whatever dies on the way.

A message is claimed for a while, sent, and its end is written under the fence of its attempt. Who
claimed it and died leaves it to the next. Order is not promised.
Must not know: HTTP's details, who made a webhook.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

from app.core.db import DATABASE_LOST, Database
from app.models import DeliveryState
from app.models.base import utc_now
from app.repositories.contents import ContentStatements
from app.repositories.webhooks import Claimed, OutboxStatements
from app.services.outgoing import Answer, Outgoing, OutgoingFailed
from app.services.storage import Storage
from app.services.webhooks.schedule import is_given_up, next_attempt
from app.services.webhooks.signing import Headers, standard_headers

_LOOK_SECONDS = 1.0
_LEASE = timedelta(seconds=60)
_AT_ONCE = 32
_AT_ONCE_EACH = 4
_GONE = 410
_USER_AGENT = "modal-sdxl-lora-webhooks/1"

log = logging.getLogger(__name__)


class MessageShape(Protocol):
    """How the messages of a dialect look."""

    async def body(self, owner: str, content_id: uuid.UUID) -> bytes | None:
        """What is sent of a content; None where what it would tell of is gone."""

    def headers(
        self,
        secret: str,
        owner: str,
        content_id: uuid.UUID,
        message_id: str,
        moment: int,
        body: bytes,
    ) -> Headers:
        """The headers that prove it, `moment` in seconds since 1970."""


class WebhookSender:
    """One of them runs in each server.

    Args:
        shapes: of messages that are no Standard Webhooks, by the first word of their type.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        outgoing: Outgoing,
        image_url_seconds: int,
        clock: Callable[[], datetime] = utc_now,
        shapes: Mapping[str, MessageShape] | None = None,
    ) -> None:
        self._database = database
        self._storage = storage
        self._outgoing = outgoing
        self._image_url_seconds = image_url_seconds
        self._clock = clock
        self._shapes = shapes or {}
        self._news = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()
        self._busy: Counter[uuid.UUID] = Counter()  # messages under way, by webhook
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to look for messages."""
        self._loop = asyncio.create_task(self._run(), name="webhook sender")

    async def stop(self) -> None:
        """Stop; what is under way is sent again by whoever comes next."""
        # A cancellation may reach the loop as an error of the database's driver.
        self._stopping = True
        tasks = [task for task in (self._loop, *self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_sending(self) -> bool:
        """Whether messages are under way."""
        return bool(self._sending)

    def wake(self) -> None:
        """Look now."""
        self._news.set()

    async def _run(self) -> None:
        while not self._stopping:
            self._news.clear()
            started = 0
            try:
                started = await self._start_due()
            except DATABASE_LOST:
                pass  # the messages wait in it
            except Exception:
                log.exception("looking for webhooks' messages failed; trying again")
            if not started:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LOOK_SECONDS)

    async def _start_due(self) -> int:
        room = _AT_ONCE - len(self._sending)
        if room <= 0:
            return 0
        busy = [webhook for webhook, count in self._busy.items() if count >= _AT_ONCE_EACH]
        now = self._clock()
        async with self._database.direct() as connection:
            claimed = await OutboxStatements(connection).claim(
                now, now + _LEASE, each=_AT_ONCE_EACH, most=room, busy=busy
            )
        for one in claimed:
            self._busy[one.webhook_id] += 1
            task = asyncio.create_task(self._send(one), name="webhook")
            self._sending.add(task)
            task.add_done_callback(lambda done, one=one: self._done(done, one))  # type: ignore[misc]
        return len(claimed)

    def _done(self, task: asyncio.Task[None], claimed: Claimed) -> None:
        self._sending.discard(task)
        self._busy[claimed.webhook_id] -= 1
        if not self._busy[claimed.webhook_id]:
            del self._busy[claimed.webhook_id]
        self._news.set()
        if not task.cancelled() and task.exception() is not None:
            log.warning("webhook %s: its end could not be written", claimed.webhook_id)

    async def _send(self, claimed: Claimed) -> None:
        shape = self._shapes.get(claimed.type.partition(".")[0])
        body: bytes | None = None
        if shape is None:
            body = await self._body(claimed)
        elif claimed.content_id is not None:
            body = await shape.body(claimed.owner, claimed.content_id)
        if body is None:
            async with self._database.direct() as connection:
                await OutboxStatements(connection).end(claimed, DeliveryState.FAILED, None)
            return
        message_id, moment = f"msg_{claimed.id.hex}", int(self._clock().timestamp())
        if shape is None or claimed.content_id is None:
            secrets = [secret for secret in (claimed.secret, claimed.previous_secret) if secret]
            proof = standard_headers(secrets, message_id, moment, body)
        else:
            proof = shape.headers(
                claimed.secret, claimed.owner, claimed.content_id, message_id, moment, body
            )
        headers = {"Content-Type": "application/json", "User-Agent": _USER_AGENT, **proof}
        started = time.perf_counter()
        answer: Answer | None = None
        error: str | None = None
        try:
            answer = await self._outgoing.post(claimed.url, body, headers)
        except OutgoingFailed as failed:
            error = str(failed)
        milliseconds = round(1000 * (time.perf_counter() - started))
        await self._end(claimed, answer, error, milliseconds)

    async def _end(
        self, claimed: Claimed, answer: Answer | None, error: str | None, milliseconds: int
    ) -> None:
        now = self._clock()
        taken = answer is not None and 200 <= answer.status < 300
        async with self._database.direct() as connection, connection.transaction():
            outbox = OutboxStatements(connection)
            # The webhook's row before its message's, as whoever resends or deletes locks them: the
            # other way round the two could wait for each other.
            failing_since = None
            if claimed.is_by_call:
                pass
            elif taken:
                await outbox.works(claimed.webhook_id)
            else:
                failing_since = await outbox.fails(claimed.webhook_id, now)
            await outbox.note(
                claimed,
                now,
                status=answer.status if answer else None,
                error=error,
                head=answer.head if answer else None,
                milliseconds=milliseconds,
            )
            if taken:
                await outbox.end(claimed, DeliveryState.DELIVERED, None)
                return
            is_gone = answer is not None and answer.status == _GONE
            again = next_attempt(
                await outbox.count_ended(claimed),
                now,
                random.random(),
                answer.retry_after if answer else None,
            )
            if is_gone and claimed.is_by_call:
                again = None
            state = DeliveryState.FAILED if again is None else DeliveryState.WAITING
            await outbox.end(claimed, state, again)
            if claimed.is_by_call:
                return
            if is_gone:
                await outbox.disable(claimed.webhook_id, "its receiver answered 410 Gone")
            elif is_given_up(failing_since, now):
                await outbox.disable(claimed.webhook_id, "its receiver failed for five days")

    async def _body(self, claimed: Claimed) -> bytes:
        data: dict[str, Any] = {"webhook_id": str(claimed.webhook_id)}
        if claimed.content_id is not None:
            data = await self._content(claimed.owner, claimed.content_id, claimed.type)
        moment = claimed.created_at.isoformat()
        message = {"type": claimed.type, "timestamp": moment, "data": data}
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()

    async def _content(self, owner: str, content_id: uuid.UUID, kind: str) -> dict[str, Any]:
        """What a message says of a content: enough to fetch the rest, its prompt left out."""
        data: dict[str, Any] = {"id": str(content_id), "status": kind.rpartition(".")[2]}
        async with self._database.direct() as connection:
            content = await ContentStatements(connection, owner).get(content_id)
        if content is None:
            return {**data, "deleted": True}
        return {
            **data,
            "batch_id": None if content.batch_id is None else str(content.batch_id),
            "avatar_id": None if content.avatar_id is None else str(content.avatar_id),
            "error": content.error
            and {"code": content.error["code"], "message": content.error["message"]},
            "cost_usd": content.cost_usd,
            "images": [
                {
                    "url": self._storage.image_url(image.object_key, self._image_url_seconds),
                    "seed": image.seed,
                    "width": image.width,
                    "height": image.height,
                    "sha256": image.sha256,
                }
                for image in content.images
            ],
            "created_at": content.created_at.isoformat(),
            "finished_at": content.finished_at.isoformat() if content.finished_at else None,
        }
