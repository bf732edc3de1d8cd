"""Keeps LoRAs by their content: parsed factors in memory, files on disk behind them.

Duty: sha256 → `ParsedLora` within a budget of bytes, the least recently used going first; and
sha256 → file on disk within its own budget, hashed again whenever it is read. A URL is no key:
every signature makes a new one.
Must not know: how files are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from sdxl_worker.lora.parse import ParsedLora

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOUCH_AFTER_S = 60.0


@dataclass
class CacheStats:
    """Counters since start, and what is held now in bytes and entries."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    rejected: int = 0
    entries: int = 0
    nbytes: int = 0


class LoraCache:
    """Parsed LoRAs in memory. Safe to use from several threads.

    Args:
        budget_bytes: of factors held; a LoRA larger than that is never kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._held: OrderedDict[str, ParsedLora] = OrderedDict()
        self._lock = threading.Lock()
        self.stats = CacheStats()

    def get(self, sha256: str) -> ParsedLora | None:
        """The LoRA with that hash, which becomes the most recently used; None if not held."""
        with self._lock:
            found = self._held.get(sha256.lower())
            if found is None:
                self.stats.misses += 1
                return None
            self._held.move_to_end(found.sha256)
            self.stats.hits += 1
            return found

    def put(self, lora: ParsedLora) -> None:
        """Keeps `lora`, giving up the least recently used ones for it."""
        with self._lock:
            if lora.nbytes > self._budget:
                self.stats.rejected += 1
                return
            previous = self._held.pop(lora.sha256, None)
            if previous is not None:
                self.stats.nbytes -= previous.nbytes
            self._held[lora.sha256] = lora
            self.stats.nbytes += lora.nbytes
            while self.stats.nbytes > self._budget:
                _, oldest = self._held.popitem(last=False)
                self.stats.nbytes -= oldest.nbytes
                self.stats.evictions += 1
            self.stats.entries = len(self._held)

    def contents(self) -> list[tuple[str, int]]:
        """(sha256, bytes) of each LoRA held, the least recently used first."""
        with self._lock:
            return [(sha256, lora.nbytes) for sha256, lora in self._held.items()]

    def clear(self) -> None:
        """Gives up everything."""
        with self._lock:
            self._held.clear()
            self.stats.entries = self.stats.nbytes = 0


class DiskTier:
    """LoRA files in a folder, named by their hash. Several processes may share the folder.

    Args:
        folder: made if missing; holds nothing else.
        budget_bytes: of all files; the least recently read go first.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self.stats = CacheStats()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        self._count()

    def get(self, sha256: str) -> bytearray | None:
        """The file with that hash, which is looked at again; None if missing or damaged.

        A damaged file is removed: it is fetched again, not served.
        """
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                # Fewer than asked for where somebody cuts the file meanwhile: its hash is another.
                file.readinto(data)
        except OSError:
            self.stats.misses += 1
            return None
        if hashlib.sha256(data).hexdigest() != sha256.lower():
            path.unlink(missing_ok=True)
            self.stats.rejected += 1
            self._count()
            return None
        with contextlib.suppress(OSError):
            # On a shared volume each change is sent to all: not for every read.
            if time.time() - path.stat().st_mtime > _TOUCH_AFTER_S:
                os.utime(path)
        self.stats.hits += 1
        return data

    def put(self, sha256: str, data: bytes | bytearray | memoryview) -> bool:
        """Keeps `data`, whose hash the caller has checked; whole or not at all.

        Returns:
            Whether it is kept. A full disk is no error here: the tier only saves time.
        """
        path = self._path(sha256)
        size = memoryview(data).nbytes
        if size > self._budget:
            self.stats.rejected += 1
            return False
        with self._lock:
            try:
                # By the system's randomness: Python's own, and so `tempfile`'s names, are the same
                # in all containers that start from one snapshot and share this folder.
                temporary = self._folder / f"{uuid.uuid4().hex}.part"
                try:
                    temporary.write_bytes(data)
                    # Under its name only when whole: a reader never meets half a file.
                    temporary.replace(path)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
            except OSError:
                self.stats.rejected += 1
                return False
            self._evict(keep=path)
            return True

    def _path(self, sha256: str) -> Path:
        name = sha256.lower()
        # The name comes from a request: nothing but a hash may become a path.
        if not _SHA256.fullmatch(name):
            raise ValueError("not a sha256 in hex")
        return self._folder / f"{name}.safetensors"

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last read, bytes, path) of each file, the least recently read first."""
        found = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _evict(self, keep: Path) -> None:
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._budget:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
                self.stats.evictions += 1
        self._count()

    def _count(self) -> None:
        files = self._files()
        self.stats.entries = len(files)
        self.stats.nbytes = sum(size for _, size, _ in files)
