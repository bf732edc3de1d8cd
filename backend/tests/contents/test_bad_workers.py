"""What becomes of a content whose worker is down or answers nonsense: the row says why, and the
next one works. The real client, with the network replaced.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from app.services.lora_inference import LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.request import GenerateRequest
from testkit.backend import StartBackend
from testkit.doubles.bad_worker import crash, good
from testkit.doubles.inference_double import draw_picture


def html(_: GenerateRequest) -> httpx2.Response:
    return httpx2.Response(200, html="<html><b>Welcome</b></html>")


def down(_: GenerateRequest) -> httpx2.Response:
    raise httpx2.ConnectError("connection refused")


def broken_png(request: GenerateRequest) -> httpx2.Response:
    return good(request, draw_picture(request, 1)[:-20])


def no_png(request: GenerateRequest) -> httpx2.Response:
    return good(request, b"GIF89a")


def wrong_size(request: GenerateRequest) -> httpx2.Response:
    return good(request, draw_picture(request.model_copy(update={"width": 512}), 1))


def expired(_: GenerateRequest) -> httpx2.Response:
    body: dict[str, Any] = {
        "error": "the LoRA's URL has expired",
        "error_code": "LORA_DOWNLOAD_FAILED",
        "details": {"reason": "expired"},
    }
    return httpx2.Response(400, json=body)


@pytest.mark.parametrize(
    ("answer", "code", "calls"),
    [
        (html, "GENERATION_FAILED", 1),
        (broken_png, "GENERATION_FAILED", 2),
        (no_png, "GENERATION_FAILED", 2),
        (wrong_size, "GENERATION_FAILED", 2),
        (crash, "GENERATION_FAILED", 2),
        (expired, "LORA_DOWNLOAD_FAILED", 2),
    ],
)
async def test_the_row_says_why_and_the_next_content_works(
    start_backend: StartBackend, answer: Any, code: str, calls: int
) -> None:
    asked: list[GenerateRequest] = []
    behave = answer

    def worker(request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/generate-image":
            return httpx2.Response(404)
        asked.append(GenerateRequest.model_validate(json.loads(request.content)))
        response: httpx2.Response = behave(asked[-1])
        return response

    client = ModalSdxlLoraClient(
        "http://worker.example/generate-image",
        policy=RetryPolicy(1, 0.01),
        transport=httpx2.MockTransport(worker),
    )
    async with start_backend(inference=LoraInference(client)) as backend:
        failed = await backend.generate()
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == code
        assert failed["error"]["message"]
        assert "bucket.example" not in json.dumps(failed)
        assert failed["finished_at"] is not None
        assert len(asked) == calls
        assert {request.request_id for request in asked} == {failed["id"]}
        behave = good
        assert (await backend.generate())["status"] == "succeeded"
