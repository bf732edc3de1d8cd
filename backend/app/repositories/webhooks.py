"""SQL of webhooks: their owners' lists, and the outbox that the sender works off."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import DriverConnection, fetch_rows, fetch_value
from app.models import DeliveryState, Webhook, WebhookAttempt, WebhookDelivery
from app.models.base import utc_now
from app.models.webhook import Kind

# At most so many of each webhook, so that a receiver that stalls keeps only its own waiting.
_CLAIM = f"""
    WITH due AS (
        SELECT d.id FROM webhook w CROSS JOIN LATERAL (
            SELECT id FROM webhook_delivery
            WHERE webhook_id = w.id AND state = '{DeliveryState.WAITING}'
                AND next_at <= %(now)s
            ORDER BY next_at LIMIT %(each)s FOR UPDATE SKIP LOCKED
        ) d
        WHERE NOT w.id = ANY(%(busy)s::uuid[]) LIMIT %(most)s
    )
    UPDATE webhook_delivery d SET attempts = attempts + 1, next_at = %(lease)s
    FROM due, webhook w WHERE d.id = due.id AND w.id = d.webhook_id
    RETURNING d.id, d.webhook_id, d.content_id, d.type, d.attempts, d.created_at, w.owner,
        coalesce(d.url, w.url) AS url, d.url IS NOT NULL AS is_by_call, w.secret,
        CASE WHEN w.previous_until > %(now)s THEN w.previous_secret END AS previous_secret
"""
_END = f"""
    UPDATE webhook_delivery SET state = %(state)s, next_at = %(next_at)s
    WHERE id = %(delivery_id)s AND attempts = %(attempt)s
        AND state = '{DeliveryState.WAITING}'
    RETURNING id
"""
_NOTE = """
    INSERT INTO webhook_attempt
        (delivery_id, attempt, status, error, head, milliseconds, created_at)
    SELECT id, %(attempt)s, %(status)s, %(error)s, %(head)s, %(milliseconds)s, %(now)s
    FROM webhook_delivery WHERE id = %(delivery_id)s
"""
_COUNT_ENDED = """
    SELECT count(*) FROM webhook_attempt WHERE delivery_id = %(delivery_id)s
"""
_WORKS = """
    UPDATE webhook SET failing_since = NULL
    WHERE id = %(webhook_id)s AND failing_since IS NOT NULL
"""
_FAILS = """
    UPDATE webhook SET failing_since = coalesce(failing_since, %(now)s)
    WHERE id = %(webhook_id)s RETURNING failing_since
"""
_DISABLE = f"""
    WITH held AS (
        UPDATE webhook SET is_enabled = false, disabled_reason = %(reason)s
        WHERE id = %(webhook_id)s AND is_enabled RETURNING id
    )
    UPDATE webhook_delivery d SET state = '{DeliveryState.FAILED}', next_at = NULL
    FROM held WHERE d.webhook_id = held.id AND d.state = '{DeliveryState.WAITING}'
"""


class Claimed(NamedTuple):
    """A message to send now, and what it is sent with."""

    id: uuid.UUID
    webhook_id: uuid.UUID
    content_id: uuid.UUID | None
    type: str
    attempts: int
    created_at: datetime
    owner: str
    url: str
    is_by_call: bool  # one call named the URL: what it answers says nothing of other messages
    secret: str
    previous_secret: str | None


class OutboxStatements:
    """The sender's steps, whoever owns the webhooks."""

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def claim(
        self, now: datetime, lease: datetime, *, each: int, most: int, busy: Sequence[uuid.UUID]
    ) -> list[Claimed]:
        """Take up to `most` messages that are due, `each` of a webhook; theirs until `lease`."""
        values = {"now": now, "lease": lease, "each": each, "most": most, "busy": list(busy)}
        return [Claimed(**row) for row in await fetch_rows(self._connection, _CLAIM, values)]

    async def end(self, claimed: Claimed, state: DeliveryState, next_at: datetime | None) -> bool:
        """Write what becomes of a message; False where another attempt holds it."""
        values = {
            "state": state.value,
            "next_at": next_at,
            "delivery_id": claimed.id,
            "attempt": claimed.attempts,
        }
        return bool(await fetch_rows(self._connection, _END, values))

    async def note(
        self,
        claimed: Claimed,
        now: datetime,
        *,
        status: int | None,
        error: str | None,
        head: str | None,
        milliseconds: int,
    ) -> None:
        """Write how an attempt went; nothing where the message is gone."""
        values = {
            "delivery_id": claimed.id,
            "attempt": claimed.attempts,
            "status": status,
            "error": error,
            "head": head,
            "milliseconds": milliseconds,
            "now": now,
        }
        await self._connection.execute(_NOTE.encode(), values)

    async def count_ended(self, claimed: Claimed) -> int:
        """How many attempts of a message have ended: those whose sender died are none."""
        values = {"delivery_id": claimed.id}
        return int(await fetch_value(self._connection, _COUNT_ENDED, values))

    async def works(self, webhook_id: uuid.UUID) -> None:
        """Write that a receiver took a message."""
        await self._connection.execute(_WORKS.encode(), {"webhook_id": webhook_id})

    async def fails(self, webhook_id: uuid.UUID, now: datetime) -> datetime | None:
        """Write that a receiver did not; since when it has been failing, None where it is gone."""
        rows = await fetch_rows(self._connection, _FAILS, {"webhook_id": webhook_id, "now": now})
        return rows[0]["failing_since"] if rows else None

    async def disable(self, webhook_id: uuid.UUID, reason: str) -> None:
        """Tell a receiver nothing more; what waits for it has failed."""
        values = {"webhook_id": webhook_id, "reason": reason}
        await self._connection.execute(_DISABLE.encode(), values)


