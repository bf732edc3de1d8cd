"""Compiled code that containers share: taken from a volume at a start, kept there after a warm-up.

Duty: one file for each combination of torch, Triton, CUDA and GPU; bounded, checked, and never a
reason for a start to fail: what cannot be used is compiled anew.
Must not know: Modal, what is compiled, CUDA graphs, which hold addresses and so cannot be kept.

torch reads such a file as Python objects, so whoever may write it may run code in the containers:
it lies on a volume of its own that only they write. The checksum is against damage alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

log = structlog.get_logger()
_MAGIC = b"sdxlcode"
_DIGEST_BYTES = hashlib.sha256().digest_size
_FILE = "code.bin"
MAX_BYTES = 2**30  # of one file; the UNet's was some tens of megabytes
ALL_BYTES = 4 * 2**30  # of all kinds together

# Gives torch what was kept, and says what that is; None where it is none of torch's.
Load = Callable[[bytes], Iterable[str] | None]
# All that torch compiled or took, and what it is; None where there is nothing.
Save = Callable[[], tuple[bytes, Iterable[str]] | None]


def kind_of(device: str) -> str:
    """A folder's name for what compiled code depends on: torch, Triton, CUDA, and the device."""
    import torch

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        machine = f"cuda{torch.version.cuda}-{torch.cuda.get_device_name(device)}-sm{major}{minor}"
    else:
        machine = f"cpu-{torch.backends.cpu.get_cpu_capability()}"
    whole = f"torch{torch.__version__}-triton{triton}-{machine}"
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", whole)


class CompiledCode:
    """The shared code for one kind of machine.

    Args:
        folder: on the volume; other kinds lie there too.
        kind: see `kind_of`.
        load, save: torch's, unless a test brings its own.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        load: Load | None = None,
        save: Save | None = None,
        max_bytes: int = MAX_BYTES,
        all_bytes: int = ALL_BYTES,
    ) -> None:
        self._folder = folder
        self._path = folder / kind / _FILE
        self._load = load or _give_torch
        self._save = save or _ask_torch
        self._max_bytes = max_bytes
        self._all_bytes = all_bytes
        self._taken: frozenset[str] = frozenset()

    def take(self) -> bool:
        """Give torch what earlier containers compiled; whether there was something to give."""
        try:
            if not self._path.is_file():
                return False
            data = self._read()
            names = self._load(data)
            if names is None:
                raise ValueError("torch does not know it")
            self._taken = frozenset(names)
        except Exception as error:
            log.warning("compiled_code_not_taken", reason=repr(error)[:300])
            return False
        log.info("compiled_code_taken", bytes=len(data))
        return True

    def keep(self) -> bool:
        """Write what was compiled beyond what was taken; whether the volume has changed."""
        try:
            found = self._save()
            if found is None or frozenset(found[1]) <= self._taken:
                return False
            data = found[0]
            if len(data) > self._max_bytes:
                raise ValueError(f"{len(data)} bytes are too many")
            self._write(data)
            self._make_room()
        except Exception as error:
            log.warning("compiled_code_not_kept", reason=repr(error)[:300])
            return False
        log.info("compiled_code_kept", bytes=len(data))
        return True

    def _read(self) -> bytes:
        head = len(_MAGIC) + _DIGEST_BYTES
        if self._path.stat().st_size > self._max_bytes + head:
            raise ValueError("the file is too large")
        whole = self._path.read_bytes()
        data = whole[head:]
        if whole[:head] != _MAGIC + hashlib.sha256(data).digest():
            raise ValueError("the file is damaged")
        return data

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(_MAGIC + hashlib.sha256(data).digest() + data)
            # Under its name only when whole; of two containers the later one's stays.
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove other kinds' files, the longest unwritten first, until all fit."""
        files = sorted(self._folder.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total > self._all_bytes and path != self._path:
                total -= path.stat().st_size
                path.unlink()
                if not os.listdir(path.parent):
                    path.parent.rmdir()


def quietly(step: Callable[[], object]) -> None:
    """`step` with the shared volume; its failure costs the next container time, no more."""
    try:
        step()
    except Exception as error:
        log.warning("compiled_code_not_shared", reason=repr(error)[:300])


def _give_torch(data: bytes) -> Iterable[str] | None:
    import torch

    info = torch.compiler.load_cache_artifacts(data)
    return None if info is None else _names(info.artifacts)


def _ask_torch() -> tuple[bytes, Iterable[str]] | None:
    import torch

    found = torch.compiler.save_cache_artifacts()
    return None if found is None else (found[0], _names(found[1].artifacts))


def _names(artifacts: dict[str, list[str]]) -> list[str]:
    return [f"{kind}/{key}" for kind, keys in artifacts.items() for key in keys]
