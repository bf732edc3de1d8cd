"""The control beside real containers: health, states, cancels and metrics while a picture is drawn.

Duty: the part of `deploy/check.py` that runs what `worker/app.py` defines for control, and a
container of either way of routing, by the functions and hooks that Modal calls. Only Modal's Dict
is doubled, at its servers' calls.
Must not know: how the control finds out.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2

from deploy import check as deploy_check
from deploy.check_local import MODEL, SIDE, TOKEN, container_values
from deploy.modal_server_double import ModalServerDouble

_BEARER = {"Authorization": f"Bearer {TOKEN}"}
# Longer than the check: it is cancelled.
_LONG = {
    "prompt": "x",
    "width": SIDE,
    "height": SIDE,
    "steps": 100,
    "num_images": 4,
    "timeout": 120,
}
_SOON_S = 6.0


def check_control(
    path: Path, servers: tuple[str, ModalServerDouble], ways: Sequence[str] = ("queue", "affinity")
) -> list[str]:
    """Problems: anything that the control says wrongly, late, or not at all, with these ways of
    routing. `servers`: the running double of Modal's; a process stays with its first one."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        problems = _check(path, servers, ways)
    return [*problems, log.getvalue()[-3000:]] if problems else []


def _check(path: Path, servers: tuple[str, ModalServerDouble], ways: Sequence[str]) -> list[str]:
    url, double = servers
    with tempfile.TemporaryDirectory() as folder:
        problems = []
        for routing in ways:
            double.board.clear()
            values = container_values(folder, url) | {"DEPLOY_ROUTING": routing}
            module = deploy_check.load_app(path, values)
            with deploy_check.environment(values), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*executing locally.*")
                with contextlib.redirect_stdout(io.StringIO()):
                    module.download_weights.local()
                found = asyncio.run(_check_routing(module, routing))
            problems += [f"{routing}: {problem}" for problem in found]
    return problems


async def _check_routing(module: ModuleType, routing: str) -> list[str]:
    transport = httpx2.ASGITransport(module.control.local())
    async with httpx2.AsyncClient(transport=transport, base_url="http://control") as control:
        problems = await _check_empty(control)
        running = _queue if routing == "queue" else _affinity
        async with running(module) as worker:
            problems += await _check_running(control, worker)
        health = (await control.get("/health")).json()
        if (health["status"], health.get("base_model")) != ("ready", MODEL.name):
            problems.append(f"when all containers have ended, it says {health}")
        if (await _containers(control)) != 0:
            problems.append("a container that ended is still counted")
    return problems


async def _check_empty(control: httpx2.AsyncClient) -> list[str]:
    problems = []
    health = await control.get("/health")
    if (health.status_code, health.json()) != (200, health.json() | {"status": "ready"}):
        problems.append(f"before the first container it says {health.text}")
    if "limits" in health.json():
        problems.append("limits are stated that nobody has seen")
    for method, route in (
        ("GET", "/metrics"), ("GET", "/requests/x"), ("POST", "/requests/x/cancel"),
    ):  # fmt: skip
        if (await control.request(method, route)).status_code != 401:
            problems.append(f"{method} {route} answers without the token")
    return problems


async def _check_running(control: httpx2.AsyncClient, worker: httpx2.AsyncClient) -> list[str]:
    problems = []
    if (await control.get("/health")).json().get("base_model") != MODEL.name:
        problems.append("a container that is ready is not seen")
    modules = (await control.get("/health", params={"include": "modules"})).json()
    if not modules.get("signature", {}).get("modules"):
        problems.append("the model's modules are not told")
    body = _LONG | {"request_id": "long-one"}
    drawing = asyncio.create_task(worker.post("/generate-image", json=body, headers=_BEARER))
    state, until = "", time.monotonic() + _SOON_S
    while state != "running" and time.monotonic() < until and not drawing.done():
        answer = await control.get("/requests/long-one", headers=_BEARER)
        state = answer.json()["state"]
    if state != "running":
        await worker.post("/requests/long-one/cancel", headers=_BEARER)
        await drawing
        return [*problems, f"a request that is drawn is {state}"]
    if await _containers(control) != 1:
        problems.append("the metrics do not count one container")
    if (await worker.get("/health")).status_code != 200:
        problems.append("the worker itself does not answer")
    cancelled = await control.post("/requests/long-one/cancel", headers=_BEARER)
    if (cancelled.status_code, cancelled.json()["state"]) != (202, "cancelling"):
        problems.append(f"a cancel answers {cancelled.status_code} {cancelled.text}")
    asked = time.monotonic()
    answer = await drawing
    seconds = time.monotonic() - asked
    if answer.status_code != 499 or seconds > _SOON_S:
        problems.append(f"a cancelled request ends with {answer.status_code} after {seconds:.1f} s")
    other = await control.post("/requests/nobody/cancel", headers=_BEARER)
    if other.json()["state"] != "unknown":
        problems.append("a request that nobody has is cancelled")
    return problems


async def _containers(control: httpx2.AsyncClient) -> float:
    text = (await control.get("/metrics", headers=_BEARER)).text
    lines = [line for line in text.splitlines() if line.startswith("sdxl_worker_containers{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextlib.asynccontextmanager
async def _queue(module: ModuleType) -> AsyncIterator[httpx2.AsyncClient]:
    """A container behind Modal's queue: the hooks, the ASGI app and its lifespan."""
    web_app: Any = await asyncio.to_thread(lambda: module.Worker().web.local())
    async with (
        web_app.router.lifespan_context(web_app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(web_app), base_url="http://worker", timeout=120
        ) as http,
    ):
        yield http


@contextlib.asynccontextmanager
async def _affinity(module: ModuleType) -> AsyncIterator[httpx2.AsyncClient]:
    """A container behind Modal's edge: the hooks, in Modal's order, and the port they open."""
    from modal._partial_function import _find_callables_for_obj, _PartialFunctionFlags

    setattr(module, "PORT", 0)  # noqa: B010
    container = module.Server._get_user_cls()()
    kinds = _PartialFunctionFlags
    for kind in (kinds.ENTER_PRE_SNAPSHOT, kinds.ENTER_POST_SNAPSHOT):
        for hook in _find_callables_for_obj(container, kind).values():
            await asyncio.to_thread(hook)
    try:
        url = f"http://127.0.0.1:{container.server.port}"
        async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
            yield http
    finally:
        for hook in _find_callables_for_obj(container, kinds.EXIT).values():
            await asyncio.to_thread(hook)
