"""Every call as data: what to send, and how to read the answer. No input or output happens here.

Both clients send these, so that they cannot differ in anything but waiting.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from sdxl_client.errors import ApiError, Unauthorized
from sdxl_client.models import (
    Batch,
    Comparison,
    Content,
    Key,
    Lora,
    LoraUse,
    Page,
    Verification,
    Webhook,
)

API = "/api/v1"
T = TypeVar("T")
Id = uuid.UUID | str
_WAIT_MAX_SECONDS = 600


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `repeats`: whether sending it again does nothing twice."""

    method: str
    path: str
    read: Callable[[Any], T]
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] | None = None
    file: Path | None = None
    repeats: bool = True
    wait_seconds: float = 0.0  # that the server itself may wait before it answers


def parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body: what is None is left to the server."""
    body = {name: value for name, value in values.items() if value is not None}
    if "loras" in body:
        body["loras"] = [
            use.model_dump(mode="json", exclude_none=True)
            if isinstance(use, LoraUse)
            else {"name": use}
            if isinstance(use, str)
            else use
            for use in body["loras"]
        ]
    return {k: str(v) if isinstance(v, uuid.UUID) else v for k, v in body.items()}


def generate(
    body: Mapping[str, Any], *, wait: float, idempotency_key: str | None = None
) -> Call[Content]:
    """Ask for pictures. Without a key of the caller's, one is made: the same at each repetition."""
    seconds = int(min(max(wait, 0), _WAIT_MAX_SECONDS))
    prefer = f"wait={seconds}" if seconds else "respond-async"
    headers = {"Prefer": prefer, "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Call(
        "POST",
        f"{API}/content/generate",
        Content.model_validate,
        json=parameters(body),
        headers=headers,
        wait_seconds=seconds,
    )


def batch(body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[uuid.UUID]:
    """Ask for many; answers the batch's id."""
    return Call(
        "POST",
        f"{API}/content/batch",
        lambda answer: uuid.UUID(answer["batch_id"]),
        json=parameters(body),
        headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
    )


def read_batch(batch_id: Id) -> Call[Batch]:
    """How far a batch is."""
    return Call("GET", f"{API}/content/batch/{batch_id}", Batch.model_validate)


def contents(
    *, limit: int, cursor: str | None, status: str | None, batch_id: Id | None
) -> Call[Page[Content]]:
    """Some contents, newest first."""
    params = {"limit": limit, "cursor": cursor, "status": status, "batch_id": batch_id}
    return Call(
        "GET",
        f"{API}/content",
        Page[Content].model_validate,
        params={k: str(v) for k, v in params.items() if v is not None},
    )


def read_content(content_id: Id) -> Call[Content]:
    """One content; its URLs are signed anew."""
    return Call("GET", f"{API}/content/{content_id}", Content.model_validate)


def delete_content(content_id: Id) -> Call[None]:
    """Remove a content and its pictures."""
    return Call("DELETE", f"{API}/content/{content_id}", _nothing)


def cancel(content_id: Id) -> Call[Content]:
    """Stop a content; of one that is cancelled already this says so."""
    return Call("POST", f"{API}/content/{content_id}/cancel", Content.model_validate)


def replay(content_id: Id) -> Call[Content]:
    """The same request again, its seed included."""
    path = f"{API}/content/{content_id}/replay"
    return Call("POST", path, Content.model_validate, repeats=False)


def verify(file: Path) -> Call[Verification]:
    """What a picture says of itself; needs no key."""
    return Call("POST", f"{API}/verify", Verification.model_validate, file=file)


def replay_file(file: Path) -> Call[Content]:
    """Draw a picture again from the receipt in it."""
    return Call("POST", f"{API}/replays", Content.model_validate, file=file, repeats=False)


def compare(file: Path, content_id: Id) -> Call[Comparison]:
    """A picture against what was drawn from its receipt."""
    form = {"content_id": str(content_id)}
    return Call(
        "POST", f"{API}/replays/comparison", Comparison.model_validate, form=form, file=file
    )


def loras() -> Call[Page[Lora]]:
    """The library."""
    return Call("GET", f"{API}/loras/models", Page[Lora].model_validate)


def upload_lora(file: Path, name: str | None, description: str, tags: Sequence[str]) -> Call[Lora]:
    """Put a file into the library; bytes that are there already give the LoRA that has them."""
    form = {"name": name or file.stem, "description": description}
    if tags:
        form["tags"] = ",".join(tags)
    return Call("POST", f"{API}/loras/models/upload", Lora.model_validate, form=form, file=file)


def delete_lora(lora_id: Id) -> Call[None]:
    """Remove a LoRA that nothing needs any more."""
    return Call("DELETE", f"{API}/loras/models/{lora_id}", _nothing)


def webhooks() -> Call[Page[Webhook]]:
    """All webhooks."""
    return Call("GET", f"{API}/webhooks", Page[Webhook].model_validate)


def add_webhook(body: Mapping[str, Any]) -> Call[Webhook]:
    """A new webhook, with its secret."""
    return Call(
        "POST",
        f"{API}/webhooks",
        Webhook.model_validate,
        json=parameters(body),
        repeats=False,
    )


def delete_webhook(webhook_id: Id) -> Call[None]:
    """Remove a webhook."""
    return Call("DELETE", f"{API}/webhooks/{webhook_id}", _nothing)


def test_webhook(webhook_id: Id) -> Call[dict[str, Any]]:
    """Send it a message that means nothing."""
    return Call("POST", f"{API}/webhooks/{webhook_id}/test", dict, repeats=False)


def rotate_webhook(webhook_id: Id) -> Call[Webhook]:
    """A new secret."""
    path = f"{API}/webhooks/{webhook_id}/rotate"
    return Call("POST", path, Webhook.model_validate, repeats=False)


def keys() -> Call[Page[Key]]:
    """The owner's valid keys."""
    return Call("GET", f"{API}/keys", Page[Key].model_validate)


def add_key(name: str) -> Call[Key]:
    """A new key, with its secret."""
    return Call("POST", f"{API}/keys", Key.model_validate, json={"name": name}, repeats=False)


def revoke_key(key_id: Id) -> Call[None]:
    """Make a key invalid."""
    return Call("DELETE", f"{API}/keys/{key_id}", _nothing)


def session() -> Call[dict[str, Any]]:
    """Whose key this is."""
    return Call("GET", f"{API}/session", dict)


def model() -> Call[dict[str, Any]]:
    """The base model and its limits."""
    return Call("GET", f"{API}/model", dict)


def ready() -> Call[dict[str, Any]]:
    """Whether the server is."""
    return Call("GET", "/health/ready", dict)


def _nothing(_: Any) -> None:
    return None


def error_of(status: int, body: Any, retry_after: str | None) -> ApiError:
    """The exception that an answer stands for."""
    problem = body if isinstance(body, dict) else {}
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    kind = Unauthorized if status == 401 else ApiError
    return kind(status, problem, seconds)
