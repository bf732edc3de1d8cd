"""API keys from a terminal: made, listed, revoked, on the database itself.

Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from app.core.db import Database
from app.core.embedded_postgres import DatabaseError
from app.core.security import key_digest, new_api_key
from app.core.settings import load_settings
from app.models import LOCAL_OWNER
from app.repositories.access.api_keys import ApiKeyRepository
from app.startup import StartRefused, prepare

console = Console()
T = TypeVar("T")


def create_key(
    name: str = "first",
    owner: Annotated[
        str, typer.Option(help="whose things it sees; keys of one owner see the same")
    ] = LOCAL_OWNER,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="calls a minute; unset: REQUESTS_PER_MINUTE")
    ] = None,
    max_open_contents: Annotated[
        int | None, typer.Option(min=1, help="contents at a time; unset: MAX_OPEN_CONTENTS")
    ] = None,
    daily_budget_usd: Annotated[
        float | None, typer.Option(min=0.0, help="USD a day (UTC); unset: DAILY_BUDGET_USD")
    ] = None,
) -> None:
    """Make an API key and print it, once. From then on every call needs a key."""
    # An owner is part of its objects' keys.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", owner):
        raise typer.BadParameter("owner: letters, digits, - and _, at most 64")
    key = new_api_key()
    _with_keys(
        lambda keys: keys.add(
            key_digest(key),
            owner=owner,
            name=name,
            requests_per_minute=requests_per_minute,
            max_open_contents=max_open_contents,
            daily_budget_usd=daily_budget_usd,
        )
    )
    # Bare, so that a script can read it.
    print(key)


def list_keys() -> None:
    """The keys that were made; the keys themselves are not kept."""
    table = Table("id", "owner", "name", "made", "revoked")
    for key in _with_keys(lambda keys: keys.list()):
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
        table.add_row(str(key.id), key.owner, key.name, f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
    console.print(table)


def revoke_key(key_id: uuid.UUID) -> None:
    """Make a key invalid at once."""
    if not _with_keys(lambda keys: keys.revoke(key_id)):
        console.print("There is no valid key with this id.", style="red")
        raise typer.Exit(1)


def _with_keys(work: Callable[[ApiKeyRepository], Awaitable[T]]) -> T:
    # Loopback: the check that a reachable server has a key is what a first key is to satisfy.
    settings = load_settings(host="127.0.0.1")
    try:
        prepared = prepare(settings)
    except (DatabaseError, StartRefused) as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from error

    async def run() -> T:
        database = Database(prepared.url)
        try:
            async with database.session() as session:
                return await work(ApiKeyRepository(session))
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    finally:
        prepared.release()
