"""The worker on one's own GPUs: replicas under Ray Serve, each request sent where its LoRA is.

    FLEET_MAX_REPLICAS=4 BASE_MODEL=... python worker/ray_app.py

Duty: start Ray on loopback and run the worker's own HTTP app in every replica, behind one way in
(`ray_ingress.py`) that chooses the replica (`ray_routing.py`).
Every LoRA has an order of preference over the replicas (rendezvous hashing), so its requests meet
in one cache, and a replica that comes or goes moves only its own share. A replica that is full
passes the request on to the next in that order: affinity never leaves a GPU idle.
Must not know: how a picture is made, or what the HTTP app answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import ray
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray_local import keep_replica_to_loopback, keep_to_loopback, on_loopback
from starlette.types import Message, Scope

from ray_ingress import Ingress
from ray_routing import AffinityRouter, Route
from sdxl_worker.settings import Settings

APP = "sdxl-lora"
WORKER = "Worker"


class FleetSettings(BaseSettings):
    """How many replicas, and what each may use. By environment: `FLEET_` and the name."""

    model_config = SettingsConfigDict(
        env_prefix="FLEET_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    gpus_per_replica: float = Field(default=1.0, ge=0, description="0: draw on the CPU")
    cpus_per_replica: float = Field(default=1.0, gt=0, description="also torch's threads")
    requests_per_replica: int = Field(
        default=2, ge=1, description="one is drawn while the LoRAs of the others are fetched"
    )
    target_requests: float = Field(
        default=1.5, gt=0, description="requests per replica at which the number of replicas holds"
    )
    queue_max: int = Field(default=64, ge=1, description="requests waiting before OVERLOADED")
    scaledown_seconds: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"FLEET_MIN_REPLICAS is {self.min_replicas}: at most FLEET_MAX_REPLICAS, which is "
                f"{self.max_replicas}"
            )
        return self


class WorkerReplica:
    """One model with its engine and the same HTTP app as elsewhere, called through Serve."""

    # Serve awaits it.
    async def __init__(self, settings: Settings, threads: int) -> None:  # type: ignore[misc]
        keep_replica_to_loopback()
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # Late: the driver and the ingress need no torch.
        import torch

        from sdxl_worker.api import create_app
        from sdxl_worker.engine import Engine
        from sdxl_worker.loading.pipeline import LoadedModel, load_model
        from sdxl_worker.watching.logs import configure_logging

        torch.set_num_threads(threads)
        configure_logging(settings.log_format)
        self._model: LoadedModel | None = None

        def load(config: Settings) -> LoadedModel:
            self._model = load_model(config)
            return self._model

        self._engine = Engine(settings, load=load)
        self._app = create_app(self._engine, settings)
        # Here and not in the app's lifespan: a replica gets requests once this has returned.
        await self._engine.load()
        self.check_health()

    def check_health(self) -> None:
        """Serve's question; a replica whose model cannot be trusted is replaced.

        Raises:
            RuntimeError: the model was not loaded, or was not as before after a request.
        """
        error = self._engine.health().error
        if error is not None:
            raise RuntimeError(error.error)

    async def http(self, route: Route, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """The app's ASGI messages for one request; before them one with this replica's id.

        A caller that stops reading is a client that went away: the app hears of it.
        """
        yield {"type": "replica", "id": serve.get_replica_context().replica_id.unique_id}
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def answer() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(answer())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            gone.set()
            if not task.done():
                # The app answers a disconnect by itself; it is waited for elsewhere.
                _background.add(task)
                task.add_done_callback(_forget)

    def weights_sha256(self, route: Route) -> str:
        """SHA-256 over all parameters and buffers of UNet and text encoders, in order of name.

        For checks on an idle replica: while a request draws, its LoRAs are in the weights.
        """
        import torch

        assert self._model is not None
        digest = hashlib.sha256()
        for root in ("unet", "text_encoder", "text_encoder_2"):
            for name, tensor in sorted(getattr(self._model.pipe, root).state_dict().items()):
                digest.update(f"{root}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def replica_id(self, route: Route) -> str:
        """This replica's name, as `Route.replica` takes it."""
        return str(serve.get_replica_context().replica_id.unique_id)

    async def __del__(self) -> None:
        """Serve calls this when the replica ends: what runs is cancelled, the model restored."""
        if hasattr(self, "_engine"):
            await self._engine.aclose()


