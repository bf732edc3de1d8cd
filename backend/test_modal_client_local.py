"""Tries the worker's client from a terminal; run it where you can see it, not by pytest.

    python test_modal_client_local.py                              checks, then a local worker
    python test_modal_client_local.py --url URL [--token TOKEN]    checks, then your worker
    python test_modal_client_local.py --offline                    checks alone

First it checks the client's parts without a network: how it is set up, that calls run side by
side, base64 both ways. Then one real request goes through the same client that the backend uses,
to the worker at --url, or to one that is started here with the small model. The picture lies in
--output afterwards.

Exit codes: 0 all well; 1 a check or the picture failed; 2 wrong arguments; 3 no worker that is
ready; 4 the local worker did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import httpx2
from PIL import Image
from pydantic import ValidationError

from app.core.settings import load_settings
from app.services.modal_sdxl_lora_client import InferenceOutcome, ModalSdxlLoraClient
from app.services.worker.answer import decode_images, read_result
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import ContractError
from sdxl_contract.request import GenerateRequest, LoraRef, explain_validation
from sdxl_contract.result import Health, HealthStatus, ProgressEvent, WorkerEvent

OK, FAILED, USAGE, NO_WORKER, NOT_STARTED = range(5)
_REPOSITORY = Path(__file__).resolve().parent.parent
_START_S = 300.0


class _NotStarted(Exception):
    """The local worker did not come up; the message says why."""


def _say(mark: str, text: str) -> None:
    print(f"{mark:<6}{text}", flush=True)


# --- without a network ---------------------------------------------------------------------------


def _answer(size: tuple[int, int]) -> bytes:
    """A worker's answer with a one-colour PNG of `size` (px)."""
    file = BytesIO()
    Image.new("RGB", size, "orange").save(file, "PNG")
    data = file.getvalue()
    answer = {
        "image_base64": base64.b64encode(data).decode(),
        "image_size": size,
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "generation_time_seconds": 1,
        "model_info": {"base_model": "none", "lora_applied": False},
        "metadata": {"seed_used": 1, "actual_steps": 20, "actual_cfg": 5.5},
    }
    return json.dumps(answer).encode()


async def _check_initialisation() -> None:
    settings = load_settings(
        modal_endpoint_url="https://team--worker.modal.run/generate-image",
        modal_api_token="not-a-real-token",
    )
    async with ModalSdxlLoraClient.from_settings(settings) as client:
        assert "not-a-real-token" not in repr(client), "the token shows in repr"
    with contextlib.suppress(ValueError):
        ModalSdxlLoraClient.from_settings(settings.model_copy(update={"modal_endpoint_url": None}))
        raise AssertionError("a client without a URL was made")


async def _check_side_by_side() -> None:
    """Four calls wait for each other on the other side: one after another would never end."""
    together = asyncio.Barrier(4)

    async def worker(_: httpx2.Request) -> httpx2.Response:
        await together.wait()
        return httpx2.Response(200, content=_answer((64, 64)))

    request = GenerateRequest(prompt="x", width=64, height=64)
    transport = httpx2.MockTransport(worker)
    async with (
        asyncio.timeout(30),
        ModalSdxlLoraClient("http://worker.invalid", transport=transport) as client,
    ):
        outcomes = await asyncio.gather(*(client.generate_image(request) for _ in range(4)))
    assert len(outcomes) == 4, "a call is missing"


async def _check_base64() -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    body = _answer((64, 64))
    [drawn] = decode_images(read_result(body), request)
    assert base64.b64encode(drawn.file) in body, "the picture changed on its way"
    for wrong in (body.replace(b'"iVBOR', b'"!VBOR'), _answer((72, 64))):
        with contextlib.suppress(ContractError):
            decode_images(read_result(wrong), request)
            raise AssertionError("a damaged picture was believed")


_CHECKS: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
    ("client initialisation: from settings, refuses no URL, shows no token", _check_initialisation),
    ("async: four calls at the same time", _check_side_by_side),
    ("base64 both ways: the bytes come back, damaged ones are refused", _check_base64),
)


async def _run_checks() -> bool:
    passed = True
    for name, check in _CHECKS:
        try:
            await check()
        except Exception as error:
            passed = False
            _say("FAIL", f"{name}: {error}")
        else:
            _say("ok", name)
    return passed


# --- one real request ----------------------------------------------------------------------------


@contextlib.contextmanager
def _local_worker() -> Iterator[str]:
    """A worker with the small model, ready; its URL."""
    sys.path.insert(0, str(_REPOSITORY))
    from scripts.stack import DEMO_MODEL, LOOPBACK, REPOSITORY, Service, StackError, free_port

    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with tempfile.TemporaryDirectory() as folder:
        worker = Service(
            name="worker",
            command=[sys.executable, "-m", "sdxl_worker.serve"],
            folder=REPOSITORY / "worker",
            environment={
                "BASE_MODEL": os.environ.get("BASE_MODEL") or str(DEMO_MODEL),
                "WORKER_HOST": LOOPBACK,
                "WORKER_PORT": str(port),
                "WORKER_API_TOKEN": "",
                "LORA_ALLOW_LOOPBACK": "true",
            },
            ready_url=f"{url}/health",
            log=Path(folder) / "worker.log",
        )
        _say("...", "starting a local worker with the small model")
        started = time.monotonic()
        try:
            try:
                worker.start()
                worker.wait_ready(_START_S)
            except (StackError, OSError) as error:
                raise _NotStarted(str(error)) from error
            _say("ok", f"ready after {time.monotonic() - started:.1f} s")
            yield url
        finally:
            worker.stop()


