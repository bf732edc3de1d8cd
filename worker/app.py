"""The worker on Modal: `modal deploy worker/app.py`.

    BASE_MODEL=stabilityai/stable-diffusion-xl-base-1.0 modal run worker/app.py::download_weights
    modal deploy worker/app.py
    modal run worker/app.py::smoke         # one picture of the deployed worker, as smoke.png
    modal run worker/app.py::bench --cold  # seconds and dollars per phase, with a cold start

Duty: what Modal must know (image, GPU, volumes, scaling) and when each part of the worker runs.
Every number comes from `sdxl_worker.deploying.settings`, where the settings are described; the
work itself is in `sdxl_worker`, which runs anywhere. This is the only file that imports modal.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modal
import modal.experimental

from sdxl_contract.result import StartReport
from sdxl_worker.deploying.image import CONTROL_LOCK, DRAWING_LOCK, LOCKS, PYTHON
from sdxl_worker.deploying.settings import (
    CONTROL_CORES,
    CONTROL_MEMORY_MIB,
    CONTROL_WINDOW_S,
    Deployment,
    Routing,
)

UV = "0.9.7"
PORT = 8000
# Nothing in an image changes later: what is compiled need not be compared with its source.
COMPILE = (
    "python -m compileall -q --invalidation-mode unchecked-hash "
    "/root/sdxl_contract /root/sdxl_worker"
)
REPOSITORY = Path(__file__).resolve().parent.parent

try:
    deployment = Deployment.from_environment()
except ValueError as error:  # `modal deploy` by hand: the setting's name, and no traceback
    raise SystemExit(f"{error}") from None
app = modal.App(deployment.app_name)


def _image(lock: str) -> modal.Image:
    """The packages of `lock`, each file by its hash, and nothing built. The project's own come
    last, so that a change of theirs builds one small layer, compiled: else every start would."""
    return (
        modal.Image.debian_slim(python_version=PYTHON)
        .uv_pip_install(
            requirements=[str(REPOSITORY / LOCKS / lock)],
            extra_options="--require-hashes --no-build",
            uv_version=UV,
        )
        .env(deployment.container_environment())
        .add_local_python_source("sdxl_contract", "sdxl_worker", copy=True)
        .run_commands(COMPILE)
    )


# torch comes from PyPI, so with CUDA.
image = _image(DRAWING_LOCK)
control_image = _image(CONTROL_LOCK)
weights = modal.Volume.from_name(deployment.weights_volume, create_if_missing=True)
loras = modal.Volume.from_name(deployment.lora_volume, create_if_missing=True)
compiled = modal.Volume.from_name(deployment.code_volume, create_if_missing=True)
board = modal.Dict.from_name(deployment.board_name, create_if_missing=True)
secret = modal.Secret.from_name(deployment.secret_name, required_keys=["WORKER_API_TOKEN"])

# What both ways of routing say of a container.
CONTAINER: dict[str, Any] = {
    "image": image,
    "gpu": list(deployment.gpu),
    "cpu": deployment.cpu,
    "memory": deployment.memory_mib,
    "env": {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    "secrets": [secret],
    "volumes": {
        deployment.weights_mount: weights.with_mount_options(read_only=True),
        deployment.lora_mount: loras,
        deployment.code_mount: compiled,
    },
    "min_containers": deployment.min_containers,
    "max_containers": deployment.max_containers,
    "buffer_containers": deployment.buffer_containers,
    "scaledown_window": deployment.scaledown_window_seconds,
    "startup_timeout": deployment.startup_timeout_seconds,
    "enable_memory_snapshot": deployment.keeps_memory,
    "experimental_options": {"enable_gpu_snapshot": True} if deployment.keeps_gpu else {},
}


class DictBoard:
    """Modal's Dict as the board of a fleet."""

    async def put(self, key: str, text: str) -> None:
        """Write `key`."""
        await board.put.aio(key, text)

    async def pop(self, key: str) -> str | None:
        """Take `key` off; None where it is not there."""
        text: str | None = await board.pop.aio(key, None)
        return text

    async def items(self) -> dict[str, str]:
        """All of it."""
        return {key: text async for key, text in board.items.aio()}


