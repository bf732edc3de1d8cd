"""A model folder's weight files as tensors, as fast as the disk gives them.

Duty: which files a diffusers folder's component has, and their bytes. Starts before torch is even
imported, so that reading and importing go on side by side.
Must not know: modules, pipelines, devices.

Two ways:
- read, by several threads at once, into memory that nothing else shares: for weights that go on
  to a GPU or into a snapshot of this process, and for network volumes, where page faults read
  little by little;
- mapped (`mapped_weights`): nothing is read before it is used, and nothing twice. For weights that
  stay on the CPU.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_contract.lora.safetensors import DTYPE_NAMES, read_prefix
from sdxl_worker.loading.mapped_weights import MappedFile, MappedFiles

if TYPE_CHECKING:
    import torch

# Component of an SDXL folder → stem of its weight files.
COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
# The classes that such a folder's index names.
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "tokenizer_2": "CLIPTokenizer",
}
_PIPELINE = "StableDiffusionXLPipeline"
_CHUNK_BYTES = 32 * 2**20
# How many bytes there are, and each part of them in order → all in a row elsewhere.
Send = Callable[[int, Iterator[memoryview]], "torch.Tensor"]


class NotThere(Exception):
    """The folder lacks safetensors weights in the usual places: use the slow loader."""


@dataclass
class _File:
    """One file: its header, and where its bytes are going, or where they are."""

    header: dict[str, Any]
    memory: mmap.mmap | MappedFile
    data_start: int
    parts: list[Future[None]]
    prefix: bytes = b""  # the header as it lies in the file
    sent: Future[torch.Tensor | None] | None = None  # the bytes where they were passed on to

    def sha256(self) -> str:
        """Of the whole file, part after part as it is read; hashing lets other threads run."""
        digest = hashlib.sha256(self.prefix)
        for part in self._read():
            digest.update(part)
        return digest.hexdigest()

    def _read(self) -> Iterator[memoryview]:
        """The data, part after part, each once it is there."""
        assert isinstance(self.memory, mmap.mmap)
        view = memoryview(self.memory)
        for number, part in enumerate(self.parts):
            part.result()
            yield view[number * _CHUNK_BYTES : (number + 1) * _CHUNK_BYTES]

    def passed_on(self, send: Send) -> torch.Tensor:
        """What `send` makes of the data."""
        assert isinstance(self.memory, mmap.mmap)
        return send(len(self.memory), self._read())

    def tensors(self, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        whole = self.sent.result() if self.sent is not None else None
        for future in self.parts:
            future.result()
        if whole is None and isinstance(self.memory, MappedFile):
            whole = self.memory.live()[self.data_start :]
        elif whole is None:
            whole = torch.frombuffer(self.memory, dtype=torch.uint8)
        for name, entry in self.header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            kind = getattr(torch, DTYPE_NAMES[entry["dtype"]])
            if end > whole.numel():
                raise ValueError("a weight file is shorter than its header states")
            part = whole[start:end]
            if part.data_ptr() % kind.itemsize:
                part = part.clone()  # files of old writers are not aligned
            tensor = part.view(kind).view(entry["shape"])
            yield name, tensor.to(dtype) if dtype and kind.is_floating_point else tensor


class Reading:
    """The weights of one folder, being read since this object was made.

    Args:
        folder: a diffusers pipeline's.
        half: prefer the `fp16` variant where there is one.
        mapped: map the files instead of reading them.
        hashed: compute each file's SHA-256 from what is read, while it is read; not if mapped.

    Attributes:
        half: whether some of the files are that variant.
        mapped: the files, if they are mapped.
        stayed: why something that was to be passed on was not.

    Raises:
        NotThere: a component lacks a safetensors file.
    """

    def __init__(
        self, folder: Path, *, half: bool, mapped: bool = False, hashed: bool = False
    ) -> None:
        paths = {
            name: _weight_files(folder / name, stem, half) for name, stem in COMPONENTS.items()
        }
        self.stayed: str | None = None
        self.half = any(".fp16." in path.name for files in paths.values() for path in files)
        threads = min(8, max(2, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="weights")
        begin = _map if mapped else self._begin
        self._files = {name: [begin(path) for path in files] for name, files in paths.items()}
        self._pool.shutdown(wait=False)
        self._hashes: dict[Path, Future[str]] = {}
        if hashed and not mapped:
            hashing = ThreadPoolExecutor(threads, thread_name_prefix="hashes")
            for name, files in paths.items():
                for path, file in zip(files, self._files[name], strict=True):
                    self._hashes[path] = hashing.submit(file.sha256)
            hashing.shutdown(wait=False)
        held = [file.memory for files in self._files.values() for file in files]
        self.mapped: MappedFiles | None = None
        if mapped:
            self.mapped = MappedFiles([memory for memory in held if isinstance(memory, MappedFile)])

    def sha256s(self) -> dict[Path, str]:
        """SHA-256, in hexadecimal, of each file as it was read; waits until all are read."""
        return {path: future.result() for path, future in self._hashes.items()}

    @property
    def nbytes(self) -> int:
        """Of the weights that are read."""
        files = (file for files in self._files.values() for file in files)
        return sum(len(one.memory) for one in files if isinstance(one.memory, mmap.mmap))

    def pass_on(self, send: Send) -> None:
        """Have the bytes sent elsewhere as they come, file by file, in a thread; `tensors` gives
        what is there then, and of a file for which that failed what is here. Not if mapped."""

        def passed_on(file: _File) -> torch.Tensor | None:
            try:
                return file.passed_on(send)
            except Exception as error:
                # Whoever wants them finds them here, or the same error.
                self.stayed = repr(error)[:300]
                return None

        sending = ThreadPoolExecutor(1, thread_name_prefix="passing-on")
        for files in self._files.values():
            for file in files:
                file.sent = sending.submit(passed_on, file)
        sending.shutdown(wait=False)

    def drop(self) -> None:
        """Nobody will ask for the weights."""
        self._files.clear()

    def tensors(self, component: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """The component's weights by name, once they are read; floating ones as `dtype`, if given.

        They are views of memory of their own, or of the mapped file where it holds that dtype, or
        of what they were passed on to.
        """
        files = self._files.pop(component)
        return {name: tensor for file in files for name, tensor in file.tensors(dtype)}

    def _begin(self, path: Path) -> _File:
        prefix, total = _prefix(path)
        header, start = json.loads(prefix[8:]), len(prefix)
        memory = own_memory(max(total, 1))
        parts = [
            self._pool.submit(
                _read_part, path, memory, start, place, min(_CHUNK_BYTES, total - place)
            )
            for place in range(0, total, _CHUNK_BYTES)
        ]
        return _File(header, memory, start, parts, prefix)


def own_memory(size: int) -> mmap.mmap:
    """Memory that is taken as it is written, in large pages where the system has them: most of the
    time to fill fresh memory goes into making pages, and to give back small ones takes a second
    for a model."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Shared memory, which is the default, has none.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _map(path: Path) -> _File:
    prefix, _ = _prefix(path)
    return _File(json.loads(prefix[8:]), MappedFile(path), len(prefix), [])


