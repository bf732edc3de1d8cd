"""The container's life without a container: volume filled, hooks run, one picture over ASGI.

Duty: the part of `deploy_check.py` that runs what `worker/app.py` defines: the very classes and
functions that it gives to Modal, called by `.local()`; only the GPU is missing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import httpx2
from PIL import Image

from deploy import check as deploy_check
from sdxl_contract import prices
from sdxl_worker.deploying.settings import Deployment

MODEL = deploy_check.REPOSITORY / "demo_model" / "sdxl-demo"
TOKEN = "deploy-check-and-its-token"
ROTATED = "deploy-check-rotated"
SIDE = 64  # px: the smallest that the small model allows
# Weights are nearly all that a start reads; twice would be all of them again.
_READ_AT_MOST = 1.5
_ASKED = 3  # requests that meet a container without a model


@contextlib.contextmanager
def cuda_questions(function: str) -> Iterator[list[str]]:
    """Calls of the CUDA driver made, inside the block, by `function` of app.py or what it calls.

    torch behaves as if it were built for CUDA, as it is in the image, on a computer without a GPU:
    only then does what asks for an accelerator go the way that leads to the driver.
    """
    import torch

    asked: list[str] = []

    def ask_driver(name: str) -> int:
        stack = traceback.extract_stack()[:-2]
        if any(f.name == function and Path(f.filename).name == "app.py" for f in stack):
            where = next(f for f in reversed(stack) if "/torch/" not in f.filename)
            asked.append(f"{name} (by {Path(where.filename).name}, line {where.lineno})")
        return 0

    # These two as torch has them: it asks NVML where no answer is needed, or that is wished for.
    def device_count() -> int:
        visible: Any = torch.cuda._parse_visible_devices()
        return ask_driver("cudaGetDeviceCount") if visible else 0

    def is_available() -> bool:
        if torch.cuda._nvml_based_avail():
            return device_count() > 0
        return ask_driver("cudaGetDeviceCount") > 0

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        return torch.device("cuda") if not check_available or is_available() else None

    changed: list[tuple[Any, str, Any]] = [
        (torch.cuda, "device_count", device_count),
        (torch.cuda, "is_available", is_available),
        (torch.cuda, "_lazy_init", lambda: ask_driver("cuInit")),
        (torch.accelerator, "current_accelerator", current_accelerator),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        yield asked
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def rotated_after_the_snapshot() -> Iterator[None]:
    """The bearer token changes where a snapshot would be taken: Modal restores a snapshot with the
    secrets of the day."""
    from sdxl_worker.deploying import starting

    real = starting.read_weights

    def read_weights(*arguments: Any) -> starting.Weights:
        try:
            return real(*arguments)
        finally:
            os.environ["WORKER_API_TOKEN"] = ROTATED

    setattr(starting, "read_weights", read_weights)  # noqa: B010
    try:
        yield
    finally:
        setattr(starting, "read_weights", real)  # noqa: B010


class _Filled(Exception):
    """Ends `download_weights` where it would commit the volume, which is not mounted here."""


def check_filling(path: Path) -> list[str]:
    """Problems: settings that `download_weights` does not follow when it runs."""
    from sdxl_worker.deploying import volume as weights

    values = {
        "BASE_MODEL": "acme/other-xl",
        "BASE_MODEL_REVISION": "abc123",
        "DEPLOY_WEIGHTS_MOUNT": "/mnt/w",
        "HUGGINGFACE_HUB_TOKEN": deploy_check.PLANTED,
        "DTYPE": "float32",
    }
    wanted = {
        "root": Path("/mnt/w"),
        "source": "acme/other-xl",
        "revision": "abc123",
        "token": deploy_check.PLANTED,
        "half": False,
        "force": True,
    }
    told: dict[str, Any] = {}

    def fill(root: Path, source: str, **options: Any) -> None:
        told.update({"root": root, "source": source} | options)
        raise _Filled

    module = deploy_check.load_app(path, values)
    real: Any = weights.fill
    setattr(weights, "fill", fill)  # noqa: B010
    try:
        with (
            deploy_check.environment(values),
            warnings.catch_warnings(action="ignore"),
            contextlib.suppress(_Filled),
        ):
            module.download_weights.local(force=True)
    finally:
        weights.fill = real
    return [
        f"download_weights fills the volume with {name} {told.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if told.get(name) != value
    ]


def check_container(path: Path, url: str) -> list[str]:
    """Problems: anything between an empty volume and a picture that is not as it must be, with
    Modal's servers at `url`."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        problems = _check_container(path, url)
    return [*problems, log.getvalue()[-3000:]] if problems else []


def container_values(folder: str, url: str) -> dict[str, str]:
    """The environment of a container on this computer: volumes in `folder`, Modal's servers at
    `url`, the small model on the CPU."""
    return {
        "BASE_MODEL": str(MODEL),
        "DEPLOY_WEIGHTS_MOUNT": f"{folder}/weights",
        "DEPLOY_LORA_MOUNT": f"{folder}/loras",
        "DEPLOY_CODE_MOUNT": f"{folder}/compiled",
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "WORKER_API_TOKEN": TOKEN,
        "TRANSFORMERS_VERBOSITY": "error",
        "MODAL_SERVER_URL": url,
        "MODAL_TOKEN_ID": "ak-double",
        "MODAL_TOKEN_SECRET": "as-double",
    }


