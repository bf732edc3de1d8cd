"""What `/v1` answers: pictures, and events of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from app.api.deps import Rights, Services
from app.core.errors import NotFound
from app.dialects.asking import failure_of, read_images
from app.dialects.openai.errors import as_openai
from app.dialects.openai.schemas import ImagesIn
from app.dialects.pictures import as_base64, encoded
from app.models import Content
from app.services.contents.events import Event
from sdxl_contract.limits import STEPS_DEFAULT

_PING_SECONDS = 10.0
# Clients read these three; nothing here is counted in tokens.
_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def _about(asked: ImagesIn, content: Content) -> dict[str, Any]:
    width, height = content.parameters.get("width"), content.parameters.get("height")
    return {
        # The worker that draws decides a side that was left open.
        "size": f"{width}x{height}" if width and height else "auto",
        "quality": asked.quality or "auto",
        "background": "opaque",
        "output_format": asked.output_format or "png",
    }


async def images_response(services: Services, content: Content, asked: ImagesIn) -> dict[str, Any]:
    """OpenAI's `ImagesResponse` of a drawn content; each picture has its `seed` beside it."""
    data: list[dict[str, Any]] = []
    if asked.wants_url:
        seconds = services.settings.image_url_seconds
        data = [
            {"url": services.storage.image_url(image.object_key, seconds), "seed": image.seed}
            for image in content.images
        ]
    else:
        for image, text in zip(content.images, await _texts(services, content, asked), strict=True):
            data.append({"b64_json": text, "seed": image.seed})
    return {
        "created": int(content.created_at.timestamp()),
        "data": data,
        "content_id": str(content.id),
        **_about(asked, content),
    }


async def _texts(services: Services, content: Content, asked: ImagesIn) -> list[str]:
    wanted, sign = asked.output_format or "png", services.marking.sign_copy
    return [
        as_base64(await encoded(data, wanted, sign, asked.output_compression))
        for data in await read_images(services, content)
    ]


async def stream(
    rights: Rights, content: Content, asked: ImagesIn, kind: str = "image_generation"
) -> AsyncIterator[str]:
    """Server-sent events: some pictures on the way, then each finished one, or the error; nothing
    more once the caller's rights have ended."""
    services, caller = rights.services, rights.caller
    partials = Partials(
        asked.partial_images or 0, int(content.parameters.get("steps") or STEPS_DEFAULT)
    )
    created = int(content.created_at.timestamp())
    about = _about(asked, content)
    events = rights.while_they_hold(services.events.follow(content.id), lambda _: False)
    async for event in _with_pings(events):
        if event is None:
            yield ": still drawing\n\n"
        elif event.type == "preview":
            preview = str(event.data.get("image", "")).partition("base64,")[2]
            index = partials.take(int(event.data.get("step") or 0))
            if preview and index is not None:
                # Small and JPEG whatever was asked for: it is a look at what is being drawn.
                yield _event(
                    f"{kind}.partial_image",
                    {
                        **about,
                        "output_format": "jpeg",
                        "b64_json": preview,
                        "partial_image_index": index,
                        "created_at": created,
                    },
                )
    if not await rights.hold():
        return
    try:
        ended = await services.contents.get(caller.owner, content.id)
    except NotFound:
        return
    about = _about(asked, ended)
    failure = failure_of(ended)
    if failure is not None:
        error = json.loads(bytes(as_openai(failure).body))
        yield f"event: error\ndata: {json.dumps(error)}\n\n"
        return
    for text in await _texts(services, ended, asked):
        yield _event(
            f"{kind}.completed",
            {
                **_about(asked, ended),
                "b64_json": text,
                "created_at": created,
                "usage": _USAGE,
            },
        )


class Partials:
    """Which previews are shown: `count` of them, spread over the steps."""

    def __init__(self, count: int, steps: int) -> None:
        self._count = count
        self._steps = steps
        self._shown = 0

    def take(self, step: int) -> int | None:
        """The index that the preview of `step` is shown with; None where it is not shown."""
        due = self._steps * (self._shown + 1) / (self._count + 1)
        if self._shown >= self._count or step < due:
            return None
        self._shown += 1
        return self._shown - 1


async def _with_pings(events: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """`events`, and None now and then where nothing happens: proxies cut silent connections."""
    following: asyncio.Task[Event | None] | None = None

    async def take() -> Event | None:
        return await anext(events, None)

    try:
        while True:
            following = following or asyncio.create_task(take())
            done, _ = await asyncio.wait({following}, timeout=_PING_SECONDS)
            if not done:
                yield None
                continue
            event, following = following.result(), None
            if event is None:
                return
            yield event
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"


def request_id(content: Content | None = None) -> str:
    """What clients print with an error."""
    return f"req_{(content.id if content else uuid.uuid4()).hex}"
