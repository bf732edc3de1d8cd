"""One request of a deployed worker over HTTP, as a person at a terminal sends it.

Must not know: Modal's package, retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

_SECONDS = 1200.0


def ask(
    url: str,
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    transport: httpx2.BaseTransport | None = None,
) -> dict[str, Any]:
    """The worker's answer at `url`, with the tokens of the environment.

    Raises:
        SystemExit: it was refused; the message says what to set, and repeats no token.
    """
    token = environment.get("MODAL_API_TOKEN") or environment.get("WORKER_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    names = {"Modal-Key": "MODAL_PROXY_KEY", "Modal-Secret": "MODAL_PROXY_SECRET"}
    headers |= {name: environment[key] for name, key in names.items() if environment.get(key)}
    with httpx2.Client(timeout=_SECONDS, follow_redirects=True, transport=transport) as http:
        answer = http.post(f"{url.rstrip('/')}/generate-image", json=dict(request), headers=headers)
    if answer.status_code == 401:
        raise SystemExit(
            "The worker refused the tokens: load what `make deploy` kept (set -a; . .data/"
            "<app>.env; set +a), or set MODAL_API_TOKEN, MODAL_PROXY_KEY and MODAL_PROXY_SECRET"
        )
    if answer.status_code != 200:
        raise SystemExit(f"The worker answered {answer.status_code}: {answer.text[:500]}")
    result: dict[str, Any] = answer.json()
    return result
