"""Contents as Replicate shows predictions; the base model as it shows a model.

Must not know: routes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.dialects.replicate.schemas import InputIn
from app.models import Content, DialectCall, Status
from app.services.calls.calls import Called
from app.services.storage import Storage

API = "/replicate/v1"
_STATES = {
    Status.QUEUED: "starting",
    Status.RUNNING: "processing",
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
}
_BAR = 10
# A day without meaning: which moment a model's file was made is not known.
_MADE = "2023-07-26T17:53:09Z"


def prediction(
    called: Called,
    storage: Storage,
    url_seconds: int,
    base: str,
    progress: Mapping[str, Any] | None = None,
    *,
    while_waiting: bool = False,
) -> dict[str, Any]:
    """A prediction.

    Args:
        base: where the server is reached.
        progress: the last such event of a content that is being drawn.
        while_waiting: it answers a call that waited: clients take any state but `starting` as
            the last one.
    """
    content, call = called
    status = Status(content.status)
    state = "starting" if while_waiting and not status.is_final else _STATES[status]
    place = f"{base}{API}/predictions/{content.id}"
    return {
        "id": str(content.id),
        "model": call.model,
        "version": call.version or version_of(call.model),
        "status": state,
        "input": call.input,
        "output": [storage.image_url(image.object_key, url_seconds) for image in content.images]
        or None,
        "error": None if status is not Status.FAILED else (content.error or {}).get("message"),
        "logs": _logs(content, progress),
        "metrics": _metrics(content),
        "source": "api",
        "data_removed": False,
        "created_at": _moment(content.created_at),
        "started_at": _moment(content.started_at),
        "completed_at": _moment(content.finished_at),
        **_webhook(call),
        "urls": {"get": place, "cancel": f"{place}/cancel", "web": f"{base}/"},
    }


def _webhook(call: DialectCall) -> dict[str, Any]:
    if call.webhook_url is None:
        return {}
    return {"webhook": call.webhook_url, "webhook_events_filter": call.webhook_events}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _logs(content: Content, progress: Mapping[str, Any] | None) -> str:
    seed = f"Using seed: {content.parameters['seed']}\n"
    steps = int(content.parameters.get("steps") or 0)
    step = int((progress or {}).get("step") or 0)
    if progress and progress.get("steps"):
        steps = int(progress["steps"])
    if content.status == Status.SUCCEEDED:
        step = steps
    if not step or not steps:
        return seed
    share = min(1.0, step / steps)
    bar = "#" * round(_BAR * share)
    return f"{seed}{round(100 * share):3d}%|{bar:<{_BAR}}| {step}/{steps}\n"


def _metrics(content: Content) -> dict[str, Any]:
    if content.finished_at is None:
        return {}
    started = content.started_at or content.finished_at
    found = {
        "predict_time": (content.finished_at - started).total_seconds(),
        "total_time": (content.finished_at - content.created_at).total_seconds(),
    }
    if content.status == Status.SUCCEEDED:
        found["image_count"] = len(content.images)
    return found


def version_of(model: str) -> str:
    """The one version that a model has here: 64 hexadecimal digits, as Replicate's."""
    return hashlib.sha256(f"modal-sdxl-lora/{model}".encode()).hexdigest()


def version_out(version: str) -> dict[str, Any]:
    """A model's version with the schema of its input and output."""
    known = InputIn.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = known.pop("$defs", {})
    schemas |= {
        "Input": {**known, "title": "Input"},
        # No iterator: all pictures come at once.
        "Output": {
            "type": "array",
            "items": {"type": "string", "format": "uri"},
            "title": "Output",
        },
    }
    return {
        "id": version,
        "created_at": _MADE,
        "cog_version": "0.14.0",
        "openapi_schema": {
            "openapi": "3.1.0",
            "info": {"title": "SDXL with LoRAs", "version": "1"},
            "paths": {},
            "components": {"schemas": schemas},
        },
    }


def model_out(owner: str, name: str, base: str) -> dict[str, Any]:
    """A model: whatever it is called, this server's base model."""
    return {
        "url": f"{base}/",
        "owner": owner,
        "name": name,
        "description": "SDXL with any LoRA, on this server",
        "visibility": "private",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_out(version_of(f"{owner}/{name}")),
    }