def _check_container(path: Path, url: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        values = container_values(folder, url)
        module = deploy_check.load_app(path, values)
        with deploy_check.environment(values), warnings.catch_warnings():
            # The volume is a folder here, which modal points out.
            warnings.filterwarnings("ignore", message=".*executing locally.*")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                module.download_weights.local()
            with cuda_questions("load") as asked, rotated_after_the_snapshot():
                worker = module.Worker()
                web_app = worker.web.local()
            problems = [
                f"the snapshot's part asks the GPU's driver: {name}" for name in sorted({*asked})
            ]
            if "hashes recorded" not in said.getvalue():
                problems.append("download_weights does not say what it did")
            problems += asyncio.run(_check_http(web_app))
            problems += _check_reads(module)
            # As a container of the next day has it.
            os.environ["WORKER_API_TOKEN"] = TOKEN
            problems += _check_damage(module, Path(folder) / "weights")
    return problems


async def _check_http(web_app: Any) -> list[str]:
    problems = []
    transport = httpx2.ASGITransport(web_app)
    request = {"prompt": "a red apple", "width": SIDE, "height": SIDE, "steps": 2, "seed": 1}
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://worker", timeout=60
    ) as http:
        health = await http.get("/health")
        if (health.status_code, health.json().get("status")) != (200, "ready"):
            problems.append(
                f"GET /health answers {health.status_code} when the first request comes"
            )
        if health.json().get("base_model") != MODEL.name:
            problems.append(f"the base model is called {health.json().get('base_model')}")
        refused = await http.post("/generate-image", json=request)
        if refused.status_code != 401:
            problems.append(f"a request without the bearer token gets {refused.status_code}")
        for token in (TOKEN, ROTATED):
            headers = {"Authorization": f"Bearer {token}"}
            answer = await http.post("/generate-image", json=request, headers=headers)
            if answer.status_code != 401:
                break
        if token == TOKEN:
            problems.append("M1: a token that was rotated after the snapshot still opens the door")
    if answer.status_code != 200:
        return [*problems, f"a request gets {answer.status_code}: {answer.text[:300]}"]
    body = answer.json()
    with Image.open(io.BytesIO(base64.b64decode(body["image_base64"]))) as picture:
        if (picture.format, picture.size) != ("PNG", (SIDE, SIDE)):
            problems.append(f"the picture is a {picture.format} of {picture.size}")
    if body["model_clean"] is not True:
        problems.append("the model is not clean after the request")
    deployment = Deployment()
    billed = (
        prices.USD_PER_SECOND[deployment.gpu[0]]
        + deployment.cpu * prices.CPU_CORE_USD_PER_SECOND
        + deployment.memory_mib / 1024 * prices.MEMORY_GIB_USD_PER_SECOND
    )
    said = (body["cost"] or {}).get("usd_per_second")
    if said is None or abs(said - billed) > 1e-12:
        problems.append(f"M11: a picture's second is said to cost {said}, and {billed} is billed")
    return problems


def _bytes_read() -> int | None:
    """What this process has read from files so far; None where the system does not tell."""
    counts = Path("/proc/self/io")
    if not counts.is_file():
        return None
    return int(counts.read_text().split("rchar:")[1].split()[0])


def _check_reads(module: ModuleType) -> list[str]:
    """A start without a snapshot, from the volume to the engine's weights, in bytes."""
    from sdxl_worker.deploying import starting

    deployment = module.deployment
    settings = deployment.settings_without_secrets()
    before = _bytes_read()
    held = starting.still_current(starting.read_weights(deployment, settings), deployment, settings)
    after = _bytes_read()
    if held.manifest is None:
        return [f"the weights cannot be read: {held.problem}"]
    if before is None or after is None:
        return []
    times = (after - before) / held.manifest.total_bytes
    return [f"M3: a start reads the weights {times:.1f} times"] if times > _READ_AT_MOST else []


def _check_damage(module: ModuleType, weights: Path) -> list[str]:
    """With one changed byte a container serves nobody and says why, and the next requests do not
    each pay for another container that would fail as well."""
    victim = next((weights / MODEL.name / "unet").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    left: list[int] = []

    async def leave() -> None:
        left.append(1)

    import modal.experimental

    platform = SimpleNamespace(aio=leave)
    with mock.patch.object(modal.experimental, "stop_fetching_inputs", platform):
        health, statuses = asyncio.run(_failed(module.Worker().web.local()))
    if health.get("status") != "failed":
        return ["a container starts with damaged weights"]
    problems = []
    if victim.name not in str(health.get("error")):
        problems.append(f"damaged weights are reported as {health.get('error')}")
    if statuses != [503] * _ASKED:
        problems.append(f"a container without a model answers {statuses}")
    if left:
        problems.append(
            f"M9: a container whose start failed is replaced after {_ASKED} requests at once: each "
            "replacement is paid for, and fails as well"
        )
    return problems


async def _failed(web_app: Any) -> tuple[dict[str, Any], list[int]]:
    transport = httpx2.ASGITransport(web_app)
    request = {"prompt": "x", "width": SIDE, "height": SIDE, "steps": 1}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://worker", headers=headers
    ) as http:
        health: dict[str, Any] = (await http.get("/health")).json()
        asked = [await http.post("/generate-image", json=request) for _ in range(_ASKED)]
        return health, [answer.status_code for answer in asked]
