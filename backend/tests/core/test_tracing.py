"""One trace from the caller through acceptance, job, worker and store; nothing where it is off."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.core.settings import SettingsError, load_settings
from app.core.tracing import configure_tracing, span, traceparent, use_exporter
from app.services.lora_inference import LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.request import GenerateRequest
from testkit.backend import StartBackend
from testkit.doubles.bad_worker import SECRET, crash, good
from testkit.doubles.http_server import Call, HttpServer, Reply, as_json
from testkit.processes import backend_process, free_port

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
        self.answer: Callable[[GenerateRequest], httpx2.Response] = good

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
    parent = found["content.draw"].parent
    assert parent is not None
    assert parent.span_id == found["content.accept"].context.span_id
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


class Collector(HttpServer):
    """Takes spans in over OTLP/HTTP."""

    async def answer(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        return Reply(200, headers={"Content-Type": "application/x-protobuf"})

    def spans(self) -> list[tuple[str, str]]:
        """(service, span) of everything that came."""
        found = []
        for call in self.calls:
            assert (call.method, call.path) == ("POST", "/v1/traces")
            body = gzip.decompress(call.body) if "content-encoding" in call.headers else call.body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                [service] = [
                    one.value.string_value
                    for one in resource.resource.attributes
                    if one.key == "service.name"
                ]
                found += [(service, one.name) for s in resource.scope_spans for one in s.spans]
        return found


class Refuses(HttpServer):
    """A worker that takes nothing, and has no health to show."""

    async def answer(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        if call.path != "/generate-image":
            return Reply(404)
        return as_json({"error": "steps: no", "error_code": "INVALID_REQUEST"}, 422)


@pytest.mark.slow
@pytest.mark.long
async def test_by_otlp_the_spans_reach_a_collector_also_those_of_the_last_second() -> None:
    folder = tempfile.mkdtemp(prefix="backend-tests-")
    port = free_port()
    async with Collector() as collector, Refuses() as worker:
        process = backend_process(
            Path(folder) / "data",
            port,
            TRACING="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-tenant=s3cret",
            MODAL_ENDPOINT_URL=f"{worker.url}/generate-image",
        )
        running = await asyncio.to_thread(process.__enter__)
        try:
            async with httpx2.AsyncClient(timeout=30) as http:
                answer = await http.post(
                    f"http://127.0.0.1:{port}/api/v1/content/generate", json={"prompt": "x"}
                )
            assert answer.json()["status"] == "failed"
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)
            said = running.output()
            shutil.rmtree(folder, ignore_errors=True)
        spans = collector.spans()
        assert {service for service, _ in spans} == {"sdxl-backend"}
        assert {name for _, name in spans} == {"content.accept", "content.draw", "worker.call"}
        assert {call.headers["x-tenant"] for call in collector.calls} == {"s3cret"}
    assert "s3cret" not in said


async def test_a_content_survives_a_header_that_is_none(
    start_backend: StartBackend, spans: InMemorySpanExporter
) -> None:
    # Who waits is answered before the attempt's span ends; a closed backend has ended all.
    async with start_backend() as backend:
        await backend.generate(headers={"traceparent": "nonsense"})
    assert {one.name for one in spans.get_finished_spans()} >= {"content.accept", "content.draw"}
