"""Modal's edge with a worker behind it, as a real HTTP server with a fast clock.

It does what Modal documents and what is seen of it under load: after 150 s a web function is
answered 303, and its result is fetched by GET; requests are refused, lost, or cut off; inputs are
preempted and start again behind the edge without the client's knowing. Every call is recorded,
and of every POST whether an earlier run of the same request was still in progress.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sdxl_contract.errors import ContractError
from sdxl_contract.request import GenerateRequest, parse_request
from testkit.doubles.http_server import CUT, Call, HttpServer, Reply, as_json
from testkit.doubles.inference_double import draw_picture

CALL_ID = "__modal_function_call_id"
State = Literal["truth", "unknown", "silent"]


@dataclass(frozen=True)
class Run:
    """What becomes of one POST that reaches a worker. Seconds of Modal's clock.

    Args:
        seconds: the drawing takes.
        preempted: times that the input is stopped at its end and starts again behind the edge.
        says: the worker's answer; None for the right picture.
        location: the 303's Location; `empty` for none, other texts are sent as they are.
        cut_after: seconds after which the client's connection is broken; the run goes on.
        gateway_after: seconds after which the client is told `gateway_status`; the run goes on.
        looks: what the GETs for the result are told first, one each.
    """

    seconds: float = 8.0
    preempted: int = 0
    says: Reply | ContractError | None = None
    location: str = "relative"
    cut_after: float | None = None
    gateway_after: float | None = None
    gateway_status: int = 504
    looks: tuple[Reply, ...] = ()


@dataclass
class _Work:
    """One run behind the edge."""

    request_id: str | None
    plan: Run
    done: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Reply | None = None
    starts: int = 0
    looks: list[Reply] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return not self.done.is_set()

    @property
    def has_picture(self) -> bool:
        return self.reply is not None and self.reply.status == 200


def modal_http(status: int, text: str, **headers: str) -> Reply:
    """A body that comes from Modal, not from the app behind it."""
    return Reply(status, f"modal-http: {text}".encode(), {"Content-Type": "text/plain"} | headers)


def picture(request: GenerateRequest, png: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """A worker's result; `png` in the place of the right picture, `changes` over its fields."""
    data = draw_picture(request, request.seed or 0) if png is None else png
    return {
        "image_base64": base64.b64encode(data).decode(),
        "image_size": [request.width, request.height],
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "generation_time_seconds": 1.0,
        "model_info": {"base_model": "double", "lora_applied": bool(request.loras)},
        "metadata": {
            "seed_used": request.seed or 0,
            "actual_steps": request.steps,
            "actual_cfg": request.cfg,
        },
        "model_clean": True,
    } | changes


