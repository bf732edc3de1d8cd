"""Cursors: where a page of contents ended."""

from __future__ import annotations

import base64
import uuid
from datetime import datetime

from app.models import Generation
from sdxl_contract.errors import InvalidRequest


def write_cursor(last: Generation) -> str:
    """Where the page that ends with `last` ended."""
    text = f"{last.created_at.isoformat()}|{last.id}"
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
