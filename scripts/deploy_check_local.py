"""The container's life without a container: volume filled, hooks run, one picture over ASGI.

Duty: the part of `deploy_check.py` that needs torch. The classes and functions are the ones that
`worker/app.py` gives to Modal, called by `.local()`; only the GPU is missing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import deploy_check
import httpx2
from modal_server_double import modal_server_double
from PIL import Image

MODEL = deploy_check.REPOSITORY / "demo_model" / "sdxl-demo"
TOKEN = "deploy-check"
SIDE = 64  # px: the smallest that the small model allows
# Whatever asks CUDA something while the snapshot's part runs would freeze the answer "no GPU".
_CUDA_QUESTIONS = (
    "_lazy_init",
    "current_device",
    "device_count",
    "get_device_capability",
    "is_available",
    "is_bf16_supported",
)


@contextlib.contextmanager
def cuda_questions(function: str) -> Iterator[list[str]]:
    """Names of CUDA calls made, inside the block, by `function` of app.py or what it calls."""
    import torch

    asked: list[str] = []

    def recorder(name: str, real: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            stack = traceback.extract_stack()
            if any(f.name == function and Path(f.filename).name == "app.py" for f in stack):
                asked.append(name)
            return real(*args, **kwargs)

        return record

    originals = {name: getattr(torch.cuda, name) for name in _CUDA_QUESTIONS}
    for name, real in originals.items():
        setattr(torch.cuda, name, recorder(name, real))
    try:
        yield asked
    finally:
        for name, real in originals.items():
            setattr(torch.cuda, name, real)


def check_container(path: Path) -> list[str]:
    """Problems: anything between an empty volume and a picture that is not as it must be."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        problems = _check_container(path)
    return [*problems, log.getvalue()[-3000:]] if problems else []


def _check_container(path: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, modal_server_double() as (url, _):
        values = {
            "BASE_MODEL": str(MODEL),
            "DEPLOY_WEIGHTS_MOUNT": f"{folder}/weights",
            "DEPLOY_LORA_MOUNT": f"{folder}/loras",
            "DEVICE": "cpu",
            "DTYPE": "float32",
            "WORKER_API_TOKEN": TOKEN,
            "TRANSFORMERS_VERBOSITY": "error",
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": "ak-double",
            "MODAL_TOKEN_SECRET": "as-double",
        }
        module = deploy_check.load_app(path, values)
        with deploy_check.environment(values), warnings.catch_warnings():
            # The volume is a folder here, which modal points out.
            warnings.filterwarnings("ignore", message=".*executing locally.*")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                module.download_weights.local()
            with cuda_questions("load") as asked:
                worker = module.Worker()
                web_app = worker.web.local()
            problems = [f"the snapshot's part calls torch.cuda.{name}" for name in sorted({*asked})]
            if "hashes recorded" not in said.getvalue():
                problems.append("download_weights does not say what it did")
            problems += asyncio.run(_check_http(web_app))
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
        answer = await http.post(
            "/generate-image", json=request, headers={"Authorization": f"Bearer {TOKEN}"}
        )
    if answer.status_code != 200:
        return [*problems, f"a request gets {answer.status_code}: {answer.text[:300]}"]
    body = answer.json()
    with Image.open(io.BytesIO(base64.b64decode(body["image_base64"]))) as picture:
        if (picture.format, picture.size) != ("PNG", (SIDE, SIDE)):
            problems.append(f"the picture is a {picture.format} of {picture.size}")
    if body["model_clean"] is not True:
        problems.append("the model is not clean after the request")
    return problems


def _check_damage(module: ModuleType, weights: Path) -> list[str]:
    """The control of the hashes: one changed byte keeps a container from starting."""
    victim = next((weights / MODEL.name / "unet").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    try:
        module.Worker().web.local()
    except Exception as error:
        return [] if victim.name in str(error) else [f"damaged weights raise {error!r}"]
    return ["a container starts with damaged weights"]
