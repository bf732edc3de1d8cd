"""Secrets and signed URLs are planted wherever they could stand, and then looked for everywhere:
in every log line and in every answer of the API.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import URL

from app.core import logging as app_logging
from app.core.errors import StorageFailed
from app.core.logging import configure_logging
from app.core.settings import Settings
from app.services.lora_inference import build_lora_inference
from app.services.storage import LocalStorage
from sdxl_contract.errors import ErrorBody, ErrorCode, LoraDownloadFailed
from sdxl_contract.redaction import redact, redact_for_people
from sdxl_contract.request import parse_request
from testkit.backend import Backend, StartBackend
from testkit.doubles.http_server import Reply, as_json
from testkit.doubles.inference_double import InferenceDouble
from testkit.doubles.modal_edge_double import ModalEdgeDouble, Run, modal_http, picture, stream
from testkit.loras.plain_bytes import kohya_lora

PLANTED = {
    "modal_api_token": "planted plain words token",
    "modal_proxy_key": "wk-planted-key-0001",
    "modal_proxy_secret": "ws-planted-secret-0002",
    "r2_secret_access_key": "planted/r2+secret=0003",
    "replicate_api_token": "r8_planted0004planted0004",
    "database_url": "postgresql://planted-user:planted-password-0005@db.internal/x",
}
SIGNED = "https://bucket.example/owners/a/ink.safetensors?X-Amz-Signature=planted0006&e=1"
SERVER_PATH = "/srv/planted/models/sdxl.safetensors"
SECRETS = (
    *(value for name, value in PLANTED.items() if name != "database_url"),
    "planted-password-0005",
    "planted0006",
)
EVERYTHING = " | ".join(
    [*PLANTED.values(), SIGNED, f"Authorization: Bearer {PLANTED['modal_api_token']}"]
)


def leaks(text: str, wanted: tuple[str, ...] = SECRETS) -> list[str]:
    """The planted values that `text` holds, as they are or as JSON spells them."""
    return [value for value in wanted if value in text or json.dumps(value)[1:-1] in text]


def test_the_search_finds_what_was_planted() -> None:
    assert leaks(EVERYTHING) == list(SECRETS)


@pytest.fixture
def planted(settings: Settings) -> Settings:
    values = {name: SecretStr(value) for name, value in PLANTED.items()}
    return settings.model_copy(update=values)


@pytest.fixture
def logs(planted: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server writes, configured as it configures itself, at its most talkative."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(app_logging, "_known_secrets", set())
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging(planted.model_copy(update={"log_level": "DEBUG"}))
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def everything_shown(backend: Backend) -> str:
    """Every readable answer of the API, together."""
    paths = ["/api/v1/content", "/api/v1/model", "/api/v1/costs/summary", "/api/v1/loras/models"]
    paths += ["/metrics", "/health/ready", "/openapi.json"]
    answers = [await backend.http.get(path) for path in paths]
    for content in answers[0].json()["items"]:
        place = f"/api/v1/content/{content['id']}"
        answers += [await backend.http.get(place), await backend.http.get(f"{place}/events")]
    return "\n".join(f"{dict(answer.headers)}\n{answer.text}" for answer in answers)


def worker_says(body: bytes) -> list[Run | Reply]:
    """Answers of a worker, and of what stands before it, with everything planted in them."""
    request = parse_request(body)
    text = f"{EVERYTHING} {SERVER_PATH}"
    told = ErrorBody(
        error=text, error_code=ErrorCode.LORA_LOAD_FAILED, details={text: [text, {"a": text}]}
    )
    report = {
        "sha256": "0" * 64, "name": text, "scale": 1.0, "format": text, "rank": 4,
        "modules_matched": 1, "modules_unmatched": [text],
    }  # fmt: skip
    full = picture(request, loras=[report], model_info={"base_model": text, "lora_applied": True})
    return [
        as_json(told.model_dump(mode="json"), 422),
        stream(request, {"type": "error", "status": 422, "error": told.model_dump(mode="json")}),
        Reply(500, text.encode()),
        Reply(403, text.encode()),
        Reply(200, f"<html>{text}</html>".encode()),
        Reply(200, json.dumps({"image_base64": text}).encode()),
        Reply(303, b"", {"Location": SIGNED}),
        modal_http(404, f"workspace {text}"),
        modal_http(500, f"terminated by signal: {text}"),
        as_json(full),
        stream(request, {"type": "result", "result": full}),
    ]


async def test_nothing_that_a_worker_repeats_is_shown_or_logged(
    planted: Settings, start_backend: StartBackend, logs: io.StringIO
) -> None:
    async with ModalEdgeDouble() as edge:
        changes = {"modal_endpoint_url": edge.url, "modal_max_retries": 0}
        inference = build_lora_inference(
            planted.model_copy(update=changes | {"replicate_model_version": None})
        )
        async with start_backend(inference=inference) as backend:
            lora = await backend.upload(kohya_lora())
            asked: dict[str, Any] = {
                "width": 512,
                "height": 512,
                "loras": [{"lora_model_id": lora["id"]}],
            }
            await backend.generate(**asked)
            steps = worker_says(edge.posts[0].body)
            for step in steps:
                edge.plan(step)
                await backend.generate(**asked)
            shown = await everything_shown(backend)
    assert len(edge.posts) >= len(steps) + 1  # what may pass is asked again
    assert edge.posts[0].headers["modal-secret"] == PLANTED["modal_proxy_secret"]
    assert shown.count('"failed"') >= 9
    assert leaks(shown, (*SECRETS, SERVER_PATH)) == []
    log = logs.getvalue()
    assert "failed: LORA_LOAD_FAILED" in log
    assert leaks(log) == []
    assert "signature=" not in log.lower()


class _BrokenStorage(LocalStorage):
    """Its foreign errors tell everything."""

    async def put(self, key: str, data: Any) -> None:
        try:
            raise OSError(f"PUT {SIGNED} failed: {EVERYTHING} {SERVER_PATH}")
        except OSError as error:
            raise StorageFailed("The object store did not take or give the file.") from error


@pytest.mark.parametrize("where", ["storage", "exception", "cause"])
async def test_nothing_that_an_exception_says_is_shown_or_logged(
    planted: Settings, start_backend: StartBackend, logs: io.StringIO, where: str
) -> None:
    inference = InferenceDouble()
    text = f"{EVERYTHING} {SERVER_PATH}"
    if where == "exception":
        inference.failures.append(RuntimeError(text))
    elif where == "cause":
        failed = LoraDownloadFailed("the LoRA's server failed")
        failed.__cause__ = httpx2.ConnectError(text)
        inference.failures.append(failed)
    storage = _BrokenStorage(planted) if where == "storage" else None
    async with start_backend(inference=inference, storage=storage) as backend:
        if where == "storage":  # a drawn picture waits for a store that is away
            content = await backend.generate(202, headers={"Prefer": "wait=1"})
            assert content["status"] in ("queued", "running")
            await backend.http.post(f"/api/v1/content/{content['id']}/cancel")
        else:
            content = await backend.generate()
            assert content["status"] == "failed"
        if where == "storage":
            await backend.upload(kohya_lora(), expected=507)
        shown = await everything_shown(backend)
    assert leaks(shown, (*SECRETS, SERVER_PATH)) == []
    assert leaks(logs.getvalue()) == []
    if where == "exception":
        assert "Traceback" in logs.getvalue()  # the trace is there, without them


def test_whatever_logs_them_they_are_not_written(logs: io.StringIO, postgres: URL) -> None:
    logger = logging.getLogger("a.library")
    logger.error("%s", EVERYTHING)
    logger.error("headers %r", {"authorization": f"Bearer {PLANTED['modal_api_token']}"})
    structlog.get_logger().error(EVERYTHING, url=SIGNED, nested={"a": [EVERYTHING]})
    try:
        raise RuntimeError(EVERYTHING)
    except RuntimeError:
        logger.exception("it failed")
    assert logs.getvalue().count("bucket.example") >= 4
    assert leaks(logs.getvalue()) == []


@pytest.mark.parametrize(
    "text",
    [
        "the bearer token is missing or wrong",
        "steps: must be at least 1 and at most 100 (got 0)",
        "check MODAL_API_TOKEN, MODAL_PROXY_KEY and MODAL_PROXY_SECRET",
        "sdxl_lightning_4step_lora is a LoRA",
        "try 768 x 768 and/or 1024/768",
        "a lora_unet_down_blocks.1/attn2.to_k of stabilityai/stable-diffusion-xl-base-1.0",
    ],
)
def test_ordinary_sentences_stay_as_they_are(text: str) -> None:
    assert redact_for_people(text) == text


@pytest.mark.parametrize("text", ["a.b-" * 50_000, "/a" * 100_000, "x://" * 50_000, "?" * 200_000])
@pytest.mark.timeout(60)
def test_no_text_takes_long(text: str) -> None:
    redact(text)
    redact_for_people(text)


def test_short_secrets_do_not_blot_out_ordinary_words(settings: Settings) -> None:
    short = settings.model_copy(update={"modal_api_token": SecretStr("a")})
    assert app_logging.secrets_of(short) == ()