class WebhookRepository:
    """One owner's webhooks."""

    def __init__(self, session: AsyncSession, owner: str) -> None:
        self._session = session
        self._owner = owner

    def _own(self) -> tuple[ColumnElement[bool], ...]:
        return Webhook.owner == self._owner, Webhook.kind == Kind.OWN.value

    async def count(self) -> int:
        """How many there are; others of this owner wait until the transaction's end."""
        await self._session.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks:{self._owner}", 0)))
        )
        query = select(func.count()).select_from(Webhook).where(*self._own())
        return await self._session.scalar(query) or 0

    async def add(self, row: Webhook | WebhookDelivery) -> None:
        """Insert."""
        self._session.add(row)
        await self._session.flush()

    async def list(self) -> Sequence[Webhook]:
        """All, oldest first."""
        rows = await self._session.scalars(
            select(Webhook).where(*self._own()).order_by(Webhook.created_at, Webhook.id)
        )
        return rows.all()

    async def get(self, webhook_id: uuid.UUID, *, lock: bool = False) -> Webhook | None:
        """One; `lock` holds it until the transaction's end."""
        query = select(Webhook).where(Webhook.id == webhook_id, *self._own())
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def delete(self, webhook: Webhook) -> None:
        """Remove one and its messages."""
        await self._session.execute(delete(Webhook).where(Webhook.id == webhook.id))

    async def deliveries(
        self,
        webhook_id: uuid.UUID,
        *,
        limit: int,
        after: tuple[datetime, uuid.UUID] | None,
        state: DeliveryState | None,
    ) -> Sequence[WebhookDelivery]:
        """A webhook's messages, newest first."""
        query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
        if state is not None:
            query = query.where(WebhookDelivery.state == state)
        if after is not None:
            query = query.where(tuple_(WebhookDelivery.created_at, WebhookDelivery.id) < after)
        rows = await self._session.scalars(
            query.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc()).limit(
                limit
            )
        )
        return rows.all()

    async def delivery(
        self, webhook_id: uuid.UUID, delivery_id: uuid.UUID, *, lock: bool = False
    ) -> WebhookDelivery | None:
        """One message of one of the owner's webhooks."""
        query = (
            select(WebhookDelivery)
            .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
            .where(
                WebhookDelivery.id == delivery_id,
                WebhookDelivery.webhook_id == webhook_id,
                *self._own(),
            )
        )
        return await self._session.scalar(
            query.with_for_update(of=WebhookDelivery) if lock else query
        )

    async def attempts(self, delivery_id: uuid.UUID) -> Sequence[WebhookAttempt]:
        """How a message's attempts went, in order."""
        rows = await self._session.scalars(
            select(WebhookAttempt)
            .where(WebhookAttempt.delivery_id == delivery_id)
            .order_by(WebhookAttempt.id)
        )
        return rows.all()


async def remove_old_deliveries(session: AsyncSession, before: datetime, most: int) -> int:
    """Forget messages that have ended and are older; returns how many."""
    old = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.created_at < before, WebhookDelivery.state != DeliveryState.WAITING)
        .limit(most)
    )
    gone = await session.scalars(
        delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)).returning(WebhookDelivery.id)
    )
    return len(gone.all())


def new_delivery(webhook_id: uuid.UUID, kind: str, content_id: uuid.UUID | None) -> WebhookDelivery:
    """A message that is due now."""
    now = utc_now()
    return WebhookDelivery(
        id=uuid.uuid4(),
        webhook_id=webhook_id,
        content_id=content_id,
        type=kind,
        state=DeliveryState.WAITING,
        attempts=0,
        next_at=now,
        created_at=now,
    )
