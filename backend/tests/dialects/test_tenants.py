"""No route of a dialect shows or does anything without a key, nor what is another user's."""

from __future__ import annotations

from testkit.backend import Served

METHODS = {"get", "post", "put", "delete", "patch"}


async def test_every_route_of_every_dialect_asks_for_a_key(served: Served) -> None:
    """Walks the dialects' documents, so that a new route is not forgotten."""
    walked = 0
    for dialect in served.backend.app.state.dialects.others:
        if dialect.prefix == "/mcp":
            continue  # it describes itself otherwise: see test_mcp.py
        paths = (await served.backend.http.get(f"{dialect.prefix}/openapi.json")).json()["paths"]
        for path, methods in paths.items():
            for method in METHODS & set(methods):
                place = dialect.prefix + path.replace("{", "").replace("}", "")
                for authorization in ("", "Bearer wrong"):
                    answer = await served.backend.http.request(
                        method, place, json={}, headers={"Authorization": authorization}
                    )
                    assert answer.status_code == 401, (method, place, answer.text)
                walked += 1
    assert walked >= 3


async def test_whatever_a_path_holds_its_error_is_the_dialect_s(served: Served) -> None:
    keys = {
        "/v1": "error",
        "/sdapi": "errors",
        "/controlnet": "errors",
        "/replicate/v1": "title",
        "/fal": "error_type",
    }
    for prefix, key in keys.items():
        for rest in ("a%0Ab", "queue/%0D%0A/b", "%E2%80%A8", "%00"):
            answer = await served.backend.http.get(f"{prefix}/{rest}")
            assert answer.status_code in (404, 405), (prefix, rest)
            assert key in answer.json(), (prefix, rest)
    broken = await served.backend.http.put("/fal/queue/a/%0A/requests/%0A/cancel")
    assert broken.json() == {"status": "NOT_FOUND"}
