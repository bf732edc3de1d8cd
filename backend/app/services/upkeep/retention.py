"""Contents that are older than they are to be kept, and what else has had its time.

Must not know: HTTP, and when it is called.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from app.core.db import Database
from app.core.errors import StorageFailed
from app.models.base import utc_now
from app.repositories.inputs.images import remove_unused_before
from app.repositories.upkeep.maintenance import MaintenanceRepository
from app.services.storage import Storage
from app.services.upkeep.sweep import remove_unnamed

_AT_ONCE = 200

log = logging.getLogger(__name__)


async def remove_old(
    database: Database, storage: Storage, days: int | None, bin_days: int | None = None
) -> int:
    """Remove contents that ended more than `days` days ago (None: none), uploaded pictures that no
    content was accepted with since then and none waits for, what has been in the bin
    for `bin_days` days (None: stays), and expired sessions.

    Rows go first: a crash in between leaves objects that the sweep finds, never rows without
    their pictures. Returns how many contents went.
    """
    before = None if days is None else utc_now() - timedelta(days=days)
    removed = 0
    while before is not None:
        async with database.session() as session:
            count, keys = await MaintenanceRepository(session).remove_ended_before(before, _AT_ONCE)
        await _delete(storage, keys)
        removed += count
        if count < _AT_ONCE:
            break
    while before is not None:
        async with database.session() as session:
            keys = await remove_unused_before(session, before, _AT_ONCE)
        for key in keys:
            await remove_unnamed(database, storage, key)
        if len(keys) < _AT_ONCE:
            break
    while bin_days is not None:
        binned_before = utc_now() - timedelta(days=bin_days)
        async with database.session() as session:
            count, keys = await MaintenanceRepository(session).empty_bin(binned_before, _AT_ONCE)
        await _delete(storage, keys)
        removed += count
        if count < _AT_ONCE:
            break
    async with database.session() as session:
        await MaintenanceRepository(session).remove_leftovers(before)
    if removed:
        log.info("removed %d contents and pictures that had had their time", removed)
    return removed


async def _delete(storage: Storage, keys: list[str]) -> None:
    for key in keys:
        try:
            await storage.delete(key)
        except StorageFailed:
            log.warning("an expired picture stays until the next sweep")
