"""`/keys`: an owner's API keys, made and revoked by a key that the operator made."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request

from app.api.deps import Caller, CallerDep, ServicesDep
from app.core.dialect import dialect_of
from app.core.errors import Forbidden
from app.schemas.access import KeyIn, KeyOut, KeyWithSecret
from app.schemas.common import Page
from app.services import callers

router = APIRouter(prefix="/keys", tags=["keys"])


def _maker(caller: Caller) -> uuid.UUID:
    """The key that asks.

    Raises:
        Forbidden: none does, or one that was itself made by a key.
    """
    if caller.key_id is None:
        raise Forbidden("No key was made yet: the first one is made by the operator (create-key).")
    if caller.made_by is not None:
        raise Forbidden("This key was made by another key: that one makes and revokes keys.")
    return caller.key_id


@router.post("", status_code=201)
async def create_key(
    asked: KeyIn, request: Request, caller: CallerDep, services: ServicesDep
) -> KeyWithSecret:
    """A new key for the same things, within the same limits; it is shown here, and not again."""
    if dialect_of(request.scope).api_key(request.headers) is None and caller.key_id is not None:
        # What a page's script could do while somebody is signed in must not outlast the session.
        raise Forbidden("A key is made by a key: send Authorization: Bearer <api key>.")
    key, secret = await callers.make_key(services.database, _maker(caller), asked.name)
    return KeyWithSecret(**KeyOut.of(key, caller.key_id).model_dump(), key=secret)


@router.get("")
async def list_keys(caller: CallerDep, services: ServicesDep) -> Page[KeyOut]:
    """The owner's valid keys, oldest first; the keys themselves are not kept."""
    keys = await callers.keys_of(services.database, caller.owner)
    return Page(items=[KeyOut.of(key, caller.key_id) for key in keys])


@router.delete("/{key_id:uuid}", status_code=204)
async def revoke_key(key_id: uuid.UUID, caller: CallerDep, services: ServicesDep) -> None:
    """Make a key invalid at once, with those that it made: this call's own, or one that it made."""
    if key_id != caller.key_id:
        await callers.find_made(services.database, caller.owner, key_id, by=caller.key_id)
        _maker(caller)
    await callers.revoke_key(services.database, key_id)
