"""What to do when memory runs out.

Duty: know such an error by any of its names, and let go of what a failed call still holds.
Must not know: what the memory was for.
"""

from __future__ import annotations

import traceback
from contextlib import suppress

import torch

# Of errors that have no class of their own.
_WORDS = (
    "out of memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the GPU or the computer ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def let_go(error: BaseException) -> None:
    """Give up the tensors that the functions through which `error` came still hold: gigabytes, just
    when there are none. Afterwards the allocator gives back what is free.
    """
    clear_frames(error)
    # torch refuses while another thread captures a graph: what is free goes back the next time.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()  # which does nothing where CUDA is not in use


def clear_frames(error: BaseException) -> None:
    """Give up the local variables of the functions through which `error` came: they live as long as
    its traceback, and that as long as somebody waits for an answer; or, where one of them leads
    back to the error, until Python looks for garbage.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        # Of frames that have ended; those that are still running are left alone.
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__
