"""The calls of programs that do not run here, replayed in their order (`recorded/calls.json`).

The file says of each program which version was read or recorded, and how.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from testkit.backend import Served
from testkit.loras.plain_bytes import kohya_lora

PROGRAMS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "recorded" / "calls.json").read_text()
)
# Marks in a recorded body, and where in an earlier answer their value stands.
MARKS = {"$title": "0.title", "$model": "0.model_name", "$image": "images.0"}


def at(answer: Any, place: str) -> Any:
    """What stands at `a.0.b`; None where nothing does."""
    for part in place.split("."):
        try:
            answer = answer[int(part) if part.isdigit() else part]
        except (KeyError, IndexError, TypeError):
            return None
    return answer


def filled(body: Any, known: dict[str, Any]) -> Any:
    """A recorded body with what the program took from earlier answers."""
    if isinstance(body, dict):
        return {name: filled(value, known) for name, value in body.items()}
    if isinstance(body, list):
        return [filled(value, known) for value in body]
    if not isinstance(body, str) or "$" not in body:
        return body
    if body in known:
        return known[body]
    for mark, value in known.items():
        body = body.replace(mark, value) if isinstance(value, str) else body
    return body


def authorization(kind: str, key: str) -> str:
    basic = base64.b64encode(f"x:{key}".encode()).decode()
    return {"bearer": f"Bearer {key}", "basic": f"Basic {basic}", "empty basic": "Basic "}.get(
        kind, ""
    )


async def send(
    http: httpx2.AsyncClient, call: dict[str, Any], program: dict[str, Any], key: str, body: Any
) -> httpx2.Response:
    headers = {"Authorization": authorization(call.get("auth", program["auth"]), key)}
    if "files" in call:
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(picture, "PNG")
        files = [
            (name, ("upload", picture.getvalue(), "application/octet-stream"))
            for name in call["files"]
        ]
        return await http.post(call["path"], files=files, data=call["form"], headers=headers)
    content = None if body is None else json.dumps(body).encode()
    if content is not None and "content_type" not in program:
        headers["Content-Type"] = "application/json"
    return await http.request(call["method"], call["path"], content=content, headers=headers)


def problems(answer: httpx2.Response, call: dict[str, Any]) -> list[str]:
    """What the program would not find in an answer."""
    if call["status"] is not None and answer.status_code != call["status"]:
        return [f"{answer.status_code} {answer.text[:200]}"]
    if call["status"] is None and answer.status_code >= 500:
        return [f"{answer.status_code}"]
    if call["method"] == "HEAD":
        return []
    told = answer.json()
    found = [f"no {place}" for place in call["has"] if at(told, place) is None]
    found += [f"{place} is there" for place in call.get("lacks", []) if at(told, place) is not None]
    if "info" in call:
        info = json.loads(told["info"])
        found += [f"no {place} in info" for place in call["info"] if at(info, place) is None]
    names = {one["id"] for one in told["data"]} if "names" in call else set()
    return found + [f"no model {name}" for name in call.get("names", []) if name not in names]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: f"{one['program']}, {one['engine']}")
async def test_a_program_finds_what_it_looks_for(served: Served, program: dict[str, Any]) -> None:
    await served.backend.upload(kohya_lora(), "Ink")
    http = served.backend.http
    del http.headers["Authorization"]
    known: dict[str, Any] = {}
    for number, call in enumerate(program["calls"]):
        answer = await send(http, call, program, served.key, filled(call.get("json"), known))
        assert problems(answer, call) == [], (number, call["method"], call["path"])
        if call["method"] != "HEAD" and answer.status_code == 200:
            known["$last"] = answer.json()
            known |= {
                mark: value
                for mark, place in MARKS.items()
                if (value := at(known["$last"], place)) is not None
            }


def test_every_program_says_which_version_and_from_where() -> None:
    assert {one["program"] for one in PROGRAMS} >= {
        "Open WebUI", "LibreChat", "Dify", "n8n", "aiyabot",
    }  # fmt: skip
    page = (Path(__file__).parents[3] / "docs" / "clients" / "README.md").read_text()
    for one in PROGRAMS:
        name = one["program"].removesuffix(" without a key")
        if name != "SillyTavern":  # its own server is run, too
            assert f"| {name} | {one['version']} |" in page
        assert len(one["source"]) > 10
        assert one["calls"]


def test_what_a_program_would_miss_is_told() -> None:
    call = {"method": "GET", "status": 200, "has": ["0.name"], "lacks": ["0.x"]}

    assert problems(httpx2.Response(200, json=[{"name": "a"}]), call) == []
    assert problems(httpx2.Response(200, json=[{"x": 1}]), call) == ["no 0.name", "0.x is there"]
    assert problems(httpx2.Response(500, json={}), call) == ["500 {}"]
