"""The edge of a Modal server (`@app.server`) with several containers behind it, over real HTTP.

It does what Modal documents of such an edge: there is no queue; calls with one session id go to one
container as long as that has room, in an order that a container's coming or going moves only in
part; calls without one go anywhere; where every container is full the answer is 429.
Must not know: what a container draws.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from sdxl_contract.errors import Cancelled
from sdxl_contract.request import parse_request
from sdxl_contract.routing.affinity import AFFINITY_HEADER, preference
from testkit.doubles.http_server import Call, HttpServer, Reply, as_json
from testkit.doubles.modal_edge_double import modal_http, picture

Gone = Callable[[], Awaitable[None]]


class Container(Protocol):
    """One of the containers behind the edge."""

    name: str

    async def answer(self, call: Call, gone: Gone) -> Reply:
        """The worker's answer."""


class ModalServerEdge(HttpServer):
    """The edge.

    Args:
        containers: who may be asked; more or fewer may stand there later.
        places: calls at once that a container takes.
        sticky: whether session ids are followed; the control of what following them is worth.
        seed: of the choice for calls without a session id.
    """

    def __init__(
        self,
        containers: Sequence[Container],
        *,
        places: int = 2,
        sticky: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.containers = list(containers)
        self.refused = 0
        self._places = places
        self._sticky = sticky
        self._random = random.Random(seed)
        self._load = {one.name: 0 for one in containers}

    async def answer(self, call: Call, gone: Gone) -> Reply:
        """One call, as the edge passes it on."""
        by_name = {one.name: one for one in self.containers}
        session = call.headers.get(AFFINITY_HEADER.lower())
        if self._sticky and session:
            order = preference(session, list(by_name))
        else:
            order = self._random.sample(list(by_name), len(by_name))
        # A cancel or a look is short: it goes where it belongs, also to a full container.
        short = call.path != "/generate-image"
        for name in order:
            if short or self._load[name] < self._places:
                self._load[name] += 1
                try:
                    return await by_name[name].answer(call, gone)
                finally:
                    self._load[name] -= 1
        self.refused += 1
        return modal_http(429, "too many concurrent requests")


class MemoryContainer:
    """A worker reduced to what routing changes: one lane, and a memory of the last LoRA sets.

    Args:
        holds: how many LoRA sets fit.
        miss_s, draw_s: seconds of a fetch, and of a drawing.
    """

    def __init__(self, name: str, holds: int, miss_s: float = 0.002, draw_s: float = 0.002) -> None:
        self.name = name
        self.hits = self.misses = 0
        self.cancelled: list[str] = []
        self.running: dict[str, asyncio.Event] = {}
        self.draw_s = draw_s
        self._miss_s = miss_s
        self._holds = holds
        self._memory: OrderedDict[str, None] = OrderedDict()
        self._lane = asyncio.Lock()

    async def answer(self, call: Call, gone: Gone) -> Reply:
        """The routes that the client uses."""
        parts = call.path.strip("/").split("/")
        if parts[0] == "requests":
            run = self.running.get(parts[1])
            if call.method == "POST" and run is not None:
                run.set()
            words = "cancelling" if call.method == "POST" else "running"
            state = "unknown" if run is None else words
            return as_json(
                {"request_id": parts[1], "state": state}, 202 if call.method == "POST" else 200
            )
        return await self._draw(call)

    async def _draw(self, call: Call) -> Reply:
        request = parse_request(call.body)
        name = request.request_id or ""
        stopped = self.running[name] = asyncio.Event()
        try:
            for ref in request.lora_refs():
                await self._fetch(ref.sha256 or ref.url)
            async with self._lane:
                try:
                    await asyncio.wait_for(stopped.wait(), self.draw_s)
                except TimeoutError:
                    return as_json(picture(request))
            self.cancelled.append(name)
            error: Any = Cancelled("the request was cancelled")
            return as_json(error.body().model_dump(mode="json"), error.status)
        finally:
            del self.running[name]

    async def _fetch(self, key: str) -> None:
        if key in self._memory:
            self.hits += 1
            self._memory.move_to_end(key)
            return
        self.misses += 1
        await asyncio.sleep(self._miss_s)
        self._memory[key] = None
        while len(self._memory) > self._holds:
            self._memory.popitem(last=False)
