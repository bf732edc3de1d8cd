"""A backend that asks itself for a picture and is killed (-9) at a step of the job's life.

`python dies_at_a_step.py STEP`: with DATABASE_URL and DATA_DIR as the server takes them. Only
`test_kills.py` starts it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import httpx2
from sqlalchemy import make_url

from app.core.settings import load_settings
from app.main import create_app
from app.repositories.attempts import AttemptRepository
from app.repositories.contents import ContentStatements
from app.services.storage import LocalStorage
from app.startup import Prepared
from testkit.backend import BASE_URL
from testkit.doubles.inference_double import InferenceDouble

BODY: dict[str, Any] = {"prompt": "a red apple", "num_images": 2, "seed": 7}
KEY = {"Idempotency-Key": "asked-once"}
# Step: (class, its method, which call of it, whether it is carried out before the end).
STEPS: dict[str, tuple[type, str, int, bool]] = {
    "before the acceptance is committed": (ContentStatements, "add", 1, True),
    "before the claim": (AttemptRepository, "claim", 1, False),
    "after the claim": (AttemptRepository, "claim", 1, True),
    "while the worker draws": (InferenceDouble, "generate", 1, True),
    "while the first picture is stored": (LocalStorage, "put", 1, False),
    "between two pictures": (LocalStorage, "put", 1, True),
    "before the end is written": (AttemptRepository, "finish", 1, False),
    "after the end is written": (AttemptRepository, "finish", 1, True),
}


def die_at(step: str) -> None:
    """Have this process killed there."""
    owner, name, at, is_done = STEPS[step]
    original = getattr(owner, name)
    calls = 0

    async def last(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not is_done:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await original(*arguments, **named)
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, last)


async def main() -> None:
    """Ask for one picture."""
    url = make_url(os.environ["DATABASE_URL"])
    app = create_app(load_settings(), Prepared(url), inference=InferenceDouble())
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE_URL) as http,
    ):
        await http.post("/api/v1/content/generate", json=BODY, headers=KEY, timeout=30)
    raise SystemExit("not killed")


if __name__ == "__main__":
    die_at(sys.argv[1])
    asyncio.run(main())
