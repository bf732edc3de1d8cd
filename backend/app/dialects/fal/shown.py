"""Contents as fal shows requests and their results.

Must not know: routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.errors import Fault
from app.dialects.pictures import as_base64
from app.models import Content, Status
from app.services.storage import Storage

API = "/fal"
_SUFFIXES = {"jpeg": "jpg"}


def urls_of(base: str, model: str, content: Content) -> dict[str, str]:
    """Where a request's result and status are, and where it is cancelled."""
    owner, alias = model.split("/")[:2]
    place = f"{base}{API}/queue/{owner}/{alias}/requests/{content.id}"
    return {
        "response_url": place,
        "status_url": f"{place}/status",
        "cancel_url": f"{place}/cancel",
    }


def status_of(
    content: Content,
    model: str,
    base: str,
    progress: Mapping[str, Any],
    failure: Fault | None,
    *,
    with_logs: bool,
) -> dict[str, Any]:
    """A request's state.

    Args:
        progress: the last such event, if there was one.
        failure: why it has no pictures, where it has ended without.
    """
    shown: dict[str, Any] = {"request_id": str(content.id), **urls_of(base, model, content)}
    if content.status == Status.QUEUED:
        return {**shown, "status": "IN_QUEUE", "queue_position": 0, "logs": None}
    shown["logs"] = _logs(content, progress) if with_logs else None
    if content.status == Status.RUNNING:
        return {**shown, "status": "IN_PROGRESS"}
    shown |= {"status": "COMPLETED", "metrics": {"inference_time": _seconds(content)}}
    if failure is not None:
        shown |= {"error": failure.detail, "error_type": failure.code.lower()}
    return shown


def _logs(content: Content, progress: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not progress.get("steps"):
        return []
    moment = content.started_at or content.created_at
    return [
        {
            "message": f"{progress.get('step') or 0}/{progress['steps']}",
            "level": "INFO",
            "source": "worker",
            "timestamp": moment.isoformat(),
        }
    ]


def _seconds(content: Content) -> float:
    if content.finished_at is None:
        return 0.0
    return (content.finished_at - (content.started_at or content.finished_at)).total_seconds()


def output(
    content: Content,
    storage: Storage,
    url_seconds: int,
    prompt: str,
    pictures: Sequence[bytes] | None = None,
) -> dict[str, Any]:
    """What a drawn request gives. `pictures`: their bytes, where they are wanted in the answer."""
    format_name = str(content.parameters.get("output_format") or "png")
    images = []
    for number, image in enumerate(content.images):
        url = storage.image_url(image.object_key, url_seconds)
        if pictures is not None:
            url = f"data:image/{format_name};base64,{as_base64(pictures[number])}"
        images.append(
            {
                "url": url,
                "width": image.width,
                "height": image.height,
                "content_type": f"image/{format_name}",
                "file_name": f"{image.id}.{_SUFFIXES.get(format_name, format_name)}",
            }
        )
    return {
        "images": images,
        "timings": {"inference": _seconds(content)},
        "seed": content.parameters["seed"],
        "has_nsfw_concepts": [False] * len(images),
        "prompt": prompt,
    }
