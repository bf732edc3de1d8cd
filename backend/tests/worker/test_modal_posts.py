"""No request is POSTed twice while the first may still run, whatever Modal's edge does."""

from __future__ import annotations

import asyncio
import random

import httpx2
import pytest

from sdxl_contract.errors import ContractError, GenerationFailed, ModelLoadFailed
from sdxl_contract.request import GenerateRequest, dump_request
from testkit.clients.modal_client import BUSY_EDGE, HTML, client_of, wanted
from testkit.doubles.http_server import Reply
from testkit.doubles.modal_edge_double import ModalEdgeDouble, Run, State, modal_http

pytestmark = pytest.mark.process


MAY_RUN: dict[str, Run | Reply] = {
    "chain": Run(seconds=320),
    "chain, absolute": Run(seconds=320, location="absolute"),
    "no place": Run(seconds=200, location="empty"),
    "foreign place": Run(seconds=200, location="http://127.0.0.2:9/x"),
    "cut": Run(seconds=120, cut_after=10),
    "gateway": Run(seconds=120, gateway_after=10),
    "gateway's own word": Run(seconds=120, gateway_after=10, gateway_status=599),
    "preempted, then cut": Run(seconds=60, preempted=3, cut_after=80),
    "preempted, chain": Run(seconds=90, preempted=3),
    **{f"look: {name}": Run(seconds=300, looks=(told,)) for name, told in BUSY_EDGE.items()},
}
ENDED: dict[str, Run | Reply] = {
    "429": modal_http(429, "too many requests", **{"Retry-After": "0.001"}),
    "408": modal_http(408, "Missing request"),
    "restarting": modal_http(404, "crashed, will restart"),
    "timed out": modal_http(500, "function execution timed out"),
    "signal": modal_http(500, "terminated by signal"),
    "500": HTML,
    "loading": Run(says=ModelLoadFailed("still loading")),
    "damaged": Run(says=Reply(200, b'{"image_base64": 1}')),
    "ended at a look": Run(seconds=160, says=modal_http(500, "terminated by signal")),
    "failed at a look": Run(seconds=160, says=GenerationFailed("not finite")),
}
FAULTS = MAY_RUN | ENDED


# After these the client depends on what the worker says of the request.
ASKS = {"no place", "cut", "gateway", "gateway's own word", "preempted, then cut"}


def histories() -> list[tuple[str, ...]]:
    """Every fault alone, a known end before each fault that may leave a run, random triples."""
    told: list[tuple[str, ...]] = [(name,) for name in FAULTS]
    told += [
        (first, second) for first in ENDED for second in MAY_RUN if not second.startswith("look")
    ]
    chance = random.Random(6)
    return told + [tuple(chance.choices(list(FAULTS), k=3)) for _ in range(30)]


@pytest.mark.parametrize("state", ["truth", "unknown", "silent"])
async def test_no_request_is_posted_while_the_first_may_still_run(state: State) -> None:
    cases = histories()
    async with ModalEdgeDouble(state=state, keeps=False) as edge:
        for number, faults in enumerate(cases):
            edge.plan(*(FAULTS[name] for name in faults), request_id=f"job-{number}")
        at_once = asyncio.Semaphore(32)

        async with client_of(edge) as client:

            async def one(number: int) -> bool:
                async def build() -> GenerateRequest:
                    return wanted()

                never_told = state != "truth" and ASKS.intersection(cases[number])
                async with at_once:
                    try:
                        await client.generate(
                            build,
                            request_id=f"job-{number}",
                            deadline_s=0.4 if never_told else 120,
                        )
                    except ContractError:
                        return False
                    return True

            drawn = await asyncio.gather(*(one(number) for number in range(len(cases))))
        assert edge.violations == []
        # Not because it gave up: what can be drawn was, many after several POSTs.
        for faults, was_drawn in zip(cases, drawn, strict=True):
            if "foreign place" not in faults and (state == "truth" or not ASKS & {*faults}):
                assert was_drawn, faults
        assert len(edge.posts) > len(cases)


@pytest.mark.parametrize("name", MAY_RUN)
async def test_a_naive_client_does_post_twice(name: str) -> None:
    """The control: the check above can fail, for each of these faults."""
    async with ModalEdgeDouble(speed=200, keeps=False) as edge, httpx2.AsyncClient() as http:
        edge.plan(MAY_RUN[name])
        for _ in range(3):
            try:
                body = dump_request(wanted())
                answer = await http.post(f"{edge.url}/generate-image", content=body, timeout=0.2)
                if answer.status_code == 200:
                    break
            except httpx2.HTTPError:
                continue
        assert edge.violations != []
