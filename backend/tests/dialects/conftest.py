"""A server that real clients can reach, and a key for them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from sdxl_contract.request import Scheduler
from testkit.backend import Served, StartBackend, add_key, listening
from testkit.doubles.inference_double import InferenceDouble


@pytest.fixture
def inference() -> InferenceDouble:
    """A worker that offers every sampler."""
    double = InferenceDouble()
    double.schedulers = [scheduler.value for scheduler in Scheduler]
    return double


@pytest.fixture
async def served(start_backend: StartBackend, database_url: URL) -> AsyncIterator[Served]:
    keys = [
        (await add_key(database_url, owner))["Authorization"].removeprefix("Bearer ")
        for owner in ("local", "other")
    ]
    async with start_backend() as backend, listening(backend) as url:
        backend.http.headers["Authorization"] = f"Bearer {keys[0]}"
        yield Served(backend, url, *keys)
