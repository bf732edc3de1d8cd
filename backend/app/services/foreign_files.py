"""Looks at files of strangers in processes of their own, with a deadline.

Duty: a LoRA file's beginning → what it is. A file that takes too long, or more memory than any
LoRA needs, is refused and its process ended; nobody else's call notices.
Must not know: HTTP, storage.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

from app.core.pools import Duty, in_pool
from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import LORA_HEADER_MAX_BYTES, BaseModelSignature
from sdxl_contract.lora.header import LoraInspection

_DEADLINE_S = 20.0
_AFTER_HEADER_BYTES = 512  # by which a file that is something else is named
_CHILD = (sys.executable, "-m", "app.services.foreign_file_process")
# What a Python process needs; the rest of the environment holds secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")


class ForeignFiles:
    """Processes that wait for work: as many as there are threads for it."""

    def __init__(
        self, *, command: tuple[str, ...] = _CHILD, deadline_s: float = _DEADLINE_S
    ) -> None:
        self._command = command
        self._deadline_s = deadline_s
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    async def inspect(
        self, file: IO[bytes], size: int, signature: BaseModelSignature | None
    ) -> LoraInspection:
        """What the LoRA in `file` (`size` bytes) is, checked against `signature`, if one is known.

        Raises:
            LoraLoadFailed: it is no LoRA that fits, or finding that out takes too much.
        """
        return await in_pool(Duty.FOREIGN, self._inspect, file, size, signature)

    def _inspect(
        self, file: IO[bytes], size: int, signature: BaseModelSignature | None
    ) -> LoraInspection:
        head = _beginning(file)
        model = b"null" if signature is None else signature.model_dump_json().encode()
        lengths = {"head": len(head), "size": size, "signature": len(model)}
        found = self._ask([json.dumps(lengths).encode() + b"\n", head, model])
        if "inspection" in found:
            return LoraInspection.model_validate(found["inspection"])
        raise LoraLoadFailed(found["message"], details=found["details"])

    def _ask(self, question: list[bytes]) -> dict[str, Any]:
        child = self._take()
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self._deadline_s, end)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.writelines(question)
                child.stdin.flush()
                line = child.stdout.readline()
        finally:
            timer.cancel()
            if not line.endswith(b"\n"):
                _end(child)
        if not line.endswith(b"\n"):
            why, reason = (
                (f"took more than {self._deadline_s:g} s to look at", "too_slow")
                if late.is_set()
                else ("cannot be looked at: it takes more memory than a LoRA may", "too_large")
            )
            raise LoraLoadFailed(f"The file {why}.", details={"reason": reason})
        with self._lock:
            self._idle.append(child)
        found: dict[str, Any] = json.loads(line)
        return found

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.poll() is None:
                    return child
                _end(child)
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return subprocess.Popen(
            self._command,
            env={**kept, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the server, which ends this one itself
        )

    def close(self) -> None:
        """End the processes that wait; others end with their file."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            _end(child)


def _beginning(file: IO[bytes]) -> bytes:
    """The header's length, as much of the header as is read, and a little more."""
    file.seek(0)
    length = file.read(8)
    size = min(int.from_bytes(length, "little"), LORA_HEADER_MAX_BYTES)
    return length + file.read(size + _AFTER_HEADER_BYTES)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    child.wait()


foreign_files = ForeignFiles()
atexit.register(foreign_files.close)
