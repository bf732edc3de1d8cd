"""The fallback provider's client against a double of Replicate's API, and the way to it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from app.core.settings import load_settings
from app.services.lora_inference import CircuitBreaker, InferenceProvider, LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.worker.replicate import ReplicateClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import Cancelled, ContractError, ErrorCode, LoraLoadFailed
from sdxl_contract.request import GenerateRequest, LoraRef
from testkit.doubles.http_server import CUT, Reply, as_json
from testkit.doubles.inference_double import draw_picture
from testkit.doubles.replicate_double import Plan, ReplicateDouble

pytestmark = pytest.mark.process


TOKEN, VERSION = "r8_test_token_1234", "abc123"
URL = "https://bucket.example/ink.safetensors?X-Amz-Signature=s"


@pytest.fixture
async def replicate() -> AsyncIterator[ReplicateDouble]:
    async with ReplicateDouble(TOKEN, VERSION) as running:
        yield running
        # Whatever went wrong: asked once, since a lost answer may have started a run.
        assert len(running.created) <= 1


def wanted(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**({"prompt": "an apple", "width": 64, "height": 64} | fields))


async def draw(
    replicate: ReplicateDouble, request: GenerateRequest, *, token: str = TOKEN, **arguments: Any
) -> Any:
    async def build() -> GenerateRequest:
        return request

    client = ReplicateClient(token, VERSION, api_url=replicate.url, poll_s=0.005)
    try:
        return await client.generate(build, request_id="job-1", **({"deadline_s": 20} | arguments))
    finally:
        await client.aclose()


async def test_a_picture_is_asked_for_waited_for_and_fetched(replicate: ReplicateDouble) -> None:
    request = wanted(loras=[LoraRef(url=URL, scale=0.7)], seed=5, steps=20, negative_prompt="rain")
    outcome = await draw(replicate, request)
    assert replicate.created[0].json() == {
        "version": VERSION,
        "input": {
            "prompt": "an apple", "negative_prompt": "rain", "width": 64, "height": 64,
            "num_inference_steps": 20, "guidance_scale": 5.5, "num_outputs": 1,
            "output_format": "png", "seed": 5, "replicate_weights": URL, "lora_scale": 0.7,
        },
    }  # fmt: skip
    assert (outcome.provider, outcome.attempts) == ("replicate", 1)
    png = draw_picture(wanted(), 5)
    assert [one.file for one in outcome.images] == [png]
    assert outcome.result.image_sha256 == hashlib.sha256(png).hexdigest()
    assert outcome.result.metadata.seed_used == 5
    assert (outcome.result.model_info.lora_applied, outcome.result.model_clean) == (True, None)


async def test_the_picture_s_host_never_gets_the_token(replicate: ReplicateDouble) -> None:
    await draw(replicate, wanted())
    [fetch] = [call for call in replicate.calls if call.path.startswith("/out/")]
    assert "authorization" not in fetch.headers
    assert replicate.created[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_without_a_seed_one_is_chosen_and_reported(replicate: ReplicateDouble) -> None:
    outcome = await draw(replicate, wanted())
    assert outcome.result.metadata.seed_used == replicate.created[0].json()["input"]["seed"]


async def test_a_list_of_outputs_gives_its_first(replicate: ReplicateDouble) -> None:
    replicate.plan = Plan(output=["{base}/out/{id}/0.png", "{base}/out/{id}/1.png"])
    assert len((await draw(replicate, wanted())).images) == 1


@pytest.mark.parametrize(
    ("plan", "code", "says"),
    [
        (Plan(create=Reply(401)), "UNAUTHORIZED", "REPLICATE_API_TOKEN"),
        (Plan(create=Reply(402)), "MODEL_LOAD_FAILED", "billing"),
        (Plan(create=Reply(422)), "GENERATION_FAILED", "does not take"),
        (Plan(create=Reply(429)), "OVERLOADED", "no more requests"),
        (Plan(create=Reply(500)), "MODEL_LOAD_FAILED", "answered 500"),
        (Plan(create=Reply(302, b"", {"Location": "/x"})), "MODEL_LOAD_FAILED", "answered 302"),
        (Plan(create=CUT), "MODEL_LOAD_FAILED", "cannot be reached"),
        (Plan(create=Reply(200, b"<html>")), "GENERATION_FAILED", "lacks a field"),
        (Plan(create=as_json([])), "GENERATION_FAILED", "lacks a field"),
        (Plan(create=as_json({"id": "x"}, 201)), "GENERATION_FAILED", "lacks a field"),
        (Plan(looks=[Reply(404)]), "MODEL_LOAD_FAILED", "answered 404"),
        (Plan(ends_as="failed"), "GENERATION_FAILED", "run failed"),
        (Plan(ends_as="canceled"), "CANCELLED", "stopped"),
        (Plan(ends_as="aborted"), "CANCELLED", "stopped"),
        (Plan(output=None), "GENERATION_FAILED", "no picture"),
        (Plan(output=[]), "GENERATION_FAILED", "no picture"),
        (Plan(output="http://127.0.0.1:1/x.png"), "GENERATION_FAILED", "no picture"),
        (Plan(output="{base}.evil.example/x.png"), "GENERATION_FAILED", "no picture"),
        (Plan(output="file:///etc/passwd"), "GENERATION_FAILED", "no picture"),
        (Plan(output="http://[::1"), "GENERATION_FAILED", "no picture"),
        (Plan(picture=Reply(404)), "GENERATION_FAILED", "404"),
        (Plan(picture=Reply(302, b"", {"Location": "/x"})), "GENERATION_FAILED", "302"),
        (Plan(picture=Reply(200, b"<html>")), "GENERATION_FAILED", "damaged"),
        (Plan(picture=Reply(200, draw_picture(wanted(), 1)[:-20])), "GENERATION_FAILED", "damaged"),
        (Plan(picture=Reply(200, draw_picture(wanted(width=72), 1))), "GENERATION_FAILED", "72x64"),
        (Plan(picture=CUT), "MODEL_LOAD_FAILED", "cannot be reached"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_named_in_the_contract_s_words(
    replicate: ReplicateDouble, plan: Plan, code: str, says: str
) -> None:
    replicate.plan = plan
    with pytest.raises(ContractError) as caught:
        await draw(replicate, wanted())
    assert caught.value.code == code
    assert says in caught.value.message
    for secret in (TOKEN, "secret detail", replicate.url, "/etc"):
        assert secret not in caught.value.message


async def test_a_wrong_token_is_named(replicate: ReplicateDouble) -> None:
    with pytest.raises(ContractError, match="REPLICATE_API_TOKEN"):
        await draw(replicate, wanted(), token="r8_wrong")


@pytest.mark.parametrize("told", [Reply(429), Reply(500), Reply(503), CUT])
async def test_a_run_is_not_given_up_because_one_look_failed(
    replicate: ReplicateDouble, told: Reply
) -> None:
    replicate.plan = Plan(looks=[told, told])
    assert (await draw(replicate, wanted())).provider == "replicate"


async def test_at_the_deadline_the_run_is_stopped(replicate: ReplicateDouble) -> None:
    replicate.plan = Plan(takes_looks=-1)
    with pytest.raises(ContractError) as caught:
        await draw(replicate, wanted(), deadline_s=0.3)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert replicate.predictions["p0"].status == "canceled"


async def test_a_caller_who_leaves_stops_the_run(replicate: ReplicateDouble) -> None:
    replicate.plan = Plan(takes_looks=-1)
    task = asyncio.create_task(draw(replicate, wanted()))
    while len(replicate.calls) < 3:  # asked for, and looked at twice
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert replicate.predictions["p0"].status == "canceled"


async def test_a_run_can_be_cancelled_by_the_request_s_id(replicate: ReplicateDouble) -> None:
    replicate.plan = Plan(takes_looks=-1)

    async def build() -> GenerateRequest:
        return wanted()

    client = ReplicateClient(TOKEN, VERSION, api_url=replicate.url, poll_s=0.005)
    task = asyncio.create_task(client.generate(build, request_id="job-1", deadline_s=20))
    while not await client.cancel("job-1"):
        await asyncio.sleep(0.005)
    with pytest.raises(Cancelled):
        await task
    assert await client.cancel("job-1") is False
    await client.aclose()


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": [LoraRef(url=URL), LoraRef(url=URL)]},
        {"num_images": 2},
        {"output_format": "webp"},
    ],
)
async def test_what_it_cannot_do_is_refused_before_it_costs(
    replicate: ReplicateDouble, fields: dict[str, Any]
) -> None:
    with pytest.raises(ContractError, match=r"one LoRA|one PNG"):
        await draw(replicate, wanted(**fields))
    assert replicate.calls == []


# --- the router ---------------------------------------------------------------------------------


async def build_wanted() -> GenerateRequest:
    return wanted()


async def test_a_worker_that_is_down_is_replaced_and_then_not_asked(
    replicate: ReplicateDouble,
) -> None:
    now = [0.0]
    worker = ModalSdxlLoraClient("http://127.0.0.1:9", policy=RetryPolicy(0, 0.001))
    client = ReplicateClient(TOKEN, VERSION, api_url=replicate.url, poll_s=0.005)
    breaker = CircuitBreaker(threshold=2, cool_down_s=30, now=lambda: now[0])
    router = LoraInference(worker, client, breaker)
    asked: list[bool] = []
    for _ in range(3):
        asked.append(breaker._opened_at is None)
        outcome = await router.generate(build_wanted, request_id="job-1", deadline_s=20)
        assert outcome.provider == "replicate"
        replicate.calls.clear()
    assert asked == [True, True, False]
    now[0] = 31
    assert breaker.allows()
    assert not breaker.allows()  # one at a time
    await router.aclose()


class _Refuses:
    """A provider that is in service and refuses the LoRA."""

    name = "refuses"

    async def generate(self, *_: object, **__: object) -> Any:
        raise LoraLoadFailed("no SDXL LoRA")


async def test_a_refusal_is_no_reason_for_the_fallback_and_closes_the_circuit(
    replicate: ReplicateDouble,
) -> None:
    breaker = CircuitBreaker(threshold=2)
    breaker.failed()
    client = ReplicateClient(TOKEN, VERSION, api_url=replicate.url)
    router = LoraInference(cast(InferenceProvider, _Refuses()), client, breaker)
    with pytest.raises(LoraLoadFailed):
        await router.generate(build_wanted, request_id="job-1", deadline_s=20)
    assert replicate.calls == []
    breaker.failed()
    assert breaker.allows()  # the failure before the refusal no longer counts
    await client.aclose()


async def test_no_token_or_version_means_no_fallback() -> None:
    assert ReplicateClient.from_settings(load_settings(replicate_api_token=TOKEN)) is None
    both = load_settings(replicate_api_token=TOKEN, replicate_model_version=VERSION)
    client = ReplicateClient.from_settings(both)
    assert client is not None
    assert TOKEN not in repr(client)
    await client.aclose()
