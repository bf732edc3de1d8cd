"""Taking things down: a content, every copy of a picture, a LoRA or an embedding, whoever owns it.

Duty: rows and objects removed at once, for all owners; a LoRA's bytes refused from then on; a
record kept without the picture. Must not know: HTTP, who is allowed to ask.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.db import Database
from app.core.errors import StorageFailed
from app.core.pools import Duty, in_pool
from app.models import GenerationRecord, Image, InputImage
from app.models.base import utc_now
from app.models.takedown import Kind, Known, Takedown
from app.repositories.access.limits import LimitRepository
from app.repositories.inputs.images import remove_like, uploads_with
from app.repositories.upkeep.takedowns import TakedownRepository
from app.services.contents.listener import Waiters
from app.services.inputs.crops import known_by_crops
from app.services.inputs.likeness import NEAR_BITS, from_hex, is_telling, mirrored
from app.services.limits import day_start
from app.services.storage import Storage
from sdxl_contract.errors import ImageLoadFailed, InvalidRequest
from sdxl_contract.limits import IMAGE_MAX_BYTES

# Of an order: pictures that are read, objects that are tried for each, and seconds for all.
_MOST_READ, _MOST_TRIED, _READ_SECONDS = 8, 4, 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


class TakedownService:
    """Orders of the operator."""

    def __init__(self, database: Database, storage: Storage, waiters: Waiters) -> None:
        self._database = database
        self._storage = storage
        self._waiters = waiters

    async def take_down(self, kind: Kind, value: str, reason: str) -> Takedown:
        """Remove what `value` names, everywhere, and keep the record.

        Raises:
            InvalidRequest: `value` is not what `kind` asks for.
        """
        value = value.strip().lower()
        _check(kind, value)
        cropped = await self._crops(kind, value)
        async with self._database.session() as session:
            repository = TakedownRepository(session)
            ids: set[uuid.UUID] = set()
            keys: list[str] = []
            hashes: list[str] = []
            known: list[Known] = []
            if kind is Kind.LORA:
                keys += await repository.lora_keys(value)
                await repository.tell_of_lora(value)
            else:
                if kind is Kind.NEAR:
                    likenesses = [from_hex(value)]
                else:
                    hashes, likenesses = _known_by(await _named(session, kind, value))
                if kind is Kind.CONTENT:
                    ids.add(uuid.UUID(value))
                elif kind is Kind.PICTURE:
                    hashes.append(value)
                both = [*likenesses, *(mirrored(one) for one in likenesses)]
                known = [*(Known(one, NEAR_BITS) for one in both), *cropped]
                ids |= await repository.contents_with(hashes, known)
                # Near copies by their own hashes, too: what is being drawn from one is refused.
                for key, sha256 in await remove_like(session, hashes, known):
                    keys.append(key)
                    hashes.append(sha256)
            removed = await repository.remove(ids)
            for content, of_content in removed:
                keys += of_content
                hashes += _known_by(content.images)[0]
                if content.cost_usd:  # taking down gives no money back
                    day = day_start(content.created_at).date()
                    await LimitRepository(session).keep_cost(content.owner, day, content.cost_usd)
            takedown = Takedown(
                id=uuid.uuid4(),
                kind=kind.value,
                value=value,
                reason=reason,
                contents=[str(content.id) for content, _ in removed],
                created_at=utc_now(),
            )
            await repository.add(takedown, hashes, known)
        for content, _ in removed:
            self._waiters.announce(content.id)
        for key in keys:
            try:
                await self._storage.delete(key)
            except StorageFailed:
                log.warning("an object that was taken down stays until the next sweep")
        log.info("took down %s %s: %d contents", kind, value, len(removed))
        return takedown

    async def _crops(self, kind: Kind, value: str) -> list[Known]:
        """By what crops of the pictures that an order names are known, of those that can be read.

        No transaction is open meanwhile, and no order fails for it.
        """
        if kind not in (Kind.CONTENT, Kind.PICTURE):
            return []
        async with self._database.session() as session:
            named = await _named(session, kind, value)
        places: dict[str, list[str]] = {}  # by hash: copies have the same crops
        for one in named:
            places.setdefault(one.sha256, []).extend(_places(one))
        found: list[Known] = []
        unread = max(0, len(places) - _MOST_READ)
        try:
            async with asyncio.timeout(_READ_SECONDS):
                for keys in list(places.values())[:_MOST_READ]:
                    crops = await self._crops_of(keys[:_MOST_TRIED])
                    found += crops
                    unread += not crops
        except TimeoutError:
            unread = max(unread, 1)
        if unread:
            log.warning("of pictures to take down some could not be read: cropped copies stay")
        return found

    async def _crops_of(self, keys: Sequence[str]) -> list[Known]:
        """By what crops of one picture are known, from the first of its objects that can be read;
        none where none can."""
        for key in keys:
            try:
                data = await self._storage.get(key)
                if len(data) <= IMAGE_MAX_BYTES:
                    return await in_pool(Duty.IMAGES, known_by_crops, data)
            except (StorageFailed, ImageLoadFailed, OSError, ValueError) as error:
                log.debug("%s cannot be read: %s", key, type(error).__name__)
        return []

    async def drawn(
        self, since: datetime | None, until: datetime | None, sha256: str | None, limit: int
    ) -> list[GenerationRecord]:
        """Records of what was drawn, the newest first."""
        async with self._database.session() as session:
            return list(await TakedownRepository(session).records(since, until, sha256, limit))

    async def latest(self, limit: int) -> list[Takedown]:
        """The newest records."""
        async with self._database.session() as session:
            return list(await TakedownRepository(session).latest(limit))


async def _named(session: AsyncSession, kind: Kind, value: str) -> Sequence[Image | InputImage]:
    """The pictures that an order by content or hash names: drawn ones, then an upload."""
    repository = TakedownRepository(session)
    if kind is Kind.CONTENT:
        return await repository.pictures_of(uuid.UUID(value))
    uploads = await uploads_with(session, value, _MOST_TRIED)
    return [*await repository.pictures_with(value), *uploads]


def _places(picture: Image | InputImage) -> list[str]:
    """Where a picture can be read, the smallest first."""
    if isinstance(picture, Image):
        return picture.keys[::-1]
    return [picture.object_key]


def _known_by(images: Iterable[Image | InputImage]) -> tuple[list[str], list[int]]:
    """The hashes of pictures and of their signed files, and the likenesses that tell them apart."""
    pictures = list(images)
    hashes = [one.sha256 for one in pictures]
    hashes += [one.file_sha256 for one in pictures if isinstance(one, Image) and one.file_sha256]
    likenesses = [one.likeness for one in pictures if one.likeness is not None]
    return list(dict.fromkeys(hashes)), [one for one in likenesses if is_telling(one)]


def _check(kind: Kind, value: str) -> None:
    try:
        if kind is Kind.CONTENT:
            uuid.UUID(value)
        elif kind is Kind.NEAR:
            if not is_telling(from_hex(value)):
                raise ValueError("would be near every picture of one colour")
        elif not _SHA256.fullmatch(value):
            raise ValueError("must be a SHA-256: 64 hexadecimal digits")
    except ValueError as error:
        what = "must be a content's id" if kind is Kind.CONTENT else str(error)
        raise InvalidRequest(f"value: {what}", details={"field": "value"}) from None
