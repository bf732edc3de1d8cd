"""Cursors: where a page of a list ended."""

from __future__ import annotations

import base64
import uuid
from datetime import datetime

from sdxl_contract.errors import InvalidRequest


def write_cursor(created_at: datetime, last_id: uuid.UUID) -> str:
    """Where a page ended, by its last item's moment and id."""
    text = f"{created_at.isoformat()}|{last_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, uuid.UUID]:
    """The moment and id in `cursor`.

    Raises:
        InvalidRequest: it is not one of ours.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, _, content_id = text.partition("|")
        created = datetime.fromisoformat(moment)
        if created.tzinfo is None:
            raise ValueError("no zone")
        return created, uuid.UUID(content_id)
    except ValueError:
        raise InvalidRequest(
            "cursor: is not one that this server gave", details={"field": "cursor"}
        ) from None
