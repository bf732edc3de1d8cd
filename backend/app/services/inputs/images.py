"""The pictures that an owner uploaded to draw from.

Duty: what is kept was looked at, is there once per owner, and goes when it has had its time.
Must not know: HTTP, how bytes are stored, what is drawn.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from app.core.db import Database
from app.core.errors import Conflict, NotFound, TooLarge
from app.core.pools import Duty, in_pool
from app.models import Image, InputImage
from app.models.base import utc_now
from app.models.takedown import shape_of
from app.repositories.inputs.images import InputRepository
from app.services.inputs.reading import look_at
from app.services.storage import Storage
from app.services.upkeep.sweep import remove_or_leave
from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import IMAGE_MAX_BYTES

_LISTED = 200


class UploadedImage(NamedTuple):
    """A picture, and whether this call brought it."""

    image: InputImage
    is_new: bool


class InputImageService:
    """Every owner's own."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    async def upload(self, owner: str, data: bytes) -> UploadedImage:
        """Take a picture in; the same bytes again give the one that is there.

        Raises:
            ImageLoadFailed: it is none that can be drawn from.
            TooLarge, StorageFailed: it cannot be kept.
        """
        if len(data) > IMAGE_MAX_BYTES:
            raise TooLarge(
                f"The file has {len(data)} bytes: a picture may have at most {IMAGE_MAX_BYTES}.",
                field="file",
                details={"maximum": IMAGE_MAX_BYTES},
            )
        look = await in_pool(Duty.IMAGES, look_at, data)
        key = f"owners/{owner}/inputs/{look.sha256}.{look.ending}"
        async with self._database.session() as session:
            repository = InputRepository(session, owner)
            shape = shape_of(look.width, look.height)
            if await repository.is_taken_down(look.sha256, look.likeness, shape):
                raise ImageLoadFailed(
                    "This picture, or one that is nearly the same, was taken down and cannot be "
                    "used here.",
                    details={"field": "file", "reason": "taken_down"},
                )
            # Two uploads of the same bytes, or one and a deletion, share the object: take turns.
            await repository.hold(key)
            there = await repository.by_sha256(look.sha256)
            if there is not None:
                await repository.use(there.id)
                return UploadedImage(there, is_new=False)
            await self._storage.put(key, data)
            now = utc_now()
            image = InputImage(
                id=uuid.uuid4(),
                owner=owner,
                sha256=look.sha256,
                size_bytes=len(data),
                width=look.width,
                height=look.height,
                media_type=look.media_type,
                object_key=key,
                likeness=look.likeness,
                created_at=now,
                used_at=now,
            )
            await repository.add(image)
        return UploadedImage(image, is_new=True)

    async def list(self, owner: str) -> Sequence[InputImage]:
        """The newest of an owner's."""
        async with self._database.session() as session:
            return await InputRepository(session, owner).list(_LISTED)

    async def get(self, owner: str, image_id: uuid.UUID) -> InputImage | Image:
        """One that can be drawn from: uploaded, or drawn here.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        async with self._database.session() as session:
            repository = InputRepository(session, owner)
            image = await repository.get(image_id) or await repository.drawn(image_id)
        if image is None:
            raise NotFound("There is no picture with this id.")
        return image

    async def delete(self, owner: str, image_id: uuid.UUID) -> None:
        """Remove one that no waiting content is drawn from.

        Raises:
            NotFound: there is none, or it is another owner's.
            Conflict: a content waits for it.
        """
        async with self._database.session() as session:
            repository = InputRepository(session, owner)
            image = await repository.get(image_id, lock=True)
            if image is None:
                raise NotFound("There is no uploaded picture with this id.")
            waiting = await repository.waiting(image_id)
            if waiting:
                raise Conflict(
                    f"{waiting} waiting contents are still to be drawn from this picture.",
                    details={"reason": "in_use", "contents": waiting},
                )
            key = image.object_key
            await repository.delete(image)
        await remove_or_leave(self._database, self._storage, key)
