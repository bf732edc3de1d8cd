"""Fixtures of the worker's tests: one running worker with the small model for all of them.

What takes seconds to import is imported by whoever asks for it: the process that hands the tests
out to others loads this file, too, before it starts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest
import structlog

if TYPE_CHECKING:
    # Not where a bare machine with a GPU has none of it, and no such test asks for it.
    import httpx2
    from torch import Tensor

    from testkit.worker import FileServer, RunningWorker

# Unconfigured, structlog prints the values of all variables of a traceback: a whole model's.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ],
    cache_logger_on_first_use=False,
)


@pytest.fixture(autouse=True, scope="session")
def _previews_are_fitted_once() -> Iterator[None]:
    """To each VAE, however many drawers are made around it: a fit takes longer than a drawing."""
    from sdxl_worker.drawing import previews

    fit, fitted = previews.fit_map, WeakKeyDictionary[Any, "Tensor"]()

    def once(vae: Any) -> Tensor:
        if vae not in fitted:
            fitted[vae] = fit(vae)
        return fitted[vae]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(previews, "fit_map", once)
        yield


@pytest.fixture(scope="session")
def worker() -> Iterator[RunningWorker]:
    from testkit.worker import running_worker, settings

    with running_worker(settings()) as running:
        yield running


@pytest.fixture(scope="session")
def client(worker: RunningWorker) -> Iterator[httpx2.Client]:
    import httpx2

    with httpx2.Client(base_url=worker.url, timeout=60) as http:
        yield http


@pytest.fixture
def files() -> Iterator[FileServer]:
    from testkit.worker import file_server

    with file_server() as server:
        yield server


@pytest.fixture(scope="session")
def lora_data(worker: RunningWorker) -> bytes:
    """A kohya LoRA that fits the running worker's UNet and both text encoders."""
    from testkit.worker import kohya_lora

    assert worker.engine._ready is not None
    return kohya_lora(worker.engine._ready.signature.modules)
