"""The worker's app on a port of the container, for an edge that speaks HTTP to it.

Must not know: Modal, what the app does.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import uvicorn

_START_S = 60.0


class ThreadServer:
    """uvicorn in a thread of its own: whoever starts it goes on."""

    def __init__(
        self, app: Any, port: int, *, host: str = "0.0.0.0", grace_s: float = 30.0
    ) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=int(grace_s),
            )
        )
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._grace_s = grace_s

    def start(self) -> None:
        """Returns once the port is open.

        Raises:
            RuntimeError: it could not be opened.
        """
        self._thread.start()
        until = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the worker's port could not be opened")
            time.sleep(0.01)

    @property
    def port(self) -> int:
        """The open port."""
        number: int = self._server.servers[0].sockets[0].getsockname()[1]
        return number

    def stop(self) -> None:
        """Take no more, let what runs end within the grace, and close."""
        self._server.should_exit = True
        self._thread.join(self._grace_s + 5)
