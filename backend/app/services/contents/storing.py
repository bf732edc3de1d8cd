"""A content's pictures in the object store: stored patiently, removed where no row will name them.

An object's key names the attempt, so that two attempts never collide.
Must not know: jobs, and who drew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Awaitable, Callable

from PIL import Image as PillowImage

from app.core.errors import StorageFailed, is_disk_full
from app.core.pools import Duty, in_pool
from app.models import Content, Image
from app.models.base import utc_now
from app.services.inputs.likeness import likeness
from app.services.storage import Storage
from app.services.thumbnails import encode, make_thumbnail
from sdxl_contract.request import OutputFormat
from sdxl_contract.result import GenerateResult

_FILES = {
    OutputFormat.PNG: (".png", "image/png"),
    OutputFormat.JPEG: (".jpg", "image/jpeg"),
    OutputFormat.WEBP: (".webp", "image/webp"),
}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 3.0

log = logging.getLogger(__name__)

# Called where the store has failed: returns after having told of it, raises where that is the end.
OnTrouble = Callable[[StorageFailed], Awaitable[None]]
# A picture's file as it is to be stored, or, where the last argument says so, its small copy's.
Sign = Callable[[Image, bytes, bool], Awaitable[bytes]]


def _small_and_likeness(
    picture: bytes, shrunk: PillowImage.Image | None
) -> tuple[bytes | None, int]:
    small = make_thumbnail(picture) if shrunk is None else encode(shrunk)
    return small, likeness(small or picture)


async def store(
    storage: Storage,
    image: Image,
    data: bytes,
    shrunk: PillowImage.Image | None,
    sign: Sign,
    on_trouble: OnTrouble,
) -> None:
    """Store one picture and its small copy, signed; a store that is away is asked again.

    Args:
        shrunk: the small copy's pixels, where somebody has shrunk the picture already.

    Raises:
        MarkingFailed: it could not be signed.
        StorageFailed: the disk is full.
        whatever `on_trouble` raises.
    """
    signed = await sign(image, data, False)
    image.file_sha256 = hashlib.sha256(signed).hexdigest()
    image.size_bytes = len(signed)
    pause = _FIRST_PAUSE_S
    while True:
        try:
            await storage.put(image.object_key, signed)
            break
        except StorageFailed as error:
            if is_disk_full(error):
                raise  # somebody has to make room
            log.warning("%s: the picture cannot be stored; again", image.generation_id)
            await on_trouble(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    await _add_thumbnail(storage, image, data, shrunk, sign)


async def _add_thumbnail(
    storage: Storage, image: Image, data: bytes, shrunk: PillowImage.Image | None, sign: Sign
) -> None:
    """Store a small copy beside the picture; a picture without one is whole all the same."""
    try:
        small, image.likeness = await in_pool(Duty.IMAGES, _small_and_likeness, data, shrunk)
        if small is None:
            return
        key = image.object_key.rpartition(".")[0] + "-small.webp"
        await storage.put(key, await sign(image, small, True))
        image.thumbnail_key = key
    except (OSError, StorageFailed) as error:
        log.warning("%s: no thumbnail: %s", image.generation_id, type(error).__name__)


async def discard(storage: Storage, images: list[Image]) -> None:
    """Remove what was stored and no row will name; the sweep removes what stays."""
    for key in [key for image in images for key in image.keys]:
        with contextlib.suppress(StorageFailed):
            await storage.delete(key)


async def clear_earlier(storage: Storage, content: Content) -> None:
    """Remove what attempts that died had stored: the fence keeps them from naming it."""
    try:
        for key in await storage.keys(_folder(content)):
            attempt = key.rpartition("/")[2].partition("-")[0]
            if attempt.isdecimal() and int(attempt) < content.attempt:
                await storage.delete(key)
    except StorageFailed:
        log.warning("content %s: leftovers could not be removed", content.id)


def _folder(content: Content) -> str:
    return f"owners/{content.owner}/images/{content.id}"


def image_row(
    content: Content, result: GenerateResult, position: int, data: bytes, watermark: str | None
) -> Image:
    """The row of one picture, whose file is `data`, with what is in its pixels."""
    seeds = [image.seed for image in result.images] or result.metadata.seeds
    first = result.metadata.seed_used
    width, height = result.image_size
    # Its bytes were held against the format that was asked for.
    suffix, media_type = _FILES[OutputFormat(content.parameters.get("output_format", "png"))]
    name = f"{content.attempt}-{position}-{uuid.uuid4().hex[:8]}{suffix}"
    return Image.transient(
        id=uuid.uuid4(),
        generation_id=content.id,
        position=position,
        object_key=f"{_folder(content)}/{name}",
        seed=seeds[position] if position < len(seeds) else first + position,
        width=width,
        height=height,
        sha256=hashlib.sha256(data).hexdigest(),
        watermark=watermark,
        size_bytes=len(data),
        media_type=media_type,
        created_at=utc_now(),
    )
