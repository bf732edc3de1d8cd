"""Reads strangers' pictures in a process of its own, with a deadline and a bound of memory.

Must not know: HTTP, the database.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from typing import Any

from app.core.pools import Duty, in_pool
from sdxl_contract.errors import InvalidRequest

FILE_MAX_BYTES = 32 * 2**20
_DEADLINE_S = 15.0
_COMMAND = (sys.executable, "-m", "app.services.marking.reading")
# What a Python process needs; the rest of the environment holds secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")


async def verify(
    picture: bytes, trusted: str, command: tuple[str, ...] = _COMMAND
) -> dict[str, Any]:
    """The report on `picture`; `trusted` are PEM roots.

    Raises:
        InvalidRequest: it is no picture, or reading it takes too long.
    """
    return await _ask(picture, trusted.encode(), command)


async def compare(drawn: bytes, picture: bytes) -> dict[str, Any]:
    """In how many pixels a stranger's `picture` differs from `drawn`; see `reading.compare`.

    Raises:
        InvalidRequest: it is no picture, or reading it takes too long.
    """
    return await _ask(picture, drawn, (*_COMMAND, "compare"))


async def can_be_kept(picture: bytes, media_type: str) -> bool:
    """Whether what is drawn from a stranger's `picture` may carry its manifest."""
    report = await in_pool(Duty.FOREIGN, _read, picture, media_type.encode(), (*_COMMAND, "source"))
    return bool(report.get("can_be_kept"))


async def _ask(picture: bytes, first: bytes, command: tuple[str, ...]) -> dict[str, Any]:
    report = await in_pool(Duty.FOREIGN, _read, picture, first, command)
    if "refused" in report:
        raise InvalidRequest(f"file: {report['refused']}", details={"field": "file"})
    return report


def _read(picture: bytes, first: bytes, command: tuple[str, ...]) -> dict[str, Any]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(
            command,
            input=struct.pack(">I", len(first)) + first + picture,
            env={**kept, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            capture_output=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"reading it takes more than {_DEADLINE_S:g} s"}
    if done.returncode != 0:
        return {"refused": "it cannot be read"}
    report: dict[str, Any] = json.loads(done.stdout)
    return report