class Container:
    """One container: one model, one lane, and the line before it."""

    def read(self) -> None:
        """The part of a start that a snapshot keeps.

        Nothing here may read a secret or, but for a snapshot of the GPU itself, ask CUDA anything:
        both would be kept as they are now.
        """
        from sdxl_worker.deploying.compiled_code import quietly
        from sdxl_worker.deploying.starting import begin
        from sdxl_worker.watching.logs import configure_logging

        settings = deployment.settings_without_secrets()
        configure_logging(settings.log_format)
        self.begun = begin(deployment, settings)
        if self.begun.code_kept and not modal.is_local():
            quietly(compiled.commit)  # for the next container; this one has it

    def become_ready(self) -> None:
        """Secrets read, weights onto the GPU, the pristine copy made, one small picture drawn."""
        from sdxl_worker.deploying.board import Reporter
        from sdxl_worker.deploying.compiled_code import quietly
        from sdxl_worker.deploying.starting import go_on

        if not modal.is_local():
            # What was written since the snapshot, by other containers or by `download_weights`.
            loras.reload()
            weights.reload()
            quietly(compiled.reload)
        self.settings = settings = deployment.worker_settings()
        started = go_on(self.begun, deployment, settings)
        del self.begun
        self.engine = started.engine
        name = os.environ.get("MODAL_TASK_ID") or uuid.uuid4().hex
        self.reporter = Reporter(self.engine, DictBoard(), name)
        # Before the first request, not beside it: Modal sends requests once this returns.
        asyncio.run(self.reporter.through_start(started.load))
        if started.code_kept and not modal.is_local():
            quietly(compiled.commit)

    def app(self, retire: Any) -> Any:
        """The same FastAPI app as everywhere: /generate-image, /health, /metrics."""
        from sdxl_contract.result import HealthStatus
        from sdxl_worker.api import create_app
        from sdxl_worker.deploying.retiring import RetireWhenFailed

        web_app = create_app(self.engine, self.settings, beside=self.reporter.run)
        web_app.add_middleware(
            RetireWhenFailed,
            failed=lambda: self.engine.health().status is HealthStatus.FAILED,
            retire=retire,
            patience_s=deployment.failed_start_seconds,
        )
        return web_app


if deployment.routing is Routing.QUEUE:

    @app.cls(
        **CONTAINER, timeout=deployment.timeout_seconds, region=list(deployment.region) or None
    )
    @modal.concurrent(max_inputs=deployment.max_inputs, target_inputs=deployment.target_inputs)
    class Worker(Container):
        """A container behind Modal's queue."""

        @modal.enter(snap=deployment.keeps_memory)
        def load(self) -> None:
            """Before the snapshot."""
            self.read()

        @modal.enter()
        def start(self) -> None:
            """After it."""
            self.become_ready()

        @modal.asgi_app(requires_proxy_auth=deployment.proxy_auth)
        def web(self) -> Any:
            """The worker over HTTP."""
            return self.app(modal.experimental.stop_fetching_inputs.aio)

        @modal.method()
        async def generate(self, request: dict[str, Any]) -> dict[str, Any]:
            """One request without HTTP, for `smoke` and `bench`: the contract's fields."""
            from sdxl_contract.request import parse_request

            result = await self.engine.submit(parse_request(json.dumps(request).encode())).result()
            return result.model_dump(mode="json", exclude_none=True)

else:

    @app.server(
        **CONTAINER,
        port=PORT,
        max_concurrency=deployment.max_inputs,
        target_concurrency=deployment.target_inputs,
        unauthenticated=not deployment.proxy_auth,
        routing_region=deployment.routing_region,
        compute_region=list(deployment.region) or None,
        exit_grace_period=30,
    )
    class Server(Container):
        """A container to which Modal's edge sends requests by their LoRAs (`Modal-Session-ID`)."""

        @modal.enter(snap=deployment.keeps_memory)
        def load(self) -> None:
            """Before the snapshot."""
            self.read()

        @modal.enter()
        def start(self) -> None:
            """After it; the port is open when this returns."""
            from sdxl_worker.deploying.retiring import leave
            from sdxl_worker.deploying.serving import ThreadServer

            self.become_ready()
            self.server = ThreadServer(self.app(leave), PORT)
            self.server.start()

        @modal.exit()
        def stop(self) -> None:
            """Let what is drawn be answered."""
            self.server.stop()


@app.function(
    image=control_image, secrets=[secret], cpu=CONTROL_CORES, memory=CONTROL_MEMORY_MIB,
    max_containers=1, scaledown_window=CONTROL_WINDOW_S, timeout=60,
    region=list(deployment.region) or None,
)  # fmt: skip
@modal.concurrent(max_inputs=100)
@modal.asgi_app(requires_proxy_auth=deployment.proxy_auth)
def control() -> Any:
    """Health, states, cancels and metrics of all containers, without a GPU."""
    from sdxl_worker.deploying.control import create_control_app

    token = deployment.worker_settings().worker_api_token
    return create_control_app(DictBoard(), token, failed_start_s=deployment.failed_start_seconds)


