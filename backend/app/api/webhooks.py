"""`/webhooks`: whom to tell when contents end, and how it went."""

from __future__ import annotations

import uuid

from fastapi import APIRouter

from app.api.content import Cursor, Limit
from app.api.deps import OwnerDep, ServicesDep
from app.models import DeliveryState
from app.schemas.common import Page
from app.schemas.webhooks import (
    AttemptOut,
    DeliveryOut,
    DeliveryWithAttempts,
    WebhookIn,
    WebhookOut,
    WebhookPatch,
    WebhookWithSecret,
    webhook_out,
)
from app.services.webhooks.signing import shown_secret

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post("", status_code=201)
async def create_webhook(
    asked: WebhookIn, owner: OwnerDep, services: ServicesDep
) -> WebhookWithSecret:
    """A new webhook; its secret is shown here, and not again."""
    webhook = await services.webhooks.add(owner, asked)
    return WebhookWithSecret(
        **webhook_out(webhook).model_dump(), secret=shown_secret(webhook.secret)
    )


@router.get("")
async def list_webhooks(owner: OwnerDep, services: ServicesDep) -> Page[WebhookOut]:
    """All webhooks, oldest first."""
    return Page(items=[webhook_out(row) for row in await services.webhooks.list(owner)])


@router.get("/{webhook_id:uuid}")
async def read_webhook(webhook_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> WebhookOut:
    """One webhook."""
    return webhook_out(await services.webhooks.get(owner, webhook_id))


@router.patch("/{webhook_id:uuid}")
async def change_webhook(
    webhook_id: uuid.UUID, asked: WebhookPatch, owner: OwnerDep, services: ServicesDep
) -> WebhookOut:
    """Change its URL, events or description; enable it again, or disable it."""
    return webhook_out(await services.webhooks.change(owner, webhook_id, asked))


@router.delete("/{webhook_id:uuid}", status_code=204)
async def delete_webhook(webhook_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove it with its messages."""
    await services.webhooks.delete(owner, webhook_id)


@router.post("/{webhook_id:uuid}/rotate")
async def rotate_secret(
    webhook_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> WebhookWithSecret:
    """A new secret; the old one signs, too, for 24 hours."""
    webhook = await services.webhooks.rotate(owner, webhook_id)
    return WebhookWithSecret(
        **webhook_out(webhook).model_dump(), secret=shown_secret(webhook.secret)
    )


@router.post("/{webhook_id:uuid}/test", status_code=202)
async def test_webhook(
    webhook_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> DeliveryOut:
    """Send a message of the type `webhook.test`."""
    return DeliveryOut.model_validate(await services.webhooks.test(owner, webhook_id))


@router.get("/{webhook_id:uuid}/deliveries")
async def list_deliveries(
    webhook_id: uuid.UUID,
    owner: OwnerDep,
    services: ServicesDep,
    state: DeliveryState | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[DeliveryOut]:
    """Its messages, newest first."""
    rows, next_cursor = await services.webhooks.deliveries(
        owner, webhook_id, limit=limit, cursor=cursor, state=state
    )
    return Page(items=[DeliveryOut.model_validate(row) for row in rows], next_cursor=next_cursor)


@router.get("/{webhook_id:uuid}/deliveries/{delivery_id:uuid}")
async def read_delivery(
    webhook_id: uuid.UUID, delivery_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> DeliveryWithAttempts:
    """A message, and how each attempt at sending it went."""
    row, attempts = await services.webhooks.delivery(owner, webhook_id, delivery_id)
    return DeliveryWithAttempts(
        **DeliveryOut.model_validate(row).model_dump(),
        log=[AttemptOut.model_validate(attempt) for attempt in attempts],
    )


@router.post("/{webhook_id:uuid}/deliveries/{delivery_id:uuid}/resend", status_code=202)
async def resend_delivery(
    webhook_id: uuid.UUID, delivery_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> DeliveryOut:
    """Send a message again, under its own id."""
    return DeliveryOut.model_validate(
        await services.webhooks.resend(owner, webhook_id, delivery_id)
    )
