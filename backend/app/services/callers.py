"""Who calls: by an API key, or by the session of a page that signed in with one.

Duty: find the key that a token or a cookie stands for; begin and end the page's sessions.
Must not know: cookies' names and flags, HTTP.
"""

from __future__ import annotations

from datetime import timedelta

from app.core.db import Database
from app.core.security import key_digest, new_session_token
from app.models import ApiKey
from app.models.base import utc_now
from app.repositories.access.api_keys import CallerRepository
from app.repositories.access.sessions import SessionRepository


async def key_of(
    database: Database, *, token: str | None = None, cookie: str | None = None
) -> ApiKey | None:
    """The valid key that `token` is or, without one, that signed in and got `cookie`."""
    if token is None and cookie is None:
        return None
    async with database.direct() as connection:
        callers = CallerRepository(connection)
        if token is not None:
            return await callers.find(key_digest(token))
        return await callers.of_session(key_digest(cookie or ""))


async def is_key_required(database: Database) -> bool:
    """Whether a key was ever made: revoking the last one does not open the server again."""
    async with database.direct() as connection:
        return await CallerRepository(connection).any_made()


async def begin_session(
    database: Database, key: ApiKey, seconds: int, *, earlier: str | None = None
) -> str:
    """A new session of `key`, instead of the one that `earlier` stands for; its cookie's value."""
    token = new_session_token()
    async with database.session() as session:
        repository = SessionRepository(session)
        await repository.end_expired()
        if earlier is not None:
            await repository.end(key_digest(earlier))
        await repository.add(key_digest(token), key, utc_now() + timedelta(seconds=seconds))
    return token


async def end_session(database: Database, cookie: str) -> None:
    """Forget the session of `cookie`, if there is one."""
    async with database.session() as session:
        await SessionRepository(session).end(key_digest(cookie))