@app.function(
    image=image, volumes={deployment.weights_mount: weights}, secrets=[secret], cpu=4.0,
    memory=deployment.memory_mib, timeout=7200,
)  # fmt: skip
def download_weights(force: bool = False) -> None:
    """Put BASE_MODEL on the volume, hashed; nothing is done when it is there and intact."""
    from sdxl_worker.deploying.volume import fill
    from sdxl_worker.settings import Dtype

    manifest = fill(
        deployment.model_folder.parent,
        deployment.base_model,
        revision=deployment.base_model_revision,
        token=os.environ.get("HUGGINGFACE_HUB_TOKEN"),
        half=os.environ.get("DTYPE") != Dtype.FLOAT32,
        force=force,
    )
    weights.commit()
    gigabytes = manifest.total_bytes / 1e9
    print(f"{manifest.source}: {len(manifest.files)} files, {gigabytes:.2f} GB, hashes recorded")


@dataclass(frozen=True)
class _Deployed:
    """The deployed worker: what a user gets, with its snapshot and its volumes."""

    worker: Any  # a Worker, or None where a Server stands behind the edge
    server: Any

    @classmethod
    def find(cls) -> _Deployed:
        """What runs under the app's name."""
        name = deployment.app_name
        if deployment.routing is Routing.QUEUE:
            return cls(modal.Cls.from_name(name, "Worker")(), None)
        return cls(None, modal.Server.from_name(name, "Server"))

    def draw(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request; a server is asked over HTTP, as it has no other way in."""
        if self.worker is not None:
            drawn: dict[str, Any] = self.worker.generate.remote(request)
            return drawn
        from sdxl_worker.deploying.asking import ask

        return ask(self.server.get_url(), request, os.environ)

    def start(self) -> StartReport | None:
        """How the container that runs says that it began; None where it has not said so."""
        from sdxl_worker.deploying.control import Fleet

        fleet = Fleet(dict(board.items()), time.time(), 0)
        return fleet.health(include_modules=False).start

    def running(self) -> int:
        """How many containers there are."""
        if self.worker is not None:
            return int(self.worker.generate.get_current_stats().num_total_runners)
        from sdxl_worker.deploying.control import Fleet

        return len(Fleet(dict(board.items()), time.time(), 0).containers)


@app.local_entrypoint()
def smoke(
    prompt: str = "a lighthouse at dusk, photograph", lora_url: str = "", output: str = "smoke.png"
) -> None:
    """Draw one picture with the deployed worker and save it here."""
    request = {"prompt": prompt, "seed": 1} | ({"lora_url": lora_url} if lora_url else {})
    began = time.perf_counter()
    result = _Deployed.find().draw(request)
    Path(output).write_bytes(base64.b64decode(result.pop("image_base64")))
    print(json.dumps(result, indent=1))
    print(f"{output}: {time.perf_counter() - began:.1f} s, the container's start included")


@app.local_entrypoint()
def bench(images: int = 10, lora_url: str = "", cold: bool = False, output: str = "") -> None:
    """Measure the deployed worker: `images` pictures one after the other, on a running container.

    With `--cold`, first wait until no container runs, so that the first one measures a start. The
    last line is JSON: each phase in seconds and USD.
    """
    from sdxl_worker.deploying.measured import Sample, report

    deployed = _Deployed.find()

    def draw(seed: int) -> Sample:
        request = {"prompt": "a lighthouse at dusk, photograph", "seed": seed, "timeout": 300}
        began = time.perf_counter()
        result = deployed.draw(request | ({"lora_url": lora_url} if lora_url else {}))
        return Sample(result, time.perf_counter() - began)

    window = deployment.scaledown_window_seconds
    if cold:
        print(f"waiting until no container runs (at most {window + 120} s) ...", flush=True)
        until = time.monotonic() + window + 120
        while deployed.running():
            if time.monotonic() > until:
                raise SystemExit("a container still runs: DEPLOY_MIN_CONTAINERS, or other requests")
            time.sleep(5)
    first = draw(0)  # may have waited for a container, and fetched the LoRA
    start = deployed.start() if cold else None
    samples = [draw(seed) for seed in range(1, max(1, images) + 1)]
    text = json.dumps(report(first if cold else None, samples, window, start))
    if output:
        Path(output).write_text(text + "\n")
    print(text)
