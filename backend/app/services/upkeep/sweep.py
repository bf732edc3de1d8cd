"""Objects that no row names, and rows whose object is gone.

An object without a row is what a process left that died between storing and writing, or after
deleting a row; it is removed once it is old enough that nobody can still be about to name it.
A row without its object is never removed: it is counted and logged, since a bucket that was
emptied or named wrongly must not take the rows with it.
Must not know: HTTP, and what the objects are.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.core.db import DATABASE_LOST, Database
from app.core.errors import StorageFailed
from app.models.base import utc_now
from app.repositories.loras import LoraRepository
from app.repositories.upkeep.maintenance import MaintenanceRepository
from app.services.storage import Storage

# What this backend writes. Anything else in the bucket is somebody else's, a store's own file of a
# writer that died (`.tmp.…`) too.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_OURS = re.compile(
    rf"owners/{_NAME}/(images/{_NAME}/{_NAME}|loras/{_NAME}|embeddings/{_NAME}|inputs/{_NAME})"
)
_PAGE = 500
_SHOWN = 20

log = logging.getLogger(__name__)


@dataclass
class Swept:
    """What a sweep found. `missing` names some of the objects that rows name and nobody has."""

    objects: int = 0
    removed: int = 0
    missing_objects: int = 0
    missing: list[str] = field(default_factory=list)


async def sweep(database: Database, storage: Storage, grace_seconds: float) -> Swept:
    """Compare objects with rows; only what is older than `grace_seconds` is touched.

    Raises:
        StorageFailed: the objects cannot be listed.
    """
    before = utc_now() - timedelta(seconds=grace_seconds)
    found = Swept()
    seen: set[int] = set()  # hashes: a million objects take some 60 MB
    await storage.clear_partial(before)
    async for page in storage.objects("owners"):
        ours = [stored for stored in page if _OURS.fullmatch(stored.key)]
        found.objects += len(ours)
        seen.update(hash(stored.key) for stored in ours)
        old = [stored.key for stored in ours if stored.modified < before]
        if not old:
            continue
        async with database.session() as session:
            known = await MaintenanceRepository(session).known_keys(old)
        for key in old:
            if key not in known and await remove_unnamed(database, storage, key):
                found.removed += 1
    await _look_for_missing(database, storage, before, seen, found)
    if found.removed or found.missing_objects:
        log.warning(
            "sweep: %d objects without a row removed, %d rows without their object: %s",
            found.removed,
            found.missing_objects,
            ", ".join(found.missing) or "none",
        )
    return found


async def remove_unnamed(database: Database, storage: Storage, key: str) -> bool:
    """Remove an object, unless a row names it by now: a LoRA's key comes back with its bytes.

    Whether it is gone. The row must be gone for good before: a row that comes back with a
    transaction that fails would name nothing.
    """
    async with database.session() as session:
        await LoraRepository(session, "").hold(key)
        if await MaintenanceRepository(session).known_keys([key]):
            return False
        try:
            await storage.delete(key)
        except StorageFailed:
            return False
    return True


async def remove_or_leave(database: Database, storage: Storage, key: str) -> None:
    """As `remove_unnamed`, for a caller whose row is gone all the same: else a sweep finds it."""
    removed = False
    with contextlib.suppress(*DATABASE_LOST):
        removed = await remove_unnamed(database, storage, key)
    if not removed:
        log.info("a deleted file stays: it was sent again, or waits for the next sweep")


async def _look_for_missing(
    database: Database, storage: Storage, before: datetime, seen: set[int], found: Swept
) -> None:
    async with database.session() as session:
        files = await MaintenanceRepository(session).file_keys(before)
    await _count_missing(database, storage, [key for key in files if hash(key) not in seen], found)
    after: uuid.UUID | None = None
    while True:
        async with database.session() as session:
            rows = await MaintenanceRepository(session).piece_keys(before, after, _PAGE)
        if not rows:
            return
        after = rows[-1][0]
        unseen = [key for _, keys in rows for key in keys if hash(key) not in seen]
        await _count_missing(database, storage, unseen, found)


async def _count_missing(
    database: Database, storage: Storage, keys: list[str], found: Swept
) -> None:
    for key in keys:
        if await storage.exists(key):
            continue
        async with database.session() as session:
            if not await MaintenanceRepository(session).known_keys([key]):
                continue  # deleted while we looked
        found.missing_objects += 1
        if len(found.missing) < _SHOWN:
            found.missing.append(key)