def _prefix(path: Path) -> tuple[bytes, int]:
    """The bytes before the data (length and header), and how many bytes of data there are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            prefix = read_prefix(file, size)
        except ValueError as error:
            raise ValueError(f"{path.name} is not a safetensors file") from error
    return prefix, size - len(prefix)


def _read_part(path: Path, memory: mmap.mmap, start: int, place: int, count: int) -> None:
    view = memoryview(memory)[place : place + count]
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < count:
            got = os.preadv(file.fileno(), [view[done:]], start + place + done)
            if got <= 0:
                raise ValueError(f"{path.name} is shorter than its header states")
            done += got


def _weight_files(folder: Path, stem: str, half: bool) -> list[Path]:
    for variant in (".fp16", "") if half else ("",):
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return [folder / Path(shard).name for shard in shards]
    raise NotThere(f"{folder.name} lacks {stem}.safetensors")


def is_plain_sdxl(folder: Path) -> bool:
    """Whether the folder holds just the classes that `from_folder.pipeline_from_folder` builds."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(index, dict):
        return False
    return index.get("_class_name") == _PIPELINE and all(
        isinstance(index.get(name), list) and index[name][-1] == cls
        for name, cls in CLASSES.items()
    )


def start_reading(
    folder: Path, *, half: bool, mapped: bool = False, hashed: bool = False
) -> Reading | None:
    """Begin to read the folder's weights; None if it is not one that can be loaded so."""
    try:
        if not is_plain_sdxl(folder):
            return None
        return Reading(folder, half=half, mapped=mapped, hashed=hashed)
    except (NotThere, ValueError, OSError):
        return None
