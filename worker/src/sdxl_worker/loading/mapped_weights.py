"""Weight files as memory: mapped twice, once to be changed and once as the pristine copy.

Duty: a file's bytes as tensors without reading or copying them. The first map is private: a page
that is written becomes this process's own, and the file never changes. The second cannot be
written at all, and is what a LoRA patcher takes for W0 instead of a copy of its own: the memory
protection itself keeps it pristine, and a page that no LoRA touches exists once, in the page cache.
Must not know: what is in the files, models, LoRAs.

The price is that the files must stay as they are while the process lives. `changed` notices
when they do not: then the model is no longer known to be what it was. A file that is replaced, as
by a download or a rename, is another file; the mapped one lives on until the process ends.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class MappedFile:
    """One file, mapped. Opening it costs no reading.

    Raises:
        OSError, ValueError: it is not there, cannot be mapped, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("rb")
        descriptor = self._file.fileno()
        self._private = mmap.mmap(
            descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._shared = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_WILLNEED"):
            # The disk can begin while Python imports.
            self._shared.madvise(mmap.MADV_WILLNEED)
        self._state = self._look()
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None

    def live(self) -> torch.Tensor:
        """All bytes as one uint8 tensor that can be written."""
        return self._both()[0]

    def twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The same part of the file in the map that is never written; None if `tensor` is no
        contiguous part of `live`."""
        live, pristine = self._both()
        start = tensor.data_ptr() - live.data_ptr()
        inside = start >= 0 and start + tensor.nbytes <= live.numel()
        if tensor.device.type != "cpu" or not inside or not tensor.is_contiguous():
            return None
        if (pristine.data_ptr() + start) % tensor.element_size():
            return None
        part: torch.Tensor = pristine[start : start + tensor.nbytes].view(tensor.dtype)
        return part.view(tensor.shape)

    def changed(self) -> bool:
        """Whether the file was written or cut since it was mapped."""
        return self._look() != self._state

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if self._tensors is None:
            with warnings.catch_warnings():
                # That one of them cannot be written is the point.
                warnings.filterwarnings("ignore", "The given buffer is not writable")
                self._tensors = (
                    torch.frombuffer(self._private, dtype=torch.uint8),
                    torch.frombuffer(self._shared, dtype=torch.uint8),
                )
        return self._tensors


class MappedFiles:
    """The mapped files that a model's weights are views of."""

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self._files = tuple(files)

    def twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """`tensor` as it is in its file, unwritable; None if it is in memory of its own."""
        found = (file.twin(tensor) for file in self._files)
        return next((twin for twin in found if twin is not None), None)

    def changed(self) -> str | None:
        """Name of a file that was written or cut since it was mapped, or None."""
        return next((file.name for file in self._files if file.changed()), None)