class ModalEdgeDouble(HttpServer):
    """Modal's edge. `plan` says what becomes of the next POSTs; those without a plan succeed.

    Args:
        speed: seconds of Modal's clock that go by in one real second.
        hop_s: after which the edge answers 303.
        proxy_auth: (key, secret) that every call must carry, if set.
        token: bearer token that the worker behind the edge asks for, if set.
        state: what `GET /requests/{id}` says: the truth, always `unknown` as another container
            would, or nothing (404).
        keeps: a repeated request joins the run, or gets the result, that this container has.
        stops: a run stops when its client is gone, as in a worker of one process.
    """

    def __init__(
        self,
        *,
        speed: float = 1000.0,
        hop_s: float = 150.0,
        proxy_auth: tuple[str, str] | None = None,
        token: str | None = None,
        state: State = "truth",
        keeps: bool = True,
        stops: bool = False,
    ) -> None:
        super().__init__()
        self._speed = speed
        self._hop_s = hop_s
        self._proxy_auth = proxy_auth
        self._token = token
        self._state = state
        self._keeps = keeps
        self._stops = stops
        self._plans: dict[str | None, list[Run | Reply]] = {}
        self.works: list[_Work] = []
        self.posts: list[Call] = []
        self.violations: list[Call] = []

    def plan(self, *steps: Run | Reply, request_id: str | None = None) -> None:
        """What becomes of the next POSTs, of one request where its id is given."""
        self._plans.setdefault(request_id, []).extend(steps)

    @property
    def looks(self) -> list[Call]:
        """The GETs for a result."""
        return [call for call in self.calls if CALL_ID in call.query and call.method == "GET"]

    async def __aexit__(self, *arguments: Any) -> None:
        for work in self.works:
            if work.task is not None:
                work.task.cancel()
        await super().__aexit__(*arguments)

    async def answer(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        """One call, as Modal's edge answers it."""
        if self._proxy_auth is not None and self._proxy_auth != (
            call.headers.get("modal-key"),
            call.headers.get("modal-secret"),
        ):
            return modal_http(401, "missing credentials for proxy authorization")
        if self._token is not None and (
            call.headers.get("authorization") != f"Bearer {self._token}"
        ):
            return as_json(
                {"error": "the bearer token is missing", "error_code": "UNAUTHORIZED"}, 401
            )
        if call.path == "/generate-image":
            if CALL_ID not in call.query:
                return await self._post(call, gone) if call.method == "POST" else Reply(405)
            if call.method != "GET":
                return modal_http(400, "a result is fetched by GET")
            return await self._look(call)
        if call.path.startswith("/requests/") and call.method == "GET":
            return self._tell_state(call.path.removeprefix("/requests/"))
        if call.path == "/health":
            return as_json({"status": "ready", "base_model": "double", "gpu": "L4"})
        return modal_http(404, "no such path")

    async def _post(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        request = parse_request(call.body)
        self.posts.append(call)
        same = [work for work in self.works if work.request_id == request.request_id]
        if any(work.is_running for work in same):
            self.violations.append(call)
        plans = self._plans.get(request.request_id) or self._plans.get(None) or [Run()]
        step = plans.pop(0)
        if isinstance(step, Reply):
            return step
        kept = [work for work in same if work.is_running or work.has_picture]
        if self._keeps and request.request_id is not None and kept:
            work = kept[-1]
        else:
            work = _Work(request.request_id, step, looks=list(step.looks))
            self.works.append(work)
            work.task = asyncio.create_task(self._draw(work, request, call))
        gives_up = [
            (step.cut_after, CUT),
            (step.gateway_after, Reply(step.gateway_status, b"<html>gateway timeout</html>")),
        ]
        for after, reply in gives_up:
            if after is not None:
                await self._wait(work, after, gone)
                self._lose_client(work)
                return reply
        if not await self._wait(work, self._hop_s, gone):
            self._lose_client(work)
        return self._result_or_303(work, step.location)

    async def _draw(self, work: _Work, request: GenerateRequest, call: Call) -> None:
        for _ in range(work.plan.preempted + 1):
            work.starts += 1
            await asyncio.sleep(work.plan.seconds / self._speed)
        says = work.plan.says
        if isinstance(says, ContractError):
            says = as_json(says.body().model_dump(mode="json"), says.status)
        streams = "text/event-stream" in call.headers.get("accept", "")
        work.reply = says or (stream(request) if streams else as_json(picture(request)))
        work.done.set()

    async def _wait(
        self, work: _Work, seconds: float, gone: Callable[[], Awaitable[object]]
    ) -> bool:
        """Wait for the end of `work` for `seconds`; False where the client went away before."""
        waits = [asyncio.ensure_future(work.done.wait()), asyncio.ensure_future(gone())]
        finished, pending = await asyncio.wait(
            waits, timeout=seconds / self._speed, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        return work.done.is_set() or not finished

    def _lose_client(self, work: _Work) -> None:
        if self._stops and work.is_running and work.task is not None:
            work.task.cancel()
            work.done.set()

    async def _look(self, call: Call) -> Reply:
        work = self.works[int(call.query[CALL_ID].removeprefix("fc-"))]
        if work.looks:
            return work.looks.pop(0)
        await self._wait(work, self._hop_s, asyncio.Event().wait)
        return self._result_or_303(work, work.plan.location)

    def _result_or_303(self, work: _Work, location: str) -> Reply:
        if work.reply is not None:
            return work.reply
        place = f"/generate-image?{CALL_ID}=fc-{self.works.index(work)}"
        known = {"relative": place, "absolute": self.url + place}
        headers = {} if location == "empty" else {"Location": known.get(location, location)}
        return Reply(303, b"", headers)

    def _tell_state(self, request_id: str) -> Reply:
        if self._state == "silent":
            return Reply(404)
        states = {
            "running" if work.is_running else "succeeded"
            for work in self.works
            if work.request_id == request_id and (work.is_running or work.has_picture)
        }
        state = "unknown"
        if self._state == "truth" and states:
            state = "running" if "running" in states else "succeeded"
        return as_json({"request_id": request_id, "state": state})


def stream(request: GenerateRequest, *events: Any, cut: int | None = None) -> Reply:
    """Server-sent events: `events`, or progress and the right picture; whole, or cut off."""
    told = events or (
        {"type": "progress", "phase": "denoise", "step": 1, "steps": request.steps},
        {"type": "result", "result": picture(request)},
    )
    text = "".join(
        f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in told
    )
    return Reply(200, text.encode(), {"Content-Type": "text/event-stream"}, cut)