@contextlib.contextmanager
def _lora_url(arguments: argparse.Namespace) -> Iterator[str | None]:
    """The LoRA's URL; a file is served on loopback as long as it is needed."""
    if arguments.lora_file is None:
        yield arguments.lora_url
        return

    class OneFile(SimpleHTTPRequestHandler):
        """Serves the file's bytes, whatever the path, and logs nothing."""

        def translate_path(self, path: str) -> str:
            return str(arguments.lora_file)

        def log_message(self, format: str, *values: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(OneFile))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/lora.safetensors"
    finally:
        server.shutdown()
        server.server_close()


class _Progress:
    """Prints each phase once, and every step of the drawing in one line."""

    def __init__(self) -> None:
        self._phase = ""

    async def __call__(self, event: WorkerEvent) -> None:
        """Hear of one event."""
        if isinstance(event, ProgressEvent) and event.phase.value != self._phase:
            self._phase = event.phase.value
            _say("...", self._phase)


async def _draw(url: str, arguments: argparse.Namespace) -> int:
    async with ModalSdxlLoraClient(
        url,
        api_token=arguments.token,
        proxy_key=os.environ.get("MODAL_PROXY_KEY"),
        proxy_secret=os.environ.get("MODAL_PROXY_SECRET"),
        timeout_s=arguments.timeout,
        policy=RetryPolicy(),
    ) as client:
        try:
            health = await client.health()
        except ContractError as error:
            _say("FAIL", f"{error.code.value}: {error.message}")
            return NO_WORKER
        _say("ok", f"worker: {health.status.value}, {health.base_model} on {health.gpu}")
        if health.status is not HealthStatus.READY:
            return NO_WORKER
        try:
            with _lora_url(arguments) as lora:
                request = _request(arguments, health, lora)
                outcome = await client.generate(_build(request), on_event=_Progress())
        except ValidationError as error:
            wrong = explain_validation(error.errors(include_url=False))
            _say("FAIL", f"{wrong.code.value}: {wrong.message}")
            return FAILED
        except ContractError as error:
            _say("FAIL", f"{error.code.value}: {error.message}")
            return FAILED
    _report(outcome, arguments.output)
    return OK


def _build(request: GenerateRequest) -> Callable[[], Awaitable[GenerateRequest]]:
    async def build() -> GenerateRequest:
        return request

    return build


def _request(
    arguments: argparse.Namespace, health: Health, lora_url: str | None
) -> GenerateRequest:
    side = health.limits.native_size
    request = GenerateRequest(
        prompt=arguments.prompt,
        loras=[LoraRef(url=lora_url, scale=arguments.lora_scale)] if lora_url else [],
        width=arguments.width or side,
        height=arguments.height or side,
        steps=arguments.steps,
        seed=arguments.seed,
        request_id=f"local-{os.getpid()}-{time.time_ns()}",
    )
    request.check_limits(health.limits)
    return request


def _report(outcome: InferenceOutcome, output: Path) -> None:
    result = outcome.result
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(outcome.images[0].file)
    width, height = result.image_size
    _say("ok", f"{width}x{height} PNG, {len(outcome.images[0].file)} bytes, written to {output}")
    _say("ok", f"sha256 {hashlib.sha256(outcome.images[0].file).hexdigest()}")
    _say("ok", f"seed {result.metadata.seed_used}, attempts {outcome.attempts}")
    for name, seconds in result.timings.model_dump().items():
        if seconds:
            _say("", f"{name:<14}{seconds:8.3f} s")
    for lora in result.loras:
        stray = f", skipped {len(lora.modules_unmatched)}" if lora.modules_unmatched else ""
        _say(
            "ok",
            f"LoRA {lora.sha256[:12]} at {lora.scale:g}: {lora.format}, rank {lora.rank}, "
            f"{lora.modules_matched} modules{stray}",
        )
    clean = {True: "unchanged, bit for bit", False: "CHANGED", None: "not reported"}
    _say("ok", f"the model afterwards: {clean[result.model_clean]}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a worker's URL; MODAL_ENDPOINT_URL is not read")
    where.add_argument("--start", action="store_true", help="start a local worker (the default)")
    where.add_argument("--offline", action="store_true", help="the checks alone")
    parser.add_argument(
        "--token", default=os.environ.get("MODAL_API_TOKEN"), help="default: MODAL_API_TOKEN"
    )
    parser.add_argument("--prompt", default="a red apple on a wooden table")
    lora = parser.add_mutually_exclusive_group()
    lora.add_argument("--lora-url", help="a signed URL that the worker can fetch")
    lora.add_argument("--lora-file", type=Path, help="a file here, for a worker on this computer")
    parser.add_argument("--lora-scale", type=float, default=1.0)
    parser.add_argument("--width", type=int, help="px; default: the model's native side")
    parser.add_argument("--height", type=int, help="px; default: the model's native side")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds, retries included")
    parser.add_argument("--output", type=Path, default=Path("modal-client-local.png"))
    arguments = parser.parse_args(argv)
    if arguments.url and not arguments.url.startswith(("http://", "https://")):
        parser.error("--url must start with https:// or http://")
    if arguments.lora_file is not None and not arguments.lora_file.is_file():
        parser.error("--lora-file is no file")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the checks and one request; returns the exit code."""
    arguments = _parse(argv)
    if not asyncio.run(_run_checks()):
        return FAILED
    if arguments.offline:
        return OK
    if arguments.url:
        return asyncio.run(_draw(arguments.url, arguments))
    try:
        with _local_worker() as url:
            arguments.token = None
            return asyncio.run(_draw(url, arguments))
    except _NotStarted as error:
        _say("FAIL", f"the local worker did not start: {error}")
        return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
