"""Cursors: where a page of a list ended.

A text of their form is always a place in the list, so that the schema can say what a cursor is.
Must not know: lists.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta

from sdxl_contract.errors import InvalidRequest

# Microseconds since 1970 and the last item's id.
CURSOR = r"^[0-9]{1,16}-[0-9a-f]{32}$"
_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def write_cursor(created_at: datetime, last_id: uuid.UUID) -> str:
    """Where a page ended, by its last item's moment and id."""
    return f"{(created_at - _START) // _MICROSECOND}-{last_id.hex}"


def read_cursor(cursor: str) -> tuple[datetime, uuid.UUID]:
    """The moment and id in `cursor`.

    Raises:
        InvalidRequest: it is not one of ours.
    """
    if not re.fullmatch(CURSOR, cursor) or cursor.endswith("\n"):
        raise InvalidRequest(
            "cursor: is not one that this server gave", details={"field": "cursor"}
        )
    moment, _, last_id = cursor.partition("-")
    return _START + int(moment) * _MICROSECOND, uuid.UUID(last_id)
