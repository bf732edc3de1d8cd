"""Whose jobs of this dialect are open: progress and interrupt are one key's, and no other's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from app.api.deps import Caller, Services
from app.core.errors import Conflict, NotFound
from app.models import Content, Status
from app.models.base import utc_now

_LOOK_BACK = timedelta(hours=2)
_STOPPED_AT_ONCE = 100


def mark_of(caller: Caller) -> str:
    """What this key's contents of the dialect are marked with."""
    return f"a1111:{caller.key_id or caller.owner}:"


async def _open(services: Services, caller: Caller, limit: int) -> Sequence[Content]:
    return await services.contents.open_marked(
        caller.owner, mark_of(caller), after=utc_now() - _LOOK_BACK, limit=limit
    )


async def stop_all(services: Services, caller: Caller) -> None:
    """Cancel every open content that this key asked for by this dialect."""
    for content in await _open(services, caller, _STOPPED_AT_ONCE):
        with contextlib.suppress(NotFound, Conflict):  # it has ended meanwhile
            await services.contents.cancel(caller.owner, content.id)


async def progress(services: Services, caller: Caller, *, with_image: bool) -> dict[str, Any]:
    """How far the key's newest open content is; nothing where there is none."""
    found = await _open(services, caller, 20)
    if not found:
        return _progress()
    # The one that is being drawn, rather than one that waits behind it.
    content = next((one for one in found if one.status == Status.RUNNING), found[0])
    latest = await services.events.latest(content.id)
    told = latest.get("progress", {})
    step, steps = told.get("step") or 0, told.get("steps") or content.parameters["steps"]
    preview = str(latest.get("preview", {}).get("image", "")).partition("base64,")[2]
    return _progress(
        step=step,
        steps=steps,
        share=min(0.99, max(0.01, step / steps)),
        eta=told.get("eta_seconds") or 0.0,
        job=str(content.id),
        count=len(found),
        stamp=f"{content.created_at:%Y%m%d%H%M%S}",
        image=preview or None if with_image else None,
        interrupted=content.cancel_requested_at is not None,
    )


def _progress(
    *,
    step: int = 0,
    steps: int = 0,
    share: float = 0.0,
    eta: float = 0.0,
    job: str = "",
    count: int = 0,
    stamp: str = "0",
    image: str | None = None,
    interrupted: bool = False,
) -> dict[str, Any]:
    return {
        "progress": share,
        "eta_relative": eta,
        "state": {
            "skipped": False,
            "interrupted": interrupted,
            "stopping_generation": interrupted,
            "job": job,
            "job_count": count,
            "job_timestamp": stamp,
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": image,
        "textinfo": None,
    }
