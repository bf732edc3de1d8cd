"""What a content was drawn from, with the manifest that its pictures are to keep.

A stranger's manifest is first tried in a process of its own, with a deadline and a bound of memory:
what is read there is read again here, by the same library, when the picture is signed. What we
signed ourselves was tried when it was.
Must not know: HTTP, how pictures are signed.
"""

from __future__ import annotations

import logging
import uuid

from app.core.db import DATABASE_LOST, Database
from app.core.errors import StorageFailed
from app.models import Content
from app.repositories.inputs.images import InputRepository
from app.services.inputs.using import find_picture
from app.services.marking.marker import Source
from app.services.marking.verifying import can_be_kept
from app.services.storage import Storage

_MANIFEST = b"jumb"  # the kind of a manifest's boxes, plain in every format

log = logging.getLogger(__name__)


async def find_source(content: Content, database: Database, storage: Storage) -> Source | None:
    """The picture that `content` was drawn from, if it was from one.

    One that is gone, or cannot be had now, is named by its hash: its manifest is no reason to lose
    a picture.
    """
    use = content.parameters.get("image")
    if not use:
        return None
    named = Source(use["sha256"])
    try:
        async with database.session() as session:
            found = await find_picture(session, content.owner, uuid.UUID(use["image_id"]))
            if found is None:
                return named
            named = Source(found.sha256, found.media_type)
            drawn = await InputRepository(session, content.owner).drawn_by_sha256(found.sha256)
        file = await storage.get(found.object_key)
    except (*DATABASE_LOST, StorageFailed) as error:
        log.warning("content %s: its source is away: %s", content.id, type(error).__name__)
        return named
    if _MANIFEST not in file:
        return named
    if drawn is None and not await can_be_kept(file, found.media_type):
        log.info("content %s: its source's manifest cannot be kept", content.id)
        return named
    return Source(found.sha256, found.media_type, file)
