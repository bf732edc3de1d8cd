"""An owner's webhooks: made, changed, tried out, and their messages sent again.

Must not know: HTTP, how messages are sent.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta

from app.core.cursor import read_cursor, write_cursor
from app.core.db import Database
from app.core.errors import Conflict, NotFound
from app.models import DeliveryState, Webhook, WebhookAttempt, WebhookDelivery
from app.models.base import utc_now
from app.models.webhook import Signing
from app.repositories.webhooks import WebhookRepository, new_delivery
from app.schemas.webhooks import TEST_TYPE, WebhookIn, WebhookPatch
from app.services.outgoing import Outgoing, UrlRefused
from app.services.webhooks.signing import new_secret
from sdxl_contract.errors import InvalidRequest

MAX_WEBHOOKS = 20
_ROTATION = timedelta(hours=24)


class WebhookService:
    """Webhooks. `wake` tells the sender that there is something to send."""

    def __init__(self, database: Database, outgoing: Outgoing, wake: Callable[[], None]) -> None:
        self._database = database
        self._outgoing = outgoing
        self._wake = wake

    def _check(self, url: str) -> None:
        try:
            self._outgoing.check(url)
        except UrlRefused as error:
            raise InvalidRequest(f"url: {error}", details={"field": "url"}) from None

    async def add(self, owner: str, asked: WebhookIn) -> Webhook:
        """A new webhook, with its secret.

        Raises:
            InvalidRequest: its URL may not be called.
            Conflict: there are too many.
        """
        self._check(asked.url)
        webhook = Webhook(
            id=uuid.uuid4(),
            owner=owner,
            url=asked.url,
            description=asked.description,
            events=[event.value for event in dict.fromkeys(asked.events)],
            signing=asked.signing.value,
            secret=new_secret(asked.signing),
            is_enabled=True,
            created_at=utc_now(),
        )
        async with self._database.session() as session:
            repository = WebhookRepository(session, owner)
            if await repository.count() >= MAX_WEBHOOKS:
                raise Conflict(f"There are {MAX_WEBHOOKS} webhooks already: delete one first.")
            await repository.add(webhook)
        return webhook

    async def list(self, owner: str) -> Sequence[Webhook]:
        """All of an owner's."""
        async with self._database.session() as session:
            return await WebhookRepository(session, owner).list()

    async def get(self, owner: str, webhook_id: uuid.UUID) -> Webhook:
        """One.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            return await _own(WebhookRepository(session, owner), webhook_id)

    async def change(self, owner: str, webhook_id: uuid.UUID, asked: WebhookPatch) -> Webhook:
        """Change one. Enabling it anew forgets that it failed.

        Raises:
            NotFound, InvalidRequest: as `get` and `add`.
        """
        async with self._database.session() as session:
            webhook = await _own(WebhookRepository(session, owner), webhook_id, lock=True)
            if asked.url is not None:
                self._check(asked.url)
                webhook.url = asked.url
            if asked.events is not None:
                webhook.events = [event.value for event in dict.fromkeys(asked.events)]
            if asked.description is not None:
                webhook.description = asked.description
            if asked.enabled is not None:
                webhook.is_enabled = asked.enabled
                webhook.disabled_reason = None if asked.enabled else "by its owner"
                webhook.failing_since = None
            return webhook

    async def delete(self, owner: str, webhook_id: uuid.UUID) -> None:
        """Remove one with its messages.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            repository = WebhookRepository(session, owner)
            await repository.delete(await _own(repository, webhook_id, lock=True))

    async def rotate(self, owner: str, webhook_id: uuid.UUID) -> Webhook:
        """A new secret; for a day messages are signed with the old one, too.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            webhook = await _own(WebhookRepository(session, owner), webhook_id, lock=True)
            webhook.previous_secret = webhook.secret
            webhook.previous_until = utc_now() + _ROTATION
            webhook.secret = new_secret(Signing(webhook.signing))
            return webhook

    async def test(self, owner: str, webhook_id: uuid.UUID) -> WebhookDelivery:
        """Send a message that means nothing.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: it is disabled.
        """
        async with self._database.session() as session:
            repository = WebhookRepository(session, owner)
            webhook = await _own(repository, webhook_id, lock=True)
            _check_enabled(webhook)
            delivery = new_delivery(webhook.id, TEST_TYPE, None)
            await repository.add(delivery)
        self._wake()
        return delivery

    async def deliveries(
        self,
        owner: str,
        webhook_id: uuid.UUID,
        *,
        limit: int,
        cursor: str | None,
        state: DeliveryState | None,
    ) -> tuple[Sequence[WebhookDelivery], str | None]:
        """Messages, newest first, and the cursor of the next page.

        Raises:
            NotFound: there is no such webhook, or it is another owner's.
        """
        after = None if cursor is None else read_cursor(cursor)
        async with self._database.snapshot() as session:
            repository = WebhookRepository(session, owner)
            await _own(repository, webhook_id)
            rows = await repository.deliveries(
                webhook_id, limit=limit + 1, after=after, state=state
            )
        page = list(rows[:limit])
        more = len(rows) > limit
        return page, write_cursor(page[-1].created_at, page[-1].id) if more else None

    async def delivery(
        self, owner: str, webhook_id: uuid.UUID, delivery_id: uuid.UUID
    ) -> tuple[WebhookDelivery, Sequence[WebhookAttempt]]:
        """A message and its attempts.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.snapshot() as session:
            repository = WebhookRepository(session, owner)
            found = await repository.delivery(webhook_id, delivery_id)
            if found is None:
                raise NotFound("There is no message with this id.")
            return found, await repository.attempts(delivery_id)

    async def resend(
        self, owner: str, webhook_id: uuid.UUID, delivery_id: uuid.UUID
    ) -> WebhookDelivery:
        """Send a message again, under its own id, now.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: the webhook is disabled.
        """
        async with self._database.session() as session:
            repository = WebhookRepository(session, owner)
            webhook = await _own(repository, webhook_id, lock=True)
            _check_enabled(webhook)
            found = await repository.delivery(webhook_id, delivery_id, lock=True)
            if found is None:
                raise NotFound("There is no message with this id.")
            # One that is under way may arrive twice: the receiver knows it by its id.
            found.state, found.next_at = DeliveryState.WAITING, utc_now()
        self._wake()
        return found


def _check_enabled(webhook: Webhook) -> None:
    if not webhook.is_enabled:
        raise Conflict("This webhook is disabled: enable it first.")


async def _own(
    repository: WebhookRepository, webhook_id: uuid.UUID, *, lock: bool = False
) -> Webhook:
    webhook = await repository.get(webhook_id, lock=lock)
    if webhook is None:
        raise NotFound("There is no webhook with this id.")
    return webhook
