"""What a process that looks at strangers' files does with its stdin and stdout.

Duty: read a question, have it answered, write the answer's line; where native code reads the file,
in a fork made for it by a process that has imported everything. Importing takes half a second, a
fork some milliseconds; and a file that gets the better of a decoder finds nobody else's file there,
and none comes after it.
Must not know: what is asked.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

Answer = Callable[[int, bytes, bytes], bytes]

# The question's token, its kind (0 to 255), and the lengths of the two parts that follow. An answer
# begins with the token: a line that something else has written is nobody's answer.
HEAD = struct.Struct(">16sBQQ")
_PIECE = 2**20


def serve(answer: Answer, memory_bytes: int, *, in_forks: bool) -> None:
    """Answer questions until stdin ends, or until a fork fails.

    Args:
        answer: (kind, first part, second part) → the answer, in one line without its end.
        memory_bytes: of address space, for each fork or for all.
        in_forks: each question in a fork of its own (not on Windows, which has none).
    """
    sink = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    in_forks = in_forks and hasattr(os, "fork")
    if not in_forks:
        _bound_memory(memory_bytes)
    # The head alone is read here: what follows is the fork's, from the same pipe.
    while len(head := _read(HEAD.size)) == HEAD.size:
        if not in_forks:
            _answer(answer, head, sink)
        elif pid := os.fork():
            if os.waitpid(pid, 0)[1] != 0:
                return
        else:
            failed = 1
            try:
                _bound_memory(memory_bytes)
                _answer(answer, head, sink)
                failed = 0
            finally:
                os._exit(failed)


def _answer(answer: Answer, head: bytes, sink: int) -> None:
    token, kind, first, second = HEAD.unpack(head)
    said = answer(kind, _read(first), _read(second))
    line = memoryview(token.hex().encode() + b" " + said + b"\n")
    while line:
        line = line[os.write(sink, line) :]


def _read(size: int) -> bytes:
    """So many bytes of stdin; fewer at its end."""
    collected = bytearray()
    while len(collected) < size and (piece := os.read(0, min(_PIECE, size - len(collected)))):
        collected += piece
    return bytes(collected)


def _bound_memory(size: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
