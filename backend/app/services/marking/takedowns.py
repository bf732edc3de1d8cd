"""Taking things down: a content, every copy of a picture, a LoRA or an embedding, whoever owns it.

Duty: rows and objects removed at once, for all owners; a LoRA's bytes refused from then on; a
record kept without the picture. Must not know: HTTP, who is allowed to ask.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable
from datetime import datetime

from app.core.db import Database
from app.core.errors import StorageFailed
from app.models import GenerationRecord, Image
from app.models.base import utc_now
from app.models.takedown import Kind, Takedown
from app.repositories.access.limits import LimitRepository
from app.repositories.inputs.images import likenesses_with, remove_like
from app.repositories.upkeep.takedowns import TakedownRepository
from app.services.contents.listener import Waiters
from app.services.inputs.likeness import NEAR_BITS, from_hex, is_telling, mirrored
from app.services.limits import day_start
from app.services.storage import Storage
from sdxl_contract.errors import InvalidRequest

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
        async with self._database.session() as session:
            repository = TakedownRepository(session)
            ids: set[uuid.UUID] = set()
            keys: list[str] = []
            hashes: list[str] = []
            likenesses: list[int] = []
            if kind is Kind.LORA:
                keys += await repository.lora_keys(value)
                await repository.tell_of_lora(value)
            else:
                if kind is Kind.CONTENT:
                    ids.add(uuid.UUID(value))
                    images = await repository.pictures_of(uuid.UUID(value))
                    hashes, likenesses = _known_by(images)
                elif kind is Kind.PICTURE:
                    hashes, likenesses = _known_by(await repository.pictures_with(value))
                    hashes.append(value)
                    likenesses += await likenesses_with(session, value)
                else:
                    likenesses = [from_hex(value)]
                likenesses += [mirrored(one) for one in likenesses]
                ids |= await repository.contents_with(hashes, likenesses, NEAR_BITS)
                # Near copies by their own hashes, too: what is being drawn from one is refused.
                for key, sha256 in await remove_like(session, hashes, likenesses, NEAR_BITS):
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
            await repository.add(takedown, hashes, likenesses)
        for content, _ in removed:
            self._waiters.announce(content.id)
        for key in keys:
            try:
                await self._storage.delete(key)
            except StorageFailed:
                log.warning("an object that was taken down stays until the next sweep")
        log.info("took down %s %s: %d contents", kind, value, len(removed))
        return takedown

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


def _known_by(images: Iterable[Image]) -> tuple[list[str], list[int]]:
    """The hashes of pictures and of their signed files, and the likenesses that tell them apart."""
    pictures = list(images)
    hashes = [value for one in pictures for value in (one.sha256, one.file_sha256) if value]
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
