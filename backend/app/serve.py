"""`python -m app.serve`: prepare, listen, and stop cleanly.

Must not know: what is served.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from app.core.db import DATABASE_LOST
from app.core.embedded_postgres import DatabaseError
from app.core.logging import configure_logging
from app.core.pools import take_short_turns
from app.core.settings import Settings, SettingsError, load_settings
from app.core.tracing import configure_tracing
from app.main import create_app
from app.services.contents.listener import Waiters
from app.startup import Prepared, StartRefused, prepare
from sdxl_contract.connections import (
    ConnectionGuard,
    ConnectionLimits,
    descriptors_for_connections,
)

_LAST_SECONDS = 20.0


class _Server(uvicorn.Server):
    """Wakes those who wait for a picture as soon as a stop is asked for.

    Python waits for its threads before it ends, also for one that hangs in a store or a system
    call: `last_resort` is called where the process is still there `patience` seconds later.
    """

    waiters: Waiters
    patience: float
    last_resort: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open what is needed and listen."""
        await super().startup(sockets)
        # What is there by now stays: looking through it for garbage again would hold every caller
        # up for a tenth of a second each time.
        gc.collect()
        gc.freeze()
        # A picture's call makes some thousand objects and no rings of them: each look at the young
        # ones, by default after 700, finds nothing.
        gc.set_threshold(10_000, 20, 20)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal."""
        timer = threading.Timer(self.patience, self.last_resort)
        timer.daemon = True
        timer.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let those go who wait for a content, then end as always."""
        self.waiters.stop()
        await super().shutdown(sockets)


class _NoTraceOfAFailedStart(logging.Filter):
    """The server would write how a start failed, line by line of code: one sentence does."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__()
        self._app = app

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        failed = getattr(self._app.state, "start_failure", None) is not None
        return not (failed and (record.exc_info or "Traceback" in record.getMessage()))


def _in_words(error: BaseException) -> str:
    """What a start met, in a sentence without its trace."""
    if isinstance(error, DATABASE_LOST):
        return "the database went away while the server was starting: start it again"
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}: {error.filename or 'DATA_DIR'}"
    return str(error)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def serve(settings: Settings, prepared: Prepared) -> int:
    """Listen until told to stop; returns the exit code."""
    if settings.worker_cannot_fetch:
        logging.getLogger(__name__).warning(
            "the worker is on another computer and LoRAs lie in DATA_DIR: it can fetch them only "
            "if PUBLIC_BASE_URL names this server as the worker reaches it, or R2_* a bucket"
        )
    app = create_app(settings, prepared)
    guard = ConnectionGuard(
        ConnectionLimits(
            per_address=settings.max_connections_per_address,
            total=descriptors_for_connections(),
            head_seconds=settings.header_seconds,
        ),
        AutoHTTPProtocol,
    )
    config = uvicorn.Config(
        app,
        http=guard.protocol,  # type: ignore[arg-type]  # it is only called
        ws="none",
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_seconds)),
    )
    server = _Server(config)
    server.waiters = app.state.waiters
    # Requests, then jobs, get the grace; connections and the database get the rest.
    server.patience = 2 * settings.shutdown_grace_seconds + _LAST_SECONDS

    def end_at_once() -> None:
        logging.getLogger(__name__).error("something does not end: ending without it")
        prepared.release()
        os._exit(1)

    server.last_resort = end_at_once
    quiet = _NoTraceOfAFailedStart(app)
    logging.getLogger("uvicorn.error").addFilter(quiet)
    try:
        server.run()
    except SystemExit:  # a start that failed
        pass
    finally:
        logging.getLogger("uvicorn.error").removeFilter(quiet)
    failure = getattr(app.state, "start_failure", None)
    if failure is not None:
        print(f"The backend does not start: {_in_words(failure)}", file=sys.stderr)
    return 0 if server.started else 1


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, by their environment names and without their values."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = "_".join(str(part) for part in problem["loc"]).upper()
        message = str(problem["msg"]).removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if name else message)
    return "; ".join(lines)


def main() -> int:
    """0 after a clean stop, 1 where the server could not start."""
    signal.signal(signal.SIGTERM, _exit)
    os.umask(0o077)  # what it writes is for its own user
    take_short_turns()
    try:
        settings = load_settings()
    except ValidationError as error:
        print(f"The backend does not start: {explain(error)}", file=sys.stderr)
        return 1
    configure_logging(settings)
    try:
        configure_tracing(settings)
    except SettingsError as error:
        print(f"The backend does not start: {error}", file=sys.stderr)
        return 1
    prepared = None
    try:
        prepared = prepare(settings)
        return serve(settings, prepared)
    except (DatabaseError, StartRefused, OSError, *DATABASE_LOST) as error:
        print(f"The backend does not start: {_in_words(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as stop:
        return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 0
    finally:
        if prepared is not None:
            prepared.release()


if __name__ == "__main__":
    sys.exit(main())
