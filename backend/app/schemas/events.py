"""What `GET /content/{id}/events` sends: the JSON in each event's `data`, by the event's type.

Must not know: how events are kept and sent.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.content import ContentOut, ErrorOut, WaitingFor


class QueuedEvent(BaseModel):
    """`queued`: it waits; sent first, and whenever its place in the line or the reason changes."""

    model_config = ConfigDict(extra="allow")

    position: int = Field(description="contents ahead of it; 0: it is next")
    waiting_for: WaitingFor | None = Field(default=None, description="what all of them wait for")


class StartedEvent(BaseModel):
    """`started`: a worker has taken it up."""

    model_config = ConfigDict(extra="allow")


class ProgressEvent(BaseModel):
    """`progress`: how far the drawing is."""

    model_config = ConfigDict(extra="allow")

    phase: str = Field(description="as in the content's timings, such as denoise")
    step: int = 0
    steps: int = Field(default=0, description="0 outside of the denoising loop")
    eta_seconds: float | None = None


class PreviewEvent(BaseModel):
    """`preview`: a small picture of what is being drawn."""

    model_config = ConfigDict(extra="allow")

    image: str = Field(description="a data: URL")


class EndEvent(BaseModel):
    """`succeeded`, `failed` or `cancelled`: the last event."""

    content: ContentOut
    error: ErrorOut | None = None


EVENTS: dict[str, type[BaseModel]] = {
    "queued": QueuedEvent,
    "started": StartedEvent,
    "progress": ProgressEvent,
    "preview": PreviewEvent,
    "succeeded": EndEvent,
    "failed": EndEvent,
    "cancelled": EndEvent,
}
