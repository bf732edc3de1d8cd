"""A server that real clients can reach, and a key for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import fal_client
import fal_client.client
import pytest
from sqlalchemy import URL

from sdxl_contract.request import Scheduler
from testkit.backend import Served, StartBackend, add_key, listening
from testkit.clients.certificates import own_certificate
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this computer's own address with its key, in one file."""
    return own_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
async def fal(
    served: Served, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[fal_client.AsyncClient]:
    """As `FAL_RUN_HOST`, `FAL_QUEUE_RUN_HOST` and `SSL_CERT_FILE` make it."""
    async with listening(served.backend, certificate) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setattr(fal_client.client, "RUN_URL_FORMAT", f"{url}/fal/run/")
        monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{url}/fal/queue/")
        monkeypatch.setattr(fal_client.client, "REST_URL", f"{url}/fal/rest")
        client = fal_client.AsyncClient(key=served.key)
        yield client
        await (await client._client).aclose()  # the server would wait for it
