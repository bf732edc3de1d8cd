"""Compiles the kernels for a GPU and launches them.

Duty: tensors → launches, for the shapes and layouts that the kernels take.
Must not know: modules, whether the result is right.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor

from sdxl_worker.kernels.source import CHAINS, CHAINS_PER_BLOCK, NAMES, SOURCE, THREADS, VECTOR

log = structlog.get_logger()
# Where torch gives each group a whole block of threads; below it sums in another order.
_LEAST_OF_GROUP = CHAINS
_MOST_OF_GROUP = 1 << 30
_ALIGNED = 16
# Ampere, the first that rounds to BF16 by itself.
_CAPABILITY = (8, 0)
# For each device once, in whatever thread that begins.
_COMPILED: dict[torch.device, dict[str, Any]] = {}
_COMPILING = threading.Lock()


class Kernels(Protocol):
    """Operations by kernels of our own; None for what they do not take."""

    def group_norm(
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor | None:
        """(N, C, …) normalised over each group of channels of a sample; `weight`, `bias`: (C)."""

    def geglu(self, x: Tensor) -> Tensor | None:
        """(…, 2·D) → (…, D): the first half of the last side times GELU of the second."""


class CudaKernels:
    """`Kernels` on one GPU.

    Raises:
        RuntimeError: they cannot be compiled there, or the device is too old.
    """

    def __init__(self, device: torch.device) -> None:
        if torch.cuda.get_device_capability(device) < _CAPABILITY:
            raise RuntimeError("no BF16 on this device")
        with _COMPILING:
            if device not in _COMPILED:
                _COMPILED[device] = _compiled(device)
            self._launch = _COMPILED[device]

    def __deepcopy__(self, _: Any) -> CudaKernels:
        # What a copied module calls is the same.
        return self

    def group_norm(
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor | None:
        """See `Kernels`."""
        if x.dim() < 3:
            return None
        samples, channels = x.shape[:2]
        pixels = x[0, 0].numel() if samples else 0
        size = pixels * (channels // groups)
        if not (
            _LEAST_OF_GROUP <= size < _MOST_OF_GROUP
            and pixels % VECTOR == 0
            and all(_is_plain(one) for one in (x, weight, bias))
        ):
            return None
        found = torch.empty_like(x)
        count = samples * groups
        chains = torch.empty(count, CHAINS, 2, dtype=torch.float32, device=x.device)
        moments = torch.empty(count, 2, dtype=x.dtype, device=x.device)
        # torch rounds it to the tensor's precision, too.
        rounded = torch.tensor(eps, dtype=x.dtype).item()
        self._launch["moments_of_chains"](
            (count, CHAINS // CHAINS_PER_BLOCK, 1), (CHAINS_PER_BLOCK, 1, 1), [x, chains, size]
        )
        self._launch["moments_of_groups"](
            (count, 1, 1), (CHAINS, 1, 1), [chains, moments, size, rounded]
        )
        vectors = pixels // VECTOR
        self._launch["normalised"](
            (samples * channels, -(-vectors // THREADS), 1),
            (THREADS, 1, 1),
            [x, moments, weight, bias, found, channels, channels // groups, vectors],
        )
        return found

    def geglu(self, x: Tensor) -> Tensor | None:
        """See `Kernels`."""
        half = x.shape[-1] // 2
        if x.shape[-1] % 2 or half % VECTOR or x.numel() == 0 or not _is_plain(x):
            return None
        found = torch.empty(*x.shape[:-1], half, dtype=x.dtype, device=x.device)
        vectors = half // VECTOR
        self._launch["gated"](
            (found.numel() // half, -(-vectors // THREADS), 1),
            (THREADS, 1, 1),
            [x, found, vectors],
        )
        return found


def compile_early(device: str) -> None:
    """Compile in a thread, for whoever makes `CudaKernels` soon, and make the device's context with
    that. What goes wrong goes wrong there again."""
    # Not in the thread: two that import at once may find each other's modules half made. What is
    # not there is missed where the kernels are made.
    with suppress(Exception):
        from torch.cuda import _utils  # noqa: F401
        from torch.utils import cpp_extension  # noqa: F401

    def compile_there() -> None:
        with suppress(Exception):
            CudaKernels(torch.device(device))

    # No daemon, which would be torn out of torch's code at the end.
    threading.Thread(target=compile_there, name="kernels").start()


def _compiled(device: torch.device) -> dict[str, Any]:
    """Name → kernel, compiled side by side: each takes half a second of a start, without the
    interpreter's lock.
    """

    _load_nvrtc()

    def one(name: str) -> Any:
        with torch.cuda.device(device):
            # Anything at all: it makes the device this thread's, which loading a kernel asks for.
            torch.zeros(1, device=device)
            # torch's own way to NVRTC, which comes with it; no compiler is needed.
            return torch.cuda._compile_kernel(SOURCE, name)

    with _without_toolkit():
        try:
            with ThreadPoolExecutor(len(NAMES)) as threads:
                return dict(zip(NAMES, threads.map(one, NAMES), strict=True))
        except Exception as error:
            log.info("kernels_compiled_one_by_one", error=repr(error)[:300])
            return {name: one(name) for name in NAMES}


@contextmanager
def _without_toolkit() -> Iterator[None]:
    """torch asks for the headers of a CUDA toolkit, which no image of ours holds and the source
    does not include: without this it compiles nothing where there is none."""
    from torch.utils import cpp_extension

    held = cpp_extension.CUDA_HOME
    # Whose headers torch never names.
    cpp_extension.CUDA_HOME = held or "/usr"
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = held


def _load_nvrtc() -> None:
    """Load the NVRTC that came with torch: it is looked for by its bare name, and found by that
    once it is loaded."""
    version = (torch.version.cuda or "").partition(".")[0]
    packages = Path(torch.__file__).parents[1]
    for room in (packages / "torch" / "lib", *sorted(packages.glob("nvidia/*/lib"))):
        libraries = sorted(room.glob(f"libnvrtc.so.{version or '*'}"))
        # Which it looks for by their bare names, too.
        builtins = sorted(room.glob(f"libnvrtc-builtins.so.{version or '*'}.*"))
        for library in (*builtins, *libraries):
            # Another one may be loaded, or be found in the system's own places.
            with suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        if libraries:
            return


def _is_plain(tensor: Tensor) -> bool:
    """BF16 in a row on a GPU, where 16 bytes can be read at once."""
    return (
        tensor.dtype is torch.bfloat16
        and tensor.is_cuda
        and tensor.is_contiguous()
        and tensor.data_ptr() % _ALIGNED == 0
    )
