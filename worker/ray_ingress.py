"""The way in, under Ray Serve: HTTP to the replica that it belongs to, and the answer back.

Duty: a request's key and place, ASGI messages both ways, errors of Serve as the contract's.
Must not know: how a picture is made, or what the worker's HTTP app answers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray_local import keep_replica_to_loopback
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Scope

from ray_routing import Route, request_key
from sdxl_contract.errors import ContractError, GenerationFailed, Overloaded
from sdxl_contract.request import parse_request

REPLICA_HEADER = "x-worker-replica"
_BODY_MAX_BYTES = 1 << 20
_PLACES_MAX = 10_000


class Ingress:
    """Takes HTTP, finds the request's key and place, and passes both ways what the worker says.

    Only one of these runs, so that a repeated request_id is sent where its first call went.
    """

    def __init__(self, worker: DeploymentHandle[Any]) -> None:
        keep_replica_to_loopback()
        self._worker = worker.options(stream=True).http
        self._places: OrderedDict[str, asyncio.Future[str]] = OrderedDict()

    async def __call__(self, request: Request) -> Response:
        """One request's answer, streamed."""
        try:
            return await self._forward(request)
        except BackPressureError:
            error: ContractError = Overloaded(
                "every replica is busy and the line is full", retry_after=5.0
            )
        except RayActorError:
            error = GenerationFailed("the replica that worked on this ended", retry_after=1.0)
        return Response(
            error.body().model_dump_json(exclude_none=True),
            status_code=error.status,
            headers={"Retry-After": f"{error.retry_after:.0f}"},
            media_type="application/json",
        )

    async def _forward(self, request: Request) -> Response:
        body = await _read(request)
        name = _request_id(request.url.path, body)
        known = self._places.get(name) if name else None
        # A call that is being placed right now is waited for: both must end up in one place.
        place = await asyncio.shield(known) if known is not None else None
        claim: asyncio.Future[str] | None = None
        if name is not None and known is None and request.url.path == "/generate-image":
            claim = self._claim(name)
        try:
            call = self._worker.remote(
                Route(request_key(body), place), _plain_scope(request.scope), body
            )
            stream = aiter(cast(AsyncIterator[Message], call))
            replica: str = (await anext(stream))["id"]
            if name is not None and place and place != replica:
                # The replica that had it is gone: later calls follow this one.
                claim = self._claim(name)
            if claim is not None:
                claim.set_result(replica)
            start = await anext(stream)
            if start["status"] >= 400:
                # Nothing is kept of a failure: the next call with this id may go anywhere.
                self._give_up(name, claim)
        except BaseException:
            self._give_up(name, claim)
            raise
        headers = [*start.get("headers", ()), (REPLICA_HEADER.encode(), replica.encode())]
        response = StreamingResponse(_bodies(stream), status_code=start["status"])
        response.raw_headers = [(bytes(key), bytes(value)) for key, value in headers]
        return response

    def _claim(self, name: str) -> asyncio.Future[str]:
        """The place, to be filled in, of the request_id `name`."""
        place = self._places[name] = asyncio.get_running_loop().create_future()
        while len(self._places) > _PLACES_MAX:
            self._places.popitem(last=False)
        return place

    def _give_up(self, name: str | None, claim: asyncio.Future[str] | None) -> None:
        if name is None or claim is None:
            return
        if not claim.done():
            claim.set_result("")  # whoever waits for it: anywhere
        if self._places.get(name) is claim:
            del self._places[name]


async def _read(request: Request) -> bytes:
    """The body, no further than the worker needs to refuse it as too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_MAX_BYTES:
            break
    return bytes(body)


def _request_id(path: str, body: bytes) -> str | None:
    """The request_id that a call is about: `/generate-image` has it in its body."""
    parts = path.strip("/").split("/")
    if parts[0] == "requests" and len(parts) > 1:
        return parts[1]
    with suppress(ContractError):
        return parse_request(body).request_id
    return None


def _plain_scope(scope: Scope) -> dict[str, Any]:
    """The part of an ASGI scope that can cross processes and that the worker's app reads."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string")
    plain: dict[str, Any] = {name: scope[name] for name in names if name in scope}
    plain["headers"] = [(bytes(key), bytes(value)) for key, value in scope["headers"]]
    return plain | {"root_path": "", "asgi": {"version": "3.0"}, "client": None, "server": None}


async def _bodies(messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message["type"] == "http.response.body" and message.get("body"):
            yield message["body"]
