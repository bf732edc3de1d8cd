"""What tests of the worker's client share: a request, a client, an edge that does not know."""

from __future__ import annotations

from typing import Any

import pytest

from app.services.modal_sdxl_lora_client import InferenceOutcome, ModalSdxlLoraClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import ContractError
from sdxl_contract.request import GenerateRequest
from testkit.doubles.http_server import CUT, Reply
from testkit.doubles.modal_edge_double import ModalEdgeDouble, modal_http

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
