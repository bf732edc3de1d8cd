"""A call that repeats one whose answer was lost, and the content that the first one made.

For clients that repeat without an idempotency key. Must not know: HTTP.
"""

from __future__ import annotations

from datetime import timedelta

from app.core.db import Database
from app.models import Content
from app.models.base import utc_now
from app.repositories.contents import ContentRepository
from app.schemas.content import GenerateIn
from app.services.contents.drafts import digest_of

_OPENED_WITHIN = timedelta(minutes=20)
# An answer may be lost just as the content ends; later, the same words are a new wish.
_ENDED_WITHIN = timedelta(seconds=60)


async def find_same(database: Database, owner: str, asked: GenerateIn) -> Content | None:
    """The owner's newest content of the same words that is open, or was drawn just now."""
    now = utc_now()
    async with database.session() as session:
        return await ContentRepository(session, owner).same(
            digest_of(asked), opened_after=now - _OPENED_WITHIN, ended_after=now - _ENDED_WITHIN
        )
