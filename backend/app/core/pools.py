"""Threads for work that blocks: a few for each duty, so that none can stop another's.

A store that stands still must not keep pictures from being decoded, nor a large upload a small
object from being stored. The event loop's own pool is left to looking up host names.
Must not know: what the work is.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TypeVar

# Who has the interpreter's lock keeps it that long where others wait for it. Signing asks for it
# 1,700 times for a picture of 1024 px, at each piece that it reads or writes: with Python's own
# 5 ms that took 1.7 s beside a busy thread, and 7 ms beside an idle one (bench_marking).
SWITCH_SECONDS = 0.0002
T = TypeVar("T")


class Duty(StrEnum):
    """What a thread is for."""

    STORAGE = "storage"  # pictures and other small objects, lists, deletions
    UPLOADS = "uploads"  # hashing and storing whole LoRA files
    FOREIGN = "foreign"  # waiting for the processes that look at files of strangers
    IMAGES = "images"  # decoding, checking and shrinking pictures
    ANSWERS = "answers"  # compressing large answers
    DATABASE = "database"  # starting the embedded PostgreSQL again


_THREADS = {
    Duty.STORAGE: 16,
    Duty.UPLOADS: 4,
    Duty.FOREIGN: 2,
    Duty.IMAGES: 2,
    Duty.ANSWERS: 2,
    Duty.DATABASE: 1,
}


@functools.cache
def _pool(duty: Duty) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS[duty], thread_name_prefix=duty.value)


async def in_pool(duty: Duty, work: Callable[..., T], *arguments: object) -> T:
    """What `work(*arguments)` returns, from one of the duty's own threads."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool(duty), lambda: context.run(work, *arguments))


def take_short_turns() -> None:
    """Let threads take turns at the interpreter's lock often, in the whole process."""
    sys.setswitchinterval(SWITCH_SECONDS)
