"""The worker's client against a double of Modal's edge, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from doubles.http_server import CUT, Reply
from doubles.modal_edge_double import ModalEdgeDouble, Run, State, modal_http

from app.services.modal_sdxl_lora_client import InferenceOutcome, ModalSdxlLoraClient
from app.services.retry import RetryPolicy
from sdxl_contract.errors import (
    Cancelled,
    ContractError,
    CudaOutOfMemory,
    ErrorCode,
    GenerationFailed,
    InvalidPrompt,
    InvalidRequest,
    LoraDownloadFailed,
    LoraLoadFailed,
    ModelLoadFailed,
    Overloaded,
    RequestTimeout,
)
from sdxl_contract.request import GenerateRequest, LoraRef, dump_request

KEY, SECRET, TOKEN = "wk-test-key-123", "ws-test-secret-456", "worker-token-789"
HTML = Reply(500, b"<html>something broke</html>", {"Content-Type": "text/html"})
# Answers to a question for a result that say nothing of the run behind it.
BUSY_EDGE = {
    "429": modal_http(429, "too many requests"),
    "429 of a gateway": Reply(429, b"slow down"),
    "408": modal_http(408, "Missing request, possibly due to expiry or cancellation"),
    "502": Reply(502, b"<html>bad gateway</html>"),
    "503": Reply(503),
    "restarting": modal_http(404, "app crashed and is about to restart"),
    "unclear": modal_http(500, "internal error"),
    "empty 303": Reply(303),
    "cut": CUT,
    "cut inside the answer": Reply(200, b'{"image_base64": "AAAA"}', cut=9),
}


def wanted(**fields: Any) -> GenerateRequest:
    known = {"prompt": "a red apple", "width": 64, "height": 64, "seed": 7, "request_id": "job-1"}
    return GenerateRequest(**(known | fields))


def client_of(edge: ModalEdgeDouble, **changes: Any) -> ModalSdxlLoraClient:
    arguments: dict[str, Any] = {
        "api_token": TOKEN,
        "proxy_key": KEY,
        "proxy_secret": SECRET,
        "timeout_s": 20.0,
        "policy": RetryPolicy(3, 0.001),
        "poll_s": 0.005,
    }
    return ModalSdxlLoraClient(f"{edge.url}/generate-image", **(arguments | changes))


async def draw(edge: ModalEdgeDouble, request: GenerateRequest, **changes: Any) -> InferenceOutcome:
    async with client_of(edge, **changes) as client:
        return await client.generate_image(request)


async def failure(edge: ModalEdgeDouble, request: GenerateRequest, **changes: Any) -> ContractError:
    with pytest.raises(ContractError) as caught:
        await draw(edge, request, **changes)
    return caught.value


@pytest.fixture
async def edge() -> AsyncIterator[ModalEdgeDouble]:
    async with ModalEdgeDouble(proxy_auth=(KEY, SECRET), token=TOKEN) as running:
        yield running
        assert running.violations == []


@pytest.mark.parametrize("location", ["relative", "absolute"])
async def test_a_chain_of_303_is_followed_by_get_with_the_credentials(
    edge: ModalEdgeDouble, location: str
) -> None:
    edge.plan(Run(seconds=400, location=location))  # answers after 150 s and 300 s are 303
    outcome = await draw(edge, wanted())
    assert (outcome.attempts, outcome.result.model_clean) == (1, True)
    assert len(edge.posts) == 1
    assert len(edge.looks) >= 2
    for call in edge.calls:
        assert call.headers["authorization"] == f"Bearer {TOKEN}"
        assert (call.headers["modal-key"], call.headers["modal-secret"]) == (KEY, SECRET)
    assert [look.body for look in edge.looks] == [b""] * len(edge.looks)
    assert "content-type" not in edge.looks[0].headers
    assert edge.posts[0].body == dump_request(wanted())


async def test_a_303_to_a_post_that_names_no_place_is_no_reason_to_post_again(
    edge: ModalEdgeDouble,
) -> None:
    edge.plan(Run(seconds=200, location="empty"))
    outcome = await draw(edge, wanted())
    assert outcome.attempts == 2
    assert len(edge.posts) == 2  # the second only once the first had ended
    assert len(edge.works) == 1  # and it got what the first had drawn
    assert edge.looks == []


@pytest.mark.parametrize("told", BUSY_EDGE.values(), ids=BUSY_EDGE)
async def test_an_edge_that_does_not_know_is_asked_again_not_posted_to(
    edge: ModalEdgeDouble, told: Reply
) -> None:
    edge.plan(Run(seconds=170, looks=(told, told)))
    assert (await draw(edge, wanted())).attempts == 1
    assert len(edge.posts) == 1
    assert len(edge.looks) >= 3


async def test_303s_that_come_at_once_are_not_followed_in_a_hurry() -> None:
    async with ModalEdgeDouble(hop_s=0.0) as edge:
        edge.plan(Run(seconds=300))
        await draw(edge, wanted(), poll_s=0.05)
        assert len(edge.posts) == 1
        assert 1 <= len(edge.looks) <= 30  # 0.3 s at 0.05 s each, with room for a slow machine


async def test_an_input_that_is_preempted_and_restarted_is_waited_for(
    edge: ModalEdgeDouble,
) -> None:
    edge.plan(Run(seconds=100, preempted=3))
    assert (await draw(edge, wanted())).attempts == 1
    assert (len(edge.posts), edge.works[0].starts) == (1, 4)


async def test_the_client_has_a_deadline_of_its_own(edge: ModalEdgeDouble) -> None:
    edge.plan(Run(seconds=3600))
    error = await failure(edge, wanted(), timeout_s=0.5)
    assert error.code is ErrorCode.TIMEOUT
    assert error.message == "no picture within 0.5 s and 1 attempt"
    assert len(edge.posts) == 1


@pytest.mark.parametrize(
    ("told", "code", "says", "posts"),
    [
        (modal_http(408, "Missing request, perhaps expired"), "GENERATION_FAILED", "lost", 4),
        (modal_http(429, "too many requests"), "OVERLOADED", "no more requests", 4),
        (Reply(429), "OVERLOADED", "no more requests", 4),
        (modal_http(404, "invalid function call"), "MODEL_LOAD_FAILED", "deploy it", 1),
        (modal_http(404, "app crashed and will restart"), "MODEL_LOAD_FAILED", "not know", 4),
        (modal_http(404, "workspace 'x' is disabled"), "MODEL_LOAD_FAILED", "billing", 1),
        (modal_http(500, "function execution timed out"), "TIMEOUT", "too long", 4),
        (modal_http(500, "task terminated by signal 9"), "GENERATION_FAILED", "ended", 4),
        (modal_http(401, "missing credentials"), "UNAUTHORIZED", "MODAL_PROXY_KEY", 1),
        (modal_http(400, "bad request"), "GENERATION_FAILED", "refused", 1),
        (Reply(401), "UNAUTHORIZED", "MODAL_API_TOKEN", 1),
        (Reply(403, b"<html>"), "GENERATION_FAILED", "MODAL_ENDPOINT_URL", 1),
        (Reply(307, b"", {"Location": "/else"}), "GENERATION_FAILED", "MODAL_ENDPOINT_URL", 1),
        (HTML, "GENERATION_FAILED", "answered 500", 4),
        (Reply(200, b"<html>Welcome</html>"), "GENERATION_FAILED", "MODAL_ENDPOINT_URL", 1),
        (Reply(200, b'{"image_size": [64, 64]}'), "GENERATION_FAILED", "lacks a field", 4),
    ],
)  # fmt: skip
async def test_what_modal_says_is_understood(
    edge: ModalEdgeDouble, told: Reply, code: str, says: str, posts: int
) -> None:
    edge.plan(*[told] * 4)
    error = await failure(edge, wanted())
    assert error.code == code
    assert says in error.message
    assert len(edge.posts) == posts
    if posts > 1:
        edge.plan(told, request_id="job-2")
        assert (await draw(edge, wanted(request_id="job-2"))).attempts == 2


@pytest.mark.parametrize(
    ("error", "posts"),
    [
        (InvalidPrompt("blank"), 1),
        (InvalidRequest("steps: at least 1"), 1),
        (LoraDownloadFailed("its server failed", details={"reason": "http_status"}), 1),
        (LoraDownloadFailed("expired", details={"reason": "expired"}), 2),
        (LoraLoadFailed("no SDXL LoRA"), 1),
        (ModelLoadFailed("still loading"), 4),
        (GenerationFailed("not finite"), 4),
        (RequestTimeout("over 60 s"), 4),
        (CudaOutOfMemory("try 768 x 768"), 3),
        (Overloaded("16 wait", retry_after=0.001), 4),
        (Cancelled("stopped"), 1),
    ],
    ids=lambda value: value.code.value if isinstance(value, ContractError) else str(value),
)
async def test_the_worker_s_errors_are_retried_as_the_contract_says(
    edge: ModalEdgeDouble, error: ContractError, posts: int
) -> None:
    edge.plan(*[Run(says=error)] * 4)
    raised = await failure(edge, wanted())
    assert (raised.code, raised.message) == (error.code, error.message)
    assert len(edge.posts) == posts
    assert {call.json()["request_id"] for call in edge.posts} == {"job-1"}


async def test_missing_proxy_credentials_are_named_and_not_tried_again(
    edge: ModalEdgeDouble,
) -> None:
    error = await failure(edge, wanted(), proxy_key=None, proxy_secret=None)
    assert error.code is ErrorCode.UNAUTHORIZED
    assert "MODAL_PROXY_KEY" in error.message
    assert (len(edge.calls), edge.posts) == (1, [])


@pytest.mark.parametrize("header", ["0.3", "0.300"])
async def test_retry_after_is_waited_for(edge: ModalEdgeDouble, header: str) -> None:
    edge.plan(modal_http(429, "too many requests", **{"Retry-After": header}))
    started = time.monotonic()
    assert (await draw(edge, wanted())).attempts == 2
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("header", ["soon", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT", "99999"])
async def test_a_retry_after_that_helps_nobody_is_passed_over(
    edge: ModalEdgeDouble, header: str
) -> None:
    edge.plan(modal_http(429, "too many requests", **{"Retry-After": header}))
    assert (await draw(edge, wanted())).attempts == 2


async def test_a_wait_beyond_the_deadline_is_not_begun(edge: ModalEdgeDouble) -> None:
    edge.plan(Run(says=Overloaded("16 wait", retry_after=600)))
    started = time.monotonic()
    error = await failure(edge, wanted())
    assert (error.code, error.retry_after) == (ErrorCode.OVERLOADED, 600)
    assert time.monotonic() - started < 10


async def test_an_expired_url_is_signed_anew_for_each_attempt(edge: ModalEdgeDouble) -> None:
    edge.plan(Run(says=LoraDownloadFailed("expired", details={"reason": "expired"})))
    signed = itertools.count(1)

    async def build() -> GenerateRequest:
        url = f"https://bucket.example/ink.safetensors?X-Amz-Signature={next(signed)}"
        return wanted(loras=[LoraRef(url=url)])

    async with client_of(edge) as client:
        outcome = await client.generate(build, request_id="job-9")
    assert outcome.attempts == 2
    urls = [call.json()["loras"][0]["url"] for call in edge.posts]
    assert [url[-1] for url in urls] == ["1", "2"]
    assert {call.json()["request_id"] for call in edge.posts} == {"job-9"}


FOREIGN = [
    "http://{other}/result",
    "//{other}/result",
    "http://{here}@{other}/result",
    "https://{here}/result",
    "http://localhost:{port}/result",
    "http://[::1",
    "http://127.0.0.1:99999/",
]


@pytest.mark.parametrize("location", FOREIGN)
@pytest.mark.parametrize("at_look", [False, True], ids=["post", "look"])
async def test_another_host_never_gets_the_credentials(
    edge: ModalEdgeDouble, location: str, at_look: bool
) -> None:
    async with ModalEdgeDouble() as other:
        here = edge.url.removeprefix("http://")
        place = location.format(
            here=here, other=other.url.removeprefix("http://"), port=here.split(":")[1]
        )
        away = Reply(303, b"", {"Location": place})
        edge.plan(Run(seconds=200, looks=(away,)) if at_look else away)
        error = await failure(edge, wanted())
        assert "redirects to another host" in error.message
        assert place not in error.message
        assert other.calls == []
        assert len(edge.posts) == 1


@pytest.mark.parametrize("state", ["truth", "unknown", "silent"])
@pytest.mark.parametrize("how", ["cut", "gateway"])
async def test_behind_many_containers_only_a_known_end_allows_a_second_post(
    state: State, how: str
) -> None:
    async with ModalEdgeDouble(state=state) as edge:
        edge.plan(Run(seconds=300, **{f"{how}_after": 20}))
        if state == "truth":
            assert (await draw(edge, wanted())).attempts == 2
            assert len(edge.works) == 1  # the second got what the first had drawn
        else:
            error = await failure(edge, wanted(), timeout_s=0.6)
            assert error.code is ErrorCode.TIMEOUT
            assert len(edge.posts) == 1
        assert edge.violations == []


async def test_one_process_s_unknown_means_that_nothing_runs() -> None:
    async with ModalEdgeDouble(stops=True) as edge:
        edge.plan(Run(seconds=60_000, cut_after=20))
        outcome = await draw(edge, wanted(), proxy_key=None, proxy_secret=None)
        assert outcome.attempts == 2
        assert len(edge.works) == 2
        assert edge.violations == []


async def test_a_request_without_an_id_is_not_posted_again_while_it_may_run() -> None:
    async with ModalEdgeDouble() as edge:
        edge.plan(Run(seconds=300, cut_after=20))
        error = await failure(edge, wanted(request_id=None), timeout_s=0.6)
        assert error.code is ErrorCode.TIMEOUT
        assert len(edge.posts) == 1


@pytest.mark.parametrize(
    ("url", "key", "many"),
    [
        ("https://team--worker.modal.run/generate-image", None, True),
        ("https://pictures.example", None, True),
        ("http://127.0.0.1:8001", "wk-x", True),
        ("http://127.0.0.1:8001/generate-image/", None, False),
    ],
)
async def test_an_https_name_may_stand_for_many_containers(
    url: str, key: str | None, many: bool
) -> None:
    async with ModalSdxlLoraClient(url, proxy_key=key, proxy_secret=key) as client:
        assert client._exchange._many_containers is many


async def test_a_worker_that_is_down_is_tried_again_and_then_named() -> None:
    async with ModalEdgeDouble() as edge:
        pass
    error = await failure(edge, wanted())
    assert error.code is ErrorCode.MODEL_LOAD_FAILED
    assert "cannot be reached" in error.message
    assert edge.url not in error.message


# --- no request is POSTed twice while the first may still run ---------------------------------

MAY_RUN: dict[str, Run | Reply] = {
    "chain": Run(seconds=320),
    "chain, absolute": Run(seconds=320, location="absolute"),
    "no place": Run(seconds=200, location="empty"),
    "foreign place": Run(seconds=200, location="http://127.0.0.2:9/x"),
    "cut": Run(seconds=120, cut_after=10),
    "gateway": Run(seconds=120, gateway_after=10),
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
ASKS = {"no place", "cut", "gateway", "preempted, then cut"}


def histories() -> list[tuple[str, ...]]:
    """Every fault alone, a known end before each fault that may leave a run, random triples."""
    told = [(name,) for name in FAULTS]
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
