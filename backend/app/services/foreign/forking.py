"""The other side of `processes`, for files that native code reads: a fork for each of them.

A process that has imported what reading takes answers each question in a fork of itself, with a
bound of memory. Importing takes half a second, a fork some milliseconds; and a file that gets the
better of a decoder finds nobody else's file there, and none comes after it.
Must not know: what is asked.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

Answer = Callable[[int, bytes, bytes], bytes]

_HEAD = struct.Struct(">BQQ")
_PIECE = 2**20


def question(kind: int, first: bytes, second: bytes) -> list[bytes]:
    """A question of a kind (0 to 255) about two files, as `serve` reads it."""
    return [_HEAD.pack(kind, len(first), len(second)), first, second]


def serve(answer: Answer, memory_bytes: int) -> None:
    """Answer each question on stdin by a line on stdout, until stdin ends or a fork fails.

    Args:
        answer: (kind, first file, second file) → the line, without its end.
        memory_bytes: of address space that a fork may have.
    """

    def work(head: bytes) -> None:
        bound_memory(memory_bytes)
        kind, first, second = _HEAD.unpack(head)
        _write(answer(kind, _read(first), _read(second)) + b"\n")

    # The head alone is read here: what follows is the fork's, from the same pipe.
    while len(head := _read(_HEAD.size)) == _HEAD.size:
        if not _in_a_fork(lambda head=head: work(head)):  # type: ignore[misc]
            return


def _in_a_fork(work: Callable[[], None]) -> bool:
    """Whether `work` came to its end."""
    if not hasattr(os, "fork"):  # Windows: its processes have no bound of memory either
        work()
        return True
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    failed = 1
    try:
        work()
        failed = 0
    finally:
        os._exit(failed)


def _read(size: int) -> bytes:
    """So many bytes of stdin; fewer at its end."""
    collected = bytearray()
    while len(collected) < size and (piece := os.read(0, min(_PIECE, size - len(collected)))):
        collected += piece
    return bytes(collected)


def _write(line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(1, view) :]


def bound_memory(size: int) -> None:
    """Give this process at most `size` bytes of address space, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