_background: set[asyncio.Task[None]] = set()


def _forget(task: asyncio.Task[None]) -> None:
    _background.discard(task)
    # A failure of an answer that nobody waits for is no news.
    task.cancelled() or task.exception()


def build(settings: Settings, fleet: FleetSettings) -> serve.Application:
    """The Serve application: one ingress, and between `min` and `max` replicas of the worker."""
    size: dict[str, Any] = {"num_replicas": fleet.max_replicas}
    if fleet.min_replicas < fleet.max_replicas:
        size = {
            "autoscaling_config": {
                "min_replicas": fleet.min_replicas,
                "max_replicas": fleet.max_replicas,
                "target_ongoing_requests": fleet.target_requests,
                "downscale_delay_s": fleet.scaledown_seconds,
                "upscale_delay_s": 1.0,
            }
        }
    quiet = {"enable_access_log": False}
    router: Any = AffinityRouter
    worker = serve.deployment(
        name=WORKER,
        max_ongoing_requests=fleet.requests_per_replica,
        max_queued_requests=fleet.queue_max,
        ray_actor_options={
            "num_cpus": fleet.cpus_per_replica,
            "num_gpus": fleet.gpus_per_replica,
        },
        request_router_config=RequestRouterConfig(request_router_class=router),
        graceful_shutdown_timeout_s=settings.shutdown_grace_seconds,
        logging_config=quiet,
        **size,
    )(WorkerReplica)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0},
        logging_config=quiet,
    )(Ingress)
    threads = max(1, int(fleet.cpus_per_replica))
    return ingress.bind(worker.bind(settings, threads))


@contextmanager
def running(settings: Settings, fleet: FleetSettings, *, cpus: int | None = None) -> Iterator[str]:
    """The fleet's URL, once a replica is ready; at the end replicas and Ray are ended.

    Joins the cluster of `RAY_ADDRESS`; without one, starts Ray on this computer alone: on
    127.0.0.1, without dashboard and without reports of use.

    Args:
        cpus: how many cores Ray may count on; None: all.

    Raises:
        RuntimeError: Ray would listen to other computers too.
    """
    options: dict[str, Any] = {
        # Replicas import this module by its name.
        "runtime_env": {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent)}}
    }
    folder: Path | None = None
    if not os.environ.get("RAY_ADDRESS"):
        # Short: sockets lie below it, and their paths may have 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        keep_to_loopback()
        options |= {"include_dashboard": False, "num_cpus": cpus, "_temp_dir": str(folder)}
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        ray.init(logging_level=logging.WARNING, **options)
        if folder is not None and not on_loopback():
            raise RuntimeError("Ray did not keep to 127.0.0.1: start it by hand, see docs/ray.md")
        serve.start(
            http_options={"host": settings.worker_host, "port": settings.worker_port},
            logging_config=quiet,
        )
        serve.run(build(settings, fleet), name=APP, route_prefix="/")
        yield f"http://{settings.worker_host}:{settings.worker_port}"
    finally:
        if ray.is_initialized():
            if folder is None:
                serve.delete(APP)
            else:
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Serve until SIGINT or SIGTERM; 2 when the settings cannot work."""
    try:
        settings, fleet = Settings(), FleetSettings()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part).upper() for part in problem["loc"])
            prefix = "FLEET_" if name and error.title == "FleetSettings" else ""
            print(f"{prefix}{name}: {problem['msg']}".lstrip(": "), file=sys.stderr)
        return 2
    with running(settings, fleet) as url:
        print(f"serving at {url}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    # By its own name, so that the replicas can import what is pickled here.
    from ray_app import main as run

    sys.exit(run())
