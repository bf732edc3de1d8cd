"""A server that writes watermarks: what becomes of its pictures, and who hears whose they are."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import URL

from app.core.settings import Settings
from app.services.marking.keys import development_identity
from app.services.marking.marker import Facts, Marker
from app.services.marking.reading import read
from app.services.marking.unsigned import without_manifest
from testkit.backend import Backend, StartBackend, add_key, ended

SIZE = {"width": 512, "height": 512}


@pytest.fixture
async def marked(start_backend: StartBackend) -> AsyncIterator[Backend]:
    async with start_backend(watermark="spread") as running:
        yield running


async def verified(
    backend: Backend, data: bytes, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    answer = await backend.http.post(
        "/api/v1/verify", files={"file": ("x.png", data)}, headers=headers or {}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def file_of(backend: Backend, content: dict[str, Any]) -> bytes:
    return (await backend.http.get(content["images"][0]["url"])).content


def stripped(data: bytes) -> bytes:
    """What an upload elsewhere leaves of a picture: half the size, JPEG, and no manifest."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as opened:
        opened.convert("RGB").resize((256, 256)).save(file, "JPEG", quality=75)
    return file.getvalue()


async def test_the_same_request_gives_the_same_marked_picture_and_the_receipt_names_the_mark(
    marked: Backend, settings: Settings
) -> None:
    first = await marked.generate(seed=5, **SIZE)
    again = await marked.generate(seed=5, **SIZE)
    other = await marked.generate(seed=6, **SIZE)

    assert first["images"][0]["sha256"] == again["images"][0]["sha256"]
    root = (settings.data_dir / "marking" / "root.pem").read_text()
    reports = [read(await file_of(marked, content), root) for content in (first, other)]
    marks = [report["watermark"] for report in reports]
    assert [report["manifest"]["state"] for report in reports] == ["trusted", "trusted"]
    assert marks == [report["manifest"]["facts"]["watermark"] for report in reports]
    assert marks[0].startswith("spread-1:")
    assert marks[0] != marks[1]


async def test_a_stripped_picture_is_known_and_only_its_owner_hears_which_it_is(
    marked: Backend, database_url: URL
) -> None:
    own, foreign = await add_key(database_url, "ann"), await add_key(database_url, "ben")
    content = await marked.generate(seed=5, headers=own, **SIZE)
    copy = stripped(await file_of(marked, content))

    mine = await verified(marked, copy, own)
    theirs, strangers = await verified(marked, copy, foreign), await verified(marked, copy)

    assert mine["manifest"] is None
    assert mine["watermark"]["contents"] == [content["id"]]
    assert "a model made on this server" in mine["summary"]
    for heard in (theirs, strangers):
        assert heard["watermark"] == mine["watermark"] | {"contents": []}
        assert heard["watermark"]["is_known"]
        assert content["id"] not in str(heard)

    await marked.http.delete(f"/api/v1/content/{content['id']}", headers=own)
    gone = await verified(marked, copy, own)
    assert (gone["watermark"]["is_known"], gone["watermark"]["contents"]) == (False, [])


async def test_a_replay_has_the_very_same_watermark_whatever_the_setting_is_now(
    start_backend: StartBackend,
) -> None:
    async with start_backend(watermark="spread") as backend:
        content = await backend.generate(seed=5, **SIZE)
        file = await file_of(backend, content)
    async with start_backend() as backend:
        plain = await backend.generate(seed=5, **SIZE)
        by_id = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
        posted = await backend.http.post("/api/v1/replays", files={"file": ("x.png", file)})
        twins = [await ended(backend, answer.json()["id"]) for answer in (by_id, posted)]

    hashes = [twin["images"][0]["sha256"] for twin in twins]
    assert hashes == [content["images"][0]["sha256"]] * 2
    assert plain["images"][0]["sha256"] not in hashes


async def test_a_receipt_of_ones_own_does_not_turn_the_watermark_off(
    marked: Backend, settings: Settings, tmp_path: Any
) -> None:
    content = await marked.generate(seed=5, **SIZE)
    file = await file_of(marked, content)
    facts = read(file, "")["manifest"]["facts"]
    forger = Marker(development_identity(tmp_path / "forger"), "1")
    receipt = {name: value for name, value in facts.items() if name != "watermark"}
    forged = forger.mark(
        without_manifest(file) or b"",
        "image/png",
        Facts(receipt.pop("unsigned_sha256"), receipt, "2026-01-01T00:00:00Z"),
    )
    unknown = forger.mark(
        without_manifest(file) or b"",
        "image/png",
        Facts("0" * 64, receipt | {"watermark": "other-9:00000000"}, "2026-01-01T00:00:00Z"),
    )

    answer = await marked.http.post("/api/v1/replays", files={"file": ("x.png", forged)})
    refused = await marked.http.post("/api/v1/replays", files={"file": ("x.png", unknown)})

    twin = await ended(marked, answer.json()["id"])
    assert twin["images"][0]["sha256"] == content["images"][0]["sha256"]
    assert refused.status_code == 422
    assert "no watermark that this version can write" in refused.json()["detail"]


async def test_without_the_setting_pixels_stay_as_they_were_drawn(backend: Backend) -> None:
    content = await backend.generate(seed=5, **SIZE)

    found = await verified(backend, await file_of(backend, content))

    assert found["watermark"] is None
    with Image.open(io.BytesIO(await file_of(backend, content))) as opened:
        assert len(opened.getcolors() or []) == 1  # as the double draws
