"""OpenTelemetry: spans from the acceptance of a content to its storing, and one trace through all.

Off unless TRACING says otherwise; then every call here costs next to nothing. A caller's
`traceparent` is taken up, travels with the job, and is sent on to the worker.
Must not know: what is traced.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

import httpx2
from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.core.settings import Settings, SettingsError

_PROPAGATOR = TraceContextTextMapPropagator()
_HEADER = "traceparent"
_tracer: trace.Tracer = trace.NoOpTracer()


def configure_tracing(settings: Settings) -> None:
    """Send spans where TRACING says.

    Raises:
        SettingsError: TRACING is otlp and its exporter is not installed.
    """
    if settings.tracing == "otlp":
        use_exporter(_otlp_exporter(), at_once=False)
    elif settings.tracing == "console":
        use_exporter(_console(sys.stderr), at_once=True)
    else:
        use_exporter(None, at_once=True)


def use_exporter(exporter: SpanExporter | None, *, at_once: bool) -> None:
    """Record spans and hand them to `exporter`, or none; `at_once` instead of some at a time."""
    global _tracer
    if exporter is None:
        _tracer = trace.NoOpTracer()
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "sdxl-backend"}))
    processor = SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter)
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("app")


def _otlp_exporter() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
            OTLPSpanExporter,
        )
    except ImportError:
        raise SettingsError(
            "TRACING is otlp, which needs the package opentelemetry-exporter-otlp-proto-http"
        ) from None
    exporter: SpanExporter = OTLPSpanExporter()
    return exporter


def _console(out: TextIO) -> SpanExporter:
    def line(span: ReadableSpan) -> str:
        text = span.to_json(indent=None)
        return f"{text}\n"

    return ConsoleSpanExporter(out=out, formatter=line)


@contextlib.contextmanager
def span(name: str, **attributes: str | int) -> Iterator[trace.Span]:
    """A span around the block; an exception marks it as failed, by its type alone."""
    with _tracer.start_as_current_span(
        name, attributes=dict(attributes), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            # Not the message: it may hold what logs must not.
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


@contextlib.contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Spans of the block belong to the trace that `traceparent` names, if it names one."""
    if not traceparent:
        yield
        return
    token = context.attach(_PROPAGATOR.extract({_HEADER: traceparent}))
    try:
        yield
    finally:
        context.detach(token)


def traceparent() -> str | None:
    """The current span, as a `traceparent` header says it; None outside of a trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(_HEADER)


async def add_trace_header(request: httpx2.Request) -> None:
    """An HTTP client's hook: send the current trace along."""
    current = traceparent()
    if current is not None:
        request.headers[_HEADER] = current
