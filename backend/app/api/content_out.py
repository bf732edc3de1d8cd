"""A content's row as the API shows it: every URL signed anew."""

from __future__ import annotations

from collections.abc import Mapping

from app.models import PAUSED, Avatar, Content, Image, LoraModel, Status
from app.models.base import utc_now
from app.schemas.content import (
    ContentOut,
    CostOut,
    CostPart,
    ErrorOut,
    ImageOut,
    ParametersOut,
    SafetyOut,
    UsedLora,
    WaitingFor,
    WrittenOut,
)
from app.schemas.identities import AvatarOut
from app.schemas.loras import LoraOut
from app.services.storage import Storage


def image_out(image: Image, storage: Storage, image_url_seconds: int) -> ImageOut:
    """`image` as the API shows it; its URLs signed now."""
    return ImageOut(
        id=image.id,
        position=image.position,
        starred=image.starred_at is not None,
        url=storage.image_url(image.object_key, image_url_seconds),
        thumbnail_url=None
        if image.thumbnail_key is None
        else storage.image_url(image.thumbnail_key, image_url_seconds),
        seed=image.seed,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        file_sha256=image.file_sha256 or image.sha256,
    )


def cover_url(image: Image | None, storage: Storage, image_url_seconds: int) -> str | None:
    """The small picture that stands for something; None where it has none, or its is in the bin."""
    if image is None or image.deleted_at is not None:
        return None
    return storage.image_url(image.thumbnail_key or image.object_key, image_url_seconds)


def lora_out(lora: LoraModel, storage: Storage, image_url_seconds: int) -> LoraOut:
    """`lora` as the API shows it; its cover's URL signed now."""
    out = LoraOut.model_validate(lora)
    out.cover_url = cover_url(lora.cover, storage, image_url_seconds)
    return out


def avatar_out(avatar: Avatar, storage: Storage, image_url_seconds: int) -> AvatarOut:
    """`avatar` as the API shows it; its cover's URL signed now."""
    out = AvatarOut.model_validate(avatar)
    out.cover_url = cover_url(avatar.cover, storage, image_url_seconds)
    return out


def content_out(
    content: Content,
    storage: Storage,
    image_url_seconds: int,
    line_waits_for: Mapping[str, str] | None = None,
    *,
    binned: bool = False,
) -> ContentOut:
    """`content` with its pictures, as the API shows it; every URL signed now.

    `line_waits_for`: what keeps every content in the line from being taken up, if anything.
    """
    # Of a content that is not in the bin itself, `binned` shows the pictures that are.
    wanted = binned and content.deleted_at is None
    images = [
        image_out(image, storage, image_url_seconds)
        for image in content.images
        if content.deleted_at is not None or (image.deleted_at is not None) is wanted
    ]
    cost = None
    if content.cost_seconds is not None:
        cost = CostOut(
            usd=content.cost_usd,
            gpu=content.cost_gpu,
            seconds=content.cost_seconds,
            parts=_cost_parts(content),
        )
    reports = {report["sha256"]: report for report in content.lora_reports or []}
    return ContentOut(
        id=content.id,
        status=Status(content.status),
        prompt=content.prompt,
        negative_prompt=content.negative_prompt,
        written=None if content.written is None else WrittenOut.model_validate(content.written),
        avatar_id=content.avatar_id,
        batch_id=content.batch_id,
        batch_place=content.batch_place,
        image_url=images[0].url if images else None,
        images=images,
        parameters=ParametersOut.model_validate(content.parameters),
        waiting_for=_waiting_for(content, line_waits_for),
        loras=[
            UsedLora.model_validate({**reports.get(lora["sha256"], {}), **lora})
            for lora in content.loras
        ],
        timings=content.timings,
        cost=cost,
        error=None if content.error is None else ErrorOut(**content.error),
        model_clean=content.model_clean,
        safety=None if content.safety is None else SafetyOut.model_validate(content.safety),
        created_at=content.created_at,
        deadline_at=content.deadline_at,
        started_at=content.started_at,
        finished_at=content.finished_at,
        deleted_at=content.deleted_at,
    )


def _waiting_for(content: Content, line_waits_for: Mapping[str, str] | None) -> WaitingFor | None:
    if Status(content.status).is_final:
        return None
    found: Mapping[str, str] | None = content.waiting_for
    if content.status == Status.QUEUED:
        # What it met itself may be over; a time before which it is not tried again is not.
        own = found if content.retry_at is not None and content.retry_at > utc_now() else None
        is_paused = found is not None and found["reason"] == PAUSED["reason"]
        found = found if is_paused else line_waits_for or own
    return None if found is None else WaitingFor.model_validate(found)


def _cost_parts(content: Content) -> dict[str, CostPart] | None:
    if content.cost_parts is None:
        return None
    per_second = None
    if content.cost_usd is not None and content.cost_seconds:
        per_second = content.cost_usd / content.cost_seconds
    return {
        name: CostPart(usd=None if per_second is None else per_second * seconds, seconds=seconds)
        for name, seconds in content.cost_parts.items()
    }
