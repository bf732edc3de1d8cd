"""Contents that came by another service's API: accepted with their call, and found again by it.

Must not know: HTTP, the dialects' shapes.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.cursor import read_cursor, write_cursor
from app.core.db import Database, DriverConnection
from app.core.errors import NotFound
from app.models import Content, DialectCall, Webhook
from app.models.base import utc_now
from app.models.webhook import Kind, Signing
from app.repositories.calls.dialect_calls import (
    DialectCallRepository,
    add_call,
    call_of,
    signers,
)
from app.repositories.contents import ContentStatements
from app.schemas.content import GenerateIn
from app.services.contents.accepting import ContentService
from app.services.limits import Allowance
from app.services.outgoing import Outgoing, UrlRefused
from app.services.webhooks.signing import new_secret
from sdxl_contract.errors import InvalidRequest

_SIGNING = {Kind.REPLICATE: Signing.HMAC, Kind.FAL: Signing.ED25519}
_MAX_SIGNERS = 1000
Called = tuple[Content, DialectCall]


@dataclass(frozen=True)
class NewCall:
    """What is kept of a call.

    Args:
        model: as the caller names it.
        input: as the caller sent it; it is echoed.
        webhook_url: of who is told, of `events` only.
        webhook_field: what the caller calls it.
    """

    dialect: Kind
    model: str
    input: dict[str, Any]
    version: str | None = None
    webhook_url: str | None = None
    events: Sequence[str] = field(default=())
    webhook_field: str = "webhook"


class CallService:
    """Calls of the dialects whose answers echo them."""

    def __init__(self, database: Database, contents: ContentService, outgoing: Outgoing) -> None:
        self._database = database
        self._contents = contents
        self._outgoing = outgoing

    async def accept(
        self, owner: str, asked: GenerateIn, call: NewCall, allowance: Allowance
    ) -> Called:
        """A new content with its call.

        Raises:
            As `ContentService.accept`.
            InvalidRequest: the webhook's URL may not be called.
        """
        signer = None
        if call.webhook_url is not None:
            try:
                self._outgoing.check(call.webhook_url)
            except UrlRefused as error:
                name = call.webhook_field
                raise InvalidRequest(f"{name}: {error}", details={"field": name}) from None
            signer = await self.signer(owner, call.dialect)
        made: list[DialectCall] = []

        async def beside(connection: DriverConnection, content: Content) -> None:
            row = DialectCall(
                content_id=content.id,
                owner=owner,
                dialect=call.dialect.value,
                model=call.model,
                version=call.version,
                input=call.input,
                webhook_id=None if signer is None else signer.id,
                webhook_url=call.webhook_url,
                webhook_events=list(call.events),
                created_at=content.created_at,
            )
            await add_call(connection, row)
            made.append(row)

        accepted = await self._contents.accept(owner, asked, None, allowance, beside)
        return accepted.content, made[0]

    async def get(self, owner: str, dialect: Kind, content_id: str) -> Called:
        """One.

        Raises:
            NotFound: there is none, it is another owner's, or it did not come by this dialect.
        """
        found = None
        try:
            wanted = uuid.UUID(content_id)
        except ValueError:
            wanted = None
        if wanted is not None:
            async with self._database.snapshot() as session:
                found = await DialectCallRepository(session, owner, dialect).get(wanted)
        if found is None:
            raise NotFound("There is nothing with this id.")
        return found

    async def page(
        self, owner: str, dialect: Kind, *, limit: int, cursor: str | None
    ) -> tuple[Sequence[Called], str | None]:
        """Newest first, and the cursor of the next page."""
        after = None if cursor is None else read_cursor(cursor)
        async with self._database.snapshot() as session:
            rows = await DialectCallRepository(session, owner, dialect).page(limit + 1, after)
        page = list(rows[:limit])
        if len(rows) <= limit:
            return page, None
        last = page[-1][1]
        return page, write_cursor(last.created_at, last.content_id)

    async def signer(self, owner: str, dialect: Kind) -> Webhook:
        """The webhook that holds the secret of the owner's messages of this dialect."""
        signing = _SIGNING[dialect]
        fresh = Webhook(
            id=uuid.uuid4(),
            owner=owner,
            kind=dialect.value,
            url="",
            description="",
            events=[],
            signing=signing.value,
            secret=new_secret(signing),
            is_enabled=True,
            created_at=utc_now(),
        )
        async with self._database.session() as session:
            return await DialectCallRepository(session, owner, dialect).signer(fresh)

    async def signers(self, dialect: Kind) -> Sequence[Webhook]:
        """Those of all owners: what they prove may be checked by anybody."""
        async with self._database.session() as session:
            return await signers(session, dialect, _MAX_SIGNERS)


async def called(database: Database, owner: str, content_id: uuid.UUID) -> Called | None:
    """A content and the call that it came by; None where either is gone."""
    async with database.direct() as connection:
        content = await ContentStatements(connection, owner).get(content_id)
        call = await call_of(connection, content_id)
    return None if content is None or call is None else (content, call)
