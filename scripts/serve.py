"""`make serve`: keep worker and backend running on 127.0.0.1 until Ctrl-C.

Reads PORT (8000), WORKER_PORT (8001), DATA_DIR (.data) and BASE_MODEL (the small model, with the
networks that are made for it). A worker that dies is started again: the backend's jobs wait for it
and lose nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from scripts.stack import (
    DEMO_MODEL,
    DEMO_NETWORKS,
    REPOSITORY,
    StackError,
    build_stack,
    port_is_taken,
)

RESTART_PAUSE_S = 2.0


def port_from(name: str, default: int) -> int:
    """The port number that the environment variable `name` holds; exits with a message if none."""
    text = os.environ.get(name, "") or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        sys.exit(f"{name} is {text!r}: it must be a port number from 1 to 65535")
    return int(text)


def networks() -> dict[str, str]:
    """Where the small model's own networks are, but for those that the environment names."""
    if (os.environ.get("BASE_MODEL") or str(DEMO_MODEL)) != str(DEMO_MODEL):
        return {}
    return {name: str(place) for name, place in DEMO_NETWORKS.items() if name not in os.environ}


def main() -> int:
    """Run until SIGINT or SIGTERM; 0 after a clean stop, 1 when a process would not come up."""
    port, worker_port = port_from("PORT", 8000), port_from("WORKER_PORT", 8001)
    for name, number in (("PORT", port), ("WORKER_PORT", worker_port)):
        if port_is_taken(number):
            print(f"{name} {number} is in use: stop what listens there, or set {name} to another")
            return 1
    data_dir = Path(os.environ.get("DATA_DIR") or REPOSITORY / ".data").resolve()
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

    stack = build_stack(port=port, worker_port=worker_port, data_dir=data_dir, extra=networks())
    try:
        print(f"Starting worker and backend; data in {data_dir} ...", flush=True)
        stack.start(should_stop=lambda: stopping)
        if not stopping:
            print(f"Ready: {stack.backend_url}/docs (API), Ctrl-C stops both.", flush=True)
        while not stopping:
            time.sleep(0.3)
            if not stack.backend.is_running():
                raise StackError("the backend ended")
            if not stack.worker.is_running():
                print("The worker ended; starting it again.", flush=True)
                time.sleep(RESTART_PAUSE_S)
                stack.worker.start()
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        print("Stopping ...", flush=True)
        stack.stop()
        print("Stopped.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
