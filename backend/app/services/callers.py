"""Who calls: by an API key, or by the session of a page that signed in with one.

Duty: find the key that a token or a cookie stands for; begin and end the page's sessions; keys that
keys make.
Must not know: cookies' names and flags, HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta

from app.core.db import Database
from app.core.errors import Conflict, Forbidden, NotFound
from app.core.security import key_digest, new_api_key, new_session_token
from app.models import ApiKey
from app.models.base import utc_now
from app.repositories.access.api_keys import ApiKeyRepository, CallerRepository
from app.repositories.access.sessions import SessionRepository
from sdxl_contract.errors import Unauthorized

KEYS_OF_A_KEY_MAX = 100


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


async def make_key(database: Database, maker: uuid.UUID, name: str) -> tuple[ApiKey, str]:
    """A new key of `maker`'s owner, within its limits; with the secret, which is not kept.

    Raises:
        Unauthorized: `maker` was revoked meanwhile.
        Conflict: it has made too many that are still valid.
    """
    secret = new_api_key()
    async with database.session() as session:
        keys = ApiKeyRepository(session)
        held = await keys.hold(maker)
        if held is None:
            raise Unauthorized("This API key was revoked, or the session ended.")
        if await keys.count_made_by(maker) >= KEYS_OF_A_KEY_MAX:
            raise Conflict(f"A key makes at most {KEYS_OF_A_KEY_MAX} others: revoke one first.")
        key = await keys.add(
            key_digest(secret),
            owner=held.owner,
            name=name,
            requests_per_minute=held.requests_per_minute,
            max_open_contents=held.max_open_contents,
            daily_budget_usd=held.daily_budget_usd,
            made_by=maker,
        )
        return key, secret


async def keys_of(database: Database, owner: str) -> Sequence[ApiKey]:
    """The owner's valid keys, oldest first."""
    async with database.session() as session:
        return await ApiKeyRepository(session).valid_of(owner)


async def find_made(
    database: Database, owner: str, key_id: uuid.UUID, *, by: uuid.UUID | None
) -> ApiKey:
    """A valid key of the owner that `by` made.

    Raises:
        NotFound: the owner has no such key.
        Forbidden: it has, but not from there.
    """
    for key in await keys_of(database, owner):
        if key.id == key_id:
            if by is None or key.made_by != by:
                raise Forbidden("Only the key that made it, and the operator, may revoke a key.")
            return key
    raise NotFound("There is no valid key with this id.")


async def revoke_key(database: Database, key_id: uuid.UUID) -> None:
    """Make a key, and those that it made, invalid at once."""
    async with database.session() as session:
        await ApiKeyRepository(session).revoke(key_id)
