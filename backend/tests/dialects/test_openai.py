"""`/v1` with OpenAI's own client, and with what other programs were seen to send."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from PIL import Image

from app.dialects.openai.answers import Partials
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.result import PreviewEvent
from testkit.backend import Served, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

GENERATIONS = "/v1/images/generations"


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
        yield client


def opened(b64: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


async def test_a_picture_with_our_fields_beside_openais(
    client: Any, served: Served, inference: InferenceDouble
) -> None:
    lora = await served.backend.upload(kohya_lora(), "Ink")
    answer = await client.images.generate(
        model="gpt-image-1",
        prompt="a red apple <lora:Ink:0.5>",
        n=2,
        size="1024x768",
        extra_body={"seed": 7, "negative_prompt": "blurred", "steps": 9, "cfg": 3.5},
    )
    [request] = inference.requests
    assert (request.prompt, request.negative_prompt) == ("a red apple", "blurred")
    assert (request.width, request.height, request.num_images) == (1024, 768, 2)
    assert (request.steps, request.cfg, request.seed) == (9, 3.5, 7)
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(lora["sha256"], 0.5)]
    assert [item.seed for item in answer.data] == [7, 8]
    assert all(opened(item.b64_json).size == (1024, 768) for item in answer.data)
    assert answer.data[0].url is None
    assert answer.size == "1024x768"


async def test_pictures_come_by_url_where_asked_or_where_openais_model_did_so(
    client: Any, served: Served
) -> None:
    for asked, by_url in (
        ({"model": "dall-e-3"}, True),
        ({}, False),
        ({"response_format": "url"}, True),
        ({"model": "dall-e-2", "response_format": "b64_json"}, False),
    ):
        [item] = (await client.images.generate(prompt="an apple", **asked)).data
        assert (item.url is not None, item.b64_json is not None) == (by_url, not by_url)
        if item.url:
            path = item.url.split("8000", 1)[1]
            assert (await served.backend.http.get(path)).content.startswith(b"\x89PNG")


async def test_pictures_come_in_the_format_that_is_asked_for(client: Any) -> None:
    for name in ("jpeg", "webp", "png"):
        answer = await client.images.generate(
            prompt="an apple", output_format=name, output_compression=30
        )
        assert opened(answer.data[0].b64_json).format == name.upper()
        assert answer.output_format == name


def png(mode: str, colour: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(file, "PNG")
    return file.getvalue()


async def test_an_edit_draws_over_a_picture_where_the_mask_is_clear(
    client: Any, served: Served, inference: InferenceDouble
) -> None:
    lora = await served.backend.upload(kohya_lora(), "Ink")
    answer = await client.images.edit(
        image=("a.png", png("RGB", "red")),
        mask=("m.png", png("RGBA", (0, 0, 0, 0))),
        prompt="a red apple",
        n=2,
        size="1024x768",
        extra_body={"seed": 7, "strength": 0.5, "loras": [{"name": "Ink", "scale": 0.5}]},
    )
    [request] = inference.requests
    assert (request.prompt, request.num_images, request.seed) == ("a red apple", 2, 7)
    assert (request.strength, request.width, request.height) == (0.5, 1024, 768)
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(lora["sha256"], 0.5)]
    assert request.image is not None
    assert request.mask is not None
    assert (request.mask.channel, request.mask.invert) == ("alpha", True)
    assert len(answer.data) == 2
    # As LibreChat and LiteLLM name the file, and of whatever kind it says that it is.
    files = {"image[]": ("upload", png("RGB", "blue"), "application/octet-stream")}
    form = {"prompt": "x", "strength": "much"}
    wrong = await served.backend.http.post("/v1/images/edits", files=files, data=form)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "strength")
    form["strength"] = "0.25"
    good = await served.backend.http.post("/v1/images/edits", files=files, data=form)
    assert good.status_code == 200, good.text
    assert (inference.requests[1].strength, inference.requests[1].mask) == (0.25, None)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": " "}, "prompt", "blank"),
    ({"size": "1000x1001"}, "size", "nearest"),
    ({"size": "large"}, "size", "1024x1024"),
    ({"n": 9}, "n", "at most 8"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"output_format": "gif"}, "output_format", "png"),
    ({"partial_images": 4}, "partial_images", "at most 3"),
    ({"extra_body": {"steps": 1000}}, "steps", "at most 100"),
    ({"extra_body": {"seed": -1}}, "seed", "at least 0"),
    ({"extra_body": {"loras": 5}}, "loras", "list"),
    ({"prompt": "x <lora:a:b>"}, "prompt", "number"),
    ({"prompt": "x <lora:a:1:0.5>"}, "prompt", "alike"),
    ({"prompt": "x <lora:a:nan>"}, "prompt", "a weight is from"),
]


async def test_a_wrong_field_is_a_400_that_names_it(client: Any) -> None:
    for asked, param, hint in WRONG:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.generate(**{"prompt": "an apple", **asked})
        assert caught.value.param == param
        assert hint in caught.value.message
        assert caught.value.type == "invalid_request_error"
        assert (caught.value.request_id or "").startswith("req_")


async def test_an_unknown_lora_is_answered_with_the_nearest(client: Any, served: Served) -> None:
    await served.backend.upload(kohya_lora(), "Line Art")
    with pytest.raises(openai.NotFoundError, match="Near: “Line Art”"):
        await client.images.generate(prompt="x <lora:Line Arts:1>")


async def test_models_are_the_base_model_and_its_aliases(client: Any) -> None:
    names = [model.id async for model in client.models.list()]
    assert names[0] == "sdxl"
    assert {"gpt-image-1", "dall-e-3"} <= set(names)
    assert (await client.models.retrieve("dall-e-3")).id == "dall-e-3"
    for ask in (
        client.models.retrieve("flux"),
        client.images.generate(model="flux", prompt="an apple"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await ask
        assert caught.value.code == "model_not_found"


async def test_a_wrong_key_is_refused_in_openais_shape(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.images.generate(prompt="an apple")
    assert caught.value.code == "invalid_api_key"
    azure = await served.backend.http.get(
        "/v1/models", headers={"Authorization": "", "api-key": served.key}
    )
    assert azure.status_code == 200


async def test_before_the_first_key_a_client_may_send_any(start_backend: StartBackend) -> None:
    async with start_backend() as backend:
        for path, status in (("/v1/models", 200), ("/api/v1/content", 401)):
            answer = await backend.http.get(path, headers={"Authorization": "Bearer none"})
            assert answer.status_code == status
        foreign = {"Authorization": "Bearer none", "Origin": "https://evil.example"}
        assert (await backend.http.get("/v1/models", headers=foreign)).status_code == 403


async def test_a_failed_picture_is_not_asked_for_again(
    client: Any, served: Served, inference: InferenceDouble
) -> None:
    inference.failures = [GenerationFailed("the picture is not finite")]
    with pytest.raises(openai.InternalServerError, match="not finite"):
        await client.images.generate(prompt="an apple")
    assert len(inference.requests) == 1


async def test_a_repeated_call_joins_the_open_content(
    served: Served, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    client = openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key=served.key, timeout=0.7, max_retries=2
    )
    with pytest.raises(openai.APITimeoutError):
        await client.images.generate(prompt="an apple")
    inference.gate.set()
    answer = await client.with_options(timeout=20).images.generate(
        prompt="an apple", extra_headers={"x-stainless-retry-count": "1"}
    )
    contents = (await served.backend.http.get("/api/v1/content")).json()["items"]
    assert len(contents) == len(inference.requests) == 1
    [image] = answer.data or []
    assert image.model_dump()["seed"] == contents[0]["images"][0]["seed"]
    # The control: a first call is a new wish, and another user's repetition finds nothing of ours.
    await client.with_options(timeout=20).images.generate(prompt="an apple")
    assert len(inference.requests) == 2
    other = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.other_key)
    await other.images.generate(prompt="an apple", extra_headers={"x-stainless-retry-count": "1"})
    assert len(inference.requests) == 3


async def test_partial_pictures_stream_in_and_the_finished_one_ends_it(
    client: Any, inference: InferenceDouble
) -> None:
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    preview = base64.b64encode(small.getvalue()).decode()
    inference.events = [PreviewEvent(image_base64=preview, step=step) for step in (10, 20, 27)]
    inference.event_pause = 0.55
    events = [
        event
        async for event in await client.images.generate(
            prompt="an apple", stream=True, partial_images=2, n=2
        )
    ]
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(opened(event.b64_json) for event in events)
    assert events[-1].usage.total_tokens == 0


async def test_an_error_ends_a_stream(client: Any, inference: InferenceDouble) -> None:
    inference.failures = [GenerationFailed("not finite")]
    with pytest.raises(openai.APIError, match="not finite"):
        async for _ in await client.images.generate(prompt="an apple", stream=True):
            pass


@pytest.mark.parametrize(
    ("count", "steps", "previews", "shown"),
    [
        (3, 28, range(1, 29), [7, 14, 21]),
        (1, 28, range(1, 29), [14]),
        (2, 4, (2, 3), [2, 3]),
        (0, 28, range(1, 29), []),
    ],
)
def test_previews_are_spread_over_the_steps(
    count: int, steps: int, previews: Any, shown: list[int]
) -> None:
    partials = Partials(count, steps)
    taken = [(step, partials.take(step)) for step in previews]
    assert [step for step, index in taken if index is not None] == shown
    assert [index for _, index in taken if index is not None] == list(range(len(shown)))


async def test_whatever_a_bodys_content_type_says_it_is_read_as_json(served: Served) -> None:
    headers = {"Content-Type": "text/plain"}
    http = served.backend.http
    good = await http.post(GENERATIONS, content=b'{"prompt": "x"}', headers=headers)
    assert good.status_code == 200
    for body in (b"[", b"[]", b"\xff", b"[" * 100_000, b"", b'{"prompt": 5}', b'{"prompt": null}'):
        answer = await http.post(GENERATIONS, content=body, headers=headers)
        assert answer.status_code == 400, body[:10]
        assert answer.json()["error"]["param"] in ("request", "prompt")


async def test_sillytaverns_ping_and_what_is_not_there(served: Served) -> None:
    http = served.backend.http
    assert (await http.options(GENERATIONS)).status_code == 204
    assert (await http.post("/v1/images/variations")).status_code == 404
    for files in ({"image": b"x"}, {"mask": b"x"}, {"other": b"x"}):
        edited = await http.post("/v1/images/edits", files=files, data={"prompt": "x"})
        assert (edited.status_code, edited.json()["error"]["param"]) == (400, "image")
    wrong = await http.get(GENERATIONS)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")
    large = await http.post(GENERATIONS, content=b"x" * (2**20 + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")


async def test_a_spent_budget_is_an_insufficient_quota(
    start_backend: StartBackend,
) -> None:
    async with start_backend(daily_budget_usd=0.0001) as backend:
        await backend.generate()
        answer = await backend.http.post(GENERATIONS, json={"prompt": "an apple"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
