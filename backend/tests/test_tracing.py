"""One trace from the caller through acceptance, job, worker and store; nothing where it is off."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import httpx2
import pytest
from backend_testkit import Backend, StartBackend
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_bad_workers import SECRET, crash, good

from app.core.settings import SettingsError, load_settings
from app.core.tracing import configure_tracing, span, traceparent, use_exporter
from app.services.lora_inference import LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.retry import RetryPolicy
from sdxl_contract.request import GenerateRequest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    use_exporter(exporter, at_once=True)
    yield exporter
    use_exporter(None, at_once=True)


class Worker:
    """The network, replaced; keeps the header of each call for a picture."""

    def __init__(self) -> None:
        self.headers: list[str | None] = []
        self.answer = good

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/generate-image":
            return httpx2.Response(404)
        self.headers.append(request.headers.get("traceparent"))
        return self.answer(GenerateRequest.model_validate(json.loads(request.content)))

    def inference(self) -> LoraInference:
        """The real client on it."""
        return LoraInference(
            ModalSdxlLoraClient(
                "http://worker.example/generate-image",
                policy=RetryPolicy(1, 0.01),
                transport=httpx2.MockTransport(self),
            )
        )


async def test_the_callers_trace_goes_through_to_the_worker(
    start_backend: StartBackend, spans: InMemorySpanExporter
) -> None:
    worker = Worker()
    async with start_backend(inference=worker.inference()) as backend:
        content = await backend.generate(headers=CALLER)
    found = {one.name: one for one in spans.get_finished_spans()}
    assert set(found) == {"content.accept", "content.draw", "worker.call", "object.put"}
    assert {f"{one.context.trace_id:032x}" for one in found.values()} == {TRACE}
    assert found["content.draw"].parent.span_id == found["content.accept"].context.span_id
    assert found["worker.call"].attributes == {
        "content": content["id"], "provider": "modal_sdxl_lora", "attempts": 1,
    }  # fmt: skip
    [header] = worker.headers
    assert header == f"00-{TRACE}-{found['worker.call'].context.span_id:016x}-01"


async def test_a_failure_is_marked_and_its_text_is_not_told(
    start_backend: StartBackend, spans: InMemorySpanExporter
) -> None:
    worker = Worker()
    worker.answer = crash
    async with start_backend(inference=worker.inference()) as backend:
        await backend.generate()
    [call] = [one for one in spans.get_finished_spans() if one.name == "worker.call"]
    assert not call.status.is_ok
    assert call.status.description == "GenerationFailed"
    assert SECRET not in call.to_json()
    assert "signature" not in "".join(one.to_json() for one in spans.get_finished_spans()).lower()


async def test_off_is_the_default_and_sends_nothing(start_backend: StartBackend) -> None:
    worker = Worker()
    async with start_backend(inference=worker.inference()) as backend:
        await backend.generate()
    assert worker.headers == [None]
    with span("x") as current:
        assert not current.is_recording()
        assert traceparent() is None
    assert load_settings().tracing == "off"


async def test_the_console_shows_one_line_of_json_for_each_span(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_tracing(load_settings(tracing="console"))
    try:
        with span("content.draw", content="7"):
            pass
    finally:
        configure_tracing(load_settings())
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["attributes"] == {"content": "7"}


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match="opentelemetry-exporter-otlp-proto-http"):
        configure_tracing(load_settings(tracing="otlp"))


async def test_a_content_survives_a_header_that_is_none(
    backend: Backend, spans: InMemorySpanExporter
) -> None:
    await backend.generate(headers={"traceparent": "nonsense"})
    assert {one.name for one in spans.get_finished_spans()} >= {"content.accept", "content.draw"}
