"""`python -m sdxl_worker.serve`: the worker under uvicorn, anywhere.

Must not know: Modal.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sdxl_contract.connections import (
    ConnectionGuard,
    ConnectionLimits,
    descriptors_for_connections,
)
from sdxl_worker.loading.imports import import_libraries, share_the_interpreter
from sdxl_worker.loading.weight_reader import Reading, start_reading
from sdxl_worker.settings import Dtype, Settings
from sdxl_worker.watching.logs import configure_logging

# Idle connections of one address, and seconds until a request's head must be there.
_PER_ADDRESS, _HEAD_SECONDS = 512, 10.0


def main() -> int:
    """Serve until SIGINT or SIGTERM; 2 when the settings cannot work."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part).upper() for part in problem["loc"])
            print(f"{name}: {problem['msg']}".lstrip(": "), file=sys.stderr)
        return 2
    configure_logging(settings.log_format)
    # transformers warns at import that torchvision is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module="transformers")
    # Before torch and diffusers, whose imports take seconds: the disk can work meanwhile.
    reading = start_reading(
        Path(settings.base_model),
        half=_expects_half(settings),
        mapped=settings.maps_weights(on_cpu=_expects_cpu(settings)),
    )
    import_libraries(partial(_begin_gpu, settings, reading))
    from sdxl_worker.api import create_app
    from sdxl_worker.engine import Engine
    from sdxl_worker.loading.pipeline import load_model

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    guard = ConnectionGuard(
        ConnectionLimits(_PER_ADDRESS, descriptors_for_connections(), _HEAD_SECONDS),
        AutoHTTPProtocol,
    )
    load = partial(load_model, reading=reading)
    engine = Engine(settings, load, once_ready=share_the_interpreter)
    uvicorn.run(
        create_app(engine, settings),
        host=settings.worker_host,
        port=settings.worker_port,
        http=guard.protocol,  # type: ignore[arg-type]  # it is only called
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )
    return 0


def _expects_half(settings: Settings) -> bool:
    """Guess, without torch, what `auto` will resolve to; a wrong guess costs only time."""
    if settings.dtype is not Dtype.AUTO:
        return settings.dtype is not Dtype.FLOAT32
    return not _expects_cpu(settings)


def _expects_cpu(settings: Settings) -> bool:
    """Likewise."""
    if settings.device.startswith("cuda"):
        return False
    return settings.device == "cpu" or not Path("/proc/driver/nvidia/version").exists()


def _begin_gpu(settings: Settings, reading: Reading | None) -> None:
    """Have the GPU's context made, our kernels compiled there, and the weights sent there, while
    diffusers is imported."""
    if _expects_cpu(settings):
        return
    device = "cuda" if settings.device == "auto" else settings.device
    # Kernels are of BF16 alone: nobody would wait for others.
    if settings.quick_kernels and settings.dtype in (Dtype.AUTO, Dtype.BFLOAT16):
        from sdxl_worker.kernels.cuda import compile_early

        compile_early(device)
    if reading is not None and reading.mapped is None:
        import torch

        from sdxl_worker.loading.onto_gpu import send_early

        send_early(reading, torch.device(device))


if __name__ == "__main__":
    sys.exit(main())
