"""What a list of contents may be narrowed down to.

Must not know: SQL, HTTP.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from app.models.content import Status


@dataclass(frozen=True)
class ContentFilter:
    """None: not narrowed down by this. Moments are of the acceptance; `until` itself is out."""

    avatar_id: uuid.UUID | None = None
    status: Status | None = None
    batch_id: uuid.UUID | None = None
    words: str | None = None  # of the prompt; the beginning of each is enough
    lora_model_id: uuid.UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    starred: bool = False
    board_id: uuid.UUID | None = None
    binned: bool = False  # what is in the bin, instead of the rest
