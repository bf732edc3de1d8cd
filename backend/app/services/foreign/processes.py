"""Processes that look at strangers' files: each is asked, has a deadline, and is kept for the next.

Duty: a question → its answer, by a process that runs `serving.serve`. One that is late, dies or
says something else is ended, and all that it started with it; nobody else's call notices.
Must not know: what is asked, HTTP.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading

from app.services.foreign.serving import HEAD

# What a Python process needs; the rest of the environment holds secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")
# Forks of it must find no threads of another library's.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class NoAnswer(Exception):
    """The process gave none: it was too late, died, or said something else."""

    def __init__(self, *, is_late: bool) -> None:
        super().__init__("late" if is_late else "died")
        self.is_late = is_late


class ForeignProcesses:
    """Processes of one command that wait for work: as many as were ever asked at the same time."""

    def __init__(self, command: tuple[str, ...], *, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, first: bytes, second: bytes, kind: int = 0) -> bytes:
        """What a process answers, a line. Blocks for at most the deadline.

        Raises:
            NoAnswer: there came none.
        """
        token = secrets.token_bytes(16)
        head = HEAD.pack(token, kind, len(first), len(second))
        child = self._take()
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(child)

        timer = threading.Timer(self.deadline_s, end)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.writelines((head, first, second))
                child.stdin.flush()
                line = child.stdout.readline()
        finally:
            timer.cancel()
            timer.join()  # it may be ending the process at this moment
            said, _, answer = line.partition(b" ")
            is_answer = said == token.hex().encode() and answer.endswith(b"\n")
            if late.is_set() or not is_answer:
                _end(child)
            else:
                with self._lock:
                    self._idle.append(child)
        if not is_answer:
            raise NoAnswer(is_late=late.is_set())
        return answer

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.poll() is None:
                    return child
                _end(child)
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        path = os.pathsep.join(folder or "." for folder in sys.path)
        return subprocess.Popen(
            self._command,
            env={**kept, **_ONE_THREAD, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the server, which ends this one itself
        )

    @property
    def waiting(self) -> int:
        """How many processes wait for work."""
        with self._lock:
            return len(self._idle)

    def close(self) -> None:
        """End the processes that wait; others end with their file."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            _end(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End it and what it has forked, unless it was seen to have ended."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def _end(child: subprocess.Popen[bytes]) -> None:
    _kill(child)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    child.wait()
