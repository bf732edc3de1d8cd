"""The worker's client against a double of Modal's edge, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
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
from testkit.clients.modal_client import (
    BUSY_EDGE,
    HTML,
    KEY,
    SECRET,
    TOKEN,
    client_of,
    draw,
    failure,
    wanted,
)
from testkit.doubles.http_server import Reply, as_json
from testkit.doubles.modal_edge_double import (
    ModalEdgeDouble,
    Run,
    State,
    modal_http,
    picture,
    stream,
)

pytestmark = pytest.mark.process


AGAIN = Reply(303, b"", {"Location": "?__modal_function_call_id=fc-0"})
ZIPPED_WRONG = Reply(200, b"\x1f\x8bno gzip", {"Content-Encoding": "gzip"})
# The worker's own error under the status of a success.
SAYS_BLANK = b'{"error": "the prompt is blank", "error_code": "INVALID_PROMPT"}'


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
    error = await failure(edge, wanted(), timeout_s=2.0)
    assert error.code is ErrorCode.TIMEOUT
    assert error.message == "no picture within 2 s and 1 attempt"
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
        (Reply(308, b"", {"Location": "https://x/"}), "GENERATION_FAILED", "with https", 1),
        (ZIPPED_WRONG, "GENERATION_FAILED", "cannot be decompressed", 4),
        (Reply(200, SAYS_BLANK), "INVALID_PROMPT", "is blank", 1),
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


async def test_a_retry_after_may_be_a_date(edge: ModalEdgeDouble) -> None:
    in_three_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    edge.plan(modal_http(429, "too many requests", **{"Retry-After": in_three_seconds}))
    started = time.monotonic()
    assert (await draw(edge, wanted())).attempts == 2
    assert time.monotonic() - started >= 0.9  # dates have no fractions; a busy machine is late


@pytest.mark.parametrize("header", ["99999", "Fri, 31 Dec 2100 23:59:59 GMT", "inf"])
async def test_a_retry_after_beyond_the_deadline_ends_the_attempts(
    edge: ModalEdgeDouble, header: str
) -> None:
    edge.plan(modal_http(429, "too many requests", **{"Retry-After": header}))
    error = await failure(edge, wanted())
    assert (error.code, error.retry_after) == (ErrorCode.OVERLOADED, 3600)
    assert len(edge.posts) == 1


@pytest.mark.parametrize("kind", ["application/json", "text/html", "TEXT/plain"])
async def test_a_result_is_read_whatever_its_type_says_and_also_compressed(
    edge: ModalEdgeDouble, kind: str
) -> None:
    body = gzip.compress(as_json(picture(wanted())).body)
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    edge.plan(Run(says=Reply(200, body, headers)))
    assert (await draw(edge, wanted())).attempts == 1


async def test_a_stream_is_known_by_its_type_in_any_case(edge: ModalEdgeDouble) -> None:
    told = stream(wanted())
    headers = {"Content-Type": "Text/Event-Stream; charset=utf-8"}
    edge.plan(Run(says=Reply(200, told.body, headers)))
    assert (await draw(edge, wanted())).attempts == 1


@pytest.mark.parametrize(
    "location",
    [
        "?__modal_function_call_id=fc-0",
        "../generate-image?__modal_function_call_id=fc-0",
        "  /generate-image?__modal_function_call_id=fc-0  ",
        "/generate-image?__modal_function_call_id=fc-0#part",
    ],
)
async def test_every_spelling_of_a_place_on_the_same_host_is_followed(
    edge: ModalEdgeDouble, location: str
) -> None:
    edge.plan(Run(seconds=200, location=location))
    assert (await draw(edge, wanted())).attempts == 1
    assert len(edge.looks) >= 1


async def test_a_loop_of_303s_ends_at_the_deadline_and_is_polite(edge: ModalEdgeDouble) -> None:
    edge.plan(Run(seconds=60_000_000, looks=(AGAIN,) * 5000))
    error = await failure(edge, wanted(), timeout_s=1.0, poll_s=0.05)
    assert error.code is ErrorCode.TIMEOUT
    assert len(edge.posts) == 1
    assert len(edge.calls) <= 25


@pytest.mark.parametrize(
    "header", ["soon", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 99 Oct 2026"]
)
async def test_a_retry_after_that_helps_nobody_is_passed_over(
    edge: ModalEdgeDouble, header: str
) -> None:
    edge.plan(modal_http(429, "too many requests", **{"Retry-After": header}))
    assert (await draw(edge, wanted())).attempts == 2


async def test_a_wait_beyond_the_deadline_is_not_begun(edge: ModalEdgeDouble) -> None:
    edge.plan(Run(says=Overloaded("16 wait", retry_after=600)))
    async with asyncio.timeout(60):
        error = await failure(edge, wanted())
    assert (error.code, error.retry_after) == (ErrorCode.OVERLOADED, 600)


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
        after: dict[str, Any] = {f"{how}_after": 20}
        edge.plan(Run(seconds=300, **after))
        if state == "truth":
            assert (await draw(edge, wanted())).attempts == 2
            assert len(edge.works) == 1  # the second got what the first had drawn
        else:
            error = await failure(edge, wanted(), timeout_s=2.0)
            assert error.code is ErrorCode.TIMEOUT
            assert "1 attempt: the connection to the worker broke while" in error.message
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
        error = await failure(edge, wanted(request_id=None), timeout_s=2.0)
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
