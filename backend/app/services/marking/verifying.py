"""Reads strangers' pictures in processes of their own, with a deadline and a bound of memory.

Must not know: HTTP, the database.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from app.core.pools import Duty, in_pool
from app.services.foreign.processes import ForeignProcesses, NoAnswer
from app.services.marking.reading import Asked
from sdxl_contract.errors import InvalidRequest

FILE_MAX_BYTES = 32 * 2**20
_READERS = ForeignProcesses((sys.executable, "-m", "app.services.marking.reading"), deadline_s=15.0)


async def verify(
    picture: bytes, trusted: str, readers: ForeignProcesses = _READERS
) -> dict[str, Any]:
    """The report on `picture`; `trusted` are PEM roots.

    Raises:
        InvalidRequest: it is no picture, or reading it takes too long.
    """
    return _taken(await _ask(Asked.REPORT, trusted.encode(), picture, readers))


async def compare(drawn: bytes, picture: bytes) -> dict[str, Any]:
    """In how many pixels a stranger's `picture` differs from `drawn`; see `reading.compare`.

    Raises:
        InvalidRequest: it is no picture, or reading it takes too long.
    """
    return _taken(await _ask(Asked.COMPARISON, drawn, picture))


async def can_be_kept(picture: bytes, media_type: str) -> bool:
    """Whether what is drawn from a stranger's `picture` may carry its manifest."""
    report = await _ask(Asked.SOURCE, media_type.encode(), picture)
    return bool(report.get("can_be_kept"))


def _taken(report: dict[str, Any]) -> dict[str, Any]:
    if "refused" in report:
        raise InvalidRequest(f"file: {report['refused']}", details={"field": "file"})
    return report


async def _ask(
    asked: Asked, first: bytes, picture: bytes, readers: ForeignProcesses = _READERS
) -> dict[str, Any]:
    try:
        line = await in_pool(Duty.FOREIGN, readers.ask, first, picture, asked)
    except NoAnswer as error:
        if error.is_late:
            return {"refused": f"reading it takes more than {readers.deadline_s:g} s"}
        return {"refused": "it cannot be read"}
    report: dict[str, Any] = json.loads(line)
    return report
