"""What the periodic tasks do, from a terminal, on the database and the object store themselves.

Must not know: HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from app.core.db import Database
from app.core.embedded_postgres import DatabaseError
from app.core.errors import StorageFailed
from app.core.settings import Settings, load_settings
from app.services.storage import Storage, build_storage
from app.services.upkeep.retention import remove_old
from app.services.upkeep.sweep import sweep
from app.startup import StartRefused, prepare

console = Console()
T = TypeVar("T")


def sweep_storage(
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="seconds; unset: SWEEP_GRACE_SECONDS. Less than some minutes only while no "
            "backend runs",
        ),
    ] = None,
) -> None:
    """Remove objects that no row names, and count rows whose object is gone. Prints JSON."""
    settings = load_settings(host="127.0.0.1")
    grace = settings.sweep_grace_seconds if older_than is None else older_than
    print(json.dumps(asdict(_with_both(settings, lambda db, store: sweep(db, store, grace)))))


def remove_old_contents(
    days: Annotated[int | None, typer.Option(min=1, help="days; unset: RETENTION_DAYS")] = None,
) -> None:
    """Remove contents that ended more than so many days ago, with their pictures."""
    settings = load_settings(host="127.0.0.1")
    keep = settings.retention_days if days is None else days
    if keep is None:
        raise typer.BadParameter("say how many days, or set RETENTION_DAYS")
    removed = _with_both(settings, lambda db, store: remove_old(db, store, keep))
    print(json.dumps({"removed": removed}))


def _with_both(settings: Settings, work: Callable[[Database, Storage], Awaitable[T]]) -> T:
    try:
        prepared = prepare(settings)
    except (DatabaseError, StartRefused) as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from error

    async def run() -> T:
        database = Database(prepared.url)
        try:
            return await work(database, build_storage(settings))
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except StorageFailed as error:
        console.print(error.message, markup=False, style="red")
        raise typer.Exit(1) from error
    finally:
        prepared.release()
