"""Code that runs before a snapshot of the process is taken, on a machine without its GPU.

Duty: keep everything from asking the CUDA driver anything. Its first answer, that there is no GPU,
stays in the process and so in the snapshot: every container that starts from it would have none.
Libraries ask while they are imported (diffusers does), and torch asks the driver for them.
Must not know: models, Modal. Imports nothing, so that it can come before torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# With no device visible and NVML asked in the driver's place, torch answers by itself.
_QUIET = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


@contextmanager
def without_cuda() -> Iterator[None]:
    """Inside the block torch reports no GPU without asking the driver; afterwards it asks."""
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
