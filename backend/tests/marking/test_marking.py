"""Every picture that leaves the backend is signed, and anyone may ask what a picture is."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import Any

import c2pa
import pytest
from PIL import Image

from app.core.errors import RateLimited
from app.core.rates import Rate
from app.core.settings import Settings
from app.dialects.pictures import encoded, small_jpeg
from app.services.marking.keys import development_identity
from app.services.marking.marker import Facts, Marker
from app.services.marking.reading import read
from app.services.marking.unsigned import without_manifest
from testkit.backend import Backend, StartBackend

VERIFY = "/api/v1/verify"


async def ask(backend: Backend, data: bytes, expected: int = 200) -> dict[str, Any]:
    answer = await backend.http.post(VERIFY, files={"file": ("x.png", data)})
    assert answer.status_code == expected, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def test_pictures_and_thumbnails_are_signed_and_known_by_their_unsigned_hash(
    backend: Backend, settings: Settings
) -> None:
    size = {"width": 512, "height": 512}
    first = await backend.generate(prompt="an apple", seed=5, num_images=2, **size)
    again = await backend.generate(prompt="an apple", seed=5, num_images=2, **size)

    root = (settings.data_dir / "marking" / "root.pem").read_text()
    for image, twin in zip(first["images"], again["images"], strict=True):
        data = (await backend.http.get(image["url"])).content
        assert hashlib.sha256(data).hexdigest() == image["file_sha256"]
        assert hashlib.sha256(without_manifest(data) or b"").hexdigest() == image["sha256"]
        assert (image["sha256"], image["file_sha256"] != twin["file_sha256"]) == (
            twin["sha256"],
            True,
        )
        small = (await backend.http.get(image["thumbnail_url"])).content
        for file in (data, small):
            manifest = read(file, root)["manifest"]
            assert manifest["state"] == "trusted"
            assert manifest["facts"]["seed"] == image["seed"]
            assert manifest["facts"]["unsigned_sha256"] == image["sha256"]


async def test_a_picture_keeps_the_manifest_of_the_one_it_was_drawn_from(
    backend: Backend, settings: Settings
) -> None:
    root = (settings.data_dir / "marking" / "root.pem").read_text()
    first = await backend.generate(prompt="an apple", width=512, height=512)
    own = (await backend.http.get(first["image_url"])).content
    theirs = Marker(development_identity(settings.data_dir / "other"), "1")
    plain = without_manifest(own)
    assert plain is not None
    foreign = theirs.mark(plain, "image/png", Facts("0" * 64, {}, "2026-01-01T00:00:00Z"))
    signed = theirs.mark(_jpeg(), "image/jpeg", Facts("0" * 64, {}, "2026-01-01T00:00:00Z"))
    begins = signed.index(b"jumb")
    broken = signed[: begins + 40] + bytes(600) + signed[begins + 640 :]
    ids = {"drawn": first["images"][0]["id"]}
    for name, file in (("own", own), ("foreign", foreign), ("broken", broken), ("plain", plain)):
        sent = await backend.http.post("/api/v1/images", files={"file": ("a.png", file)})
        assert sent.status_code == 201, sent.text
        ids[name] = sent.json()["id"]

    kept = {}
    for name, image_id in ids.items():
        made = await backend.generate(prompt="a pear", image={"image_id": image_id})
        assert made["status"] == "succeeded"
        [picture] = made["images"]
        data = (await backend.http.get(picture["url"])).content
        small = (await backend.http.get(picture["thumbnail_url"])).content
        for file in (data, small):
            manifest = read(file, root)["manifest"]
            assert (manifest["state"], manifest["made_from_a_picture"]) == ("trusted", True), name
        kept[name] = manifests(data)
        assert manifests(small) == 1
    assert kept == {"drawn": 2, "own": 2, "foreign": 2, "broken": 1, "plain": 1}


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (512, 512), (9, 90, 200)).save(file, "JPEG")
    return file.getvalue()


def manifests(file: bytes, kind: str | None = None) -> int:
    """How many manifests are in a picture: its own, and those of what it was made of."""
    kind = kind or ("image/png" if file.startswith(b"\x89PNG") else "image/webp")
    return len(json.loads(c2pa.Reader(kind, io.BytesIO(file)).json())["manifests"])


@pytest.mark.parametrize("of", ["words", "a picture"])
async def test_a_copy_that_is_made_for_a_caller_says_what_the_picture_says(
    backend: Backend, settings: Settings, of: str
) -> None:
    root = (settings.data_dir / "marking" / "root.pem").read_text()
    more: dict[str, Any] = {}
    if of == "a picture":
        more["image"] = {"image_id": (await backend.put_image(_jpeg()))["id"]}
    content = await backend.generate(prompt="un café", seed=5, **more)
    [picture] = content["images"]
    original = (await backend.http.get(picture["url"])).content
    sign = backend.app.state.services.marking.sign_copy
    told = read(original, root)["manifest"]

    for file in (
        await encoded(original, "jpeg", sign),
        await encoded(original, "webp", sign, 30),
        await encoded(await encoded(original, "jpeg", sign), "png", sign),
        await small_jpeg(original, sign),
    ):
        report = read(file, root)
        manifest = report["manifest"]
        assert (manifest["state"], manifest["problems"]) == ("trusted", [])
        for same in ("facts", "digital_source_type", "made_at", "made_from_a_picture"):
            assert manifest[same] == told[same]
        assert manifests(file, report["media_type"]) == 1
    bare = without_manifest(original)
    assert bare is not None
    assert read(await encoded(bare, "jpeg", sign), root)["manifest"] is None


async def test_dialects_that_make_a_file_of_their_own_sign_it(
    backend: Backend, settings: Settings
) -> None:
    root = (settings.data_dir / "marking" / "root.pem").read_text()
    for asked in ({}, {"output_format": "jpeg"}, {"output_format": "webp"}):
        for more in ({}, {"stream": True}):
            answer = await backend.http.post(
                "/v1/images/generations", json={"prompt": "an apple", **asked, **more}
            )
            text = answer.text.rpartition("data: ")[2]
            told = json.loads(text) if more else answer.json()["data"][0]
            manifest = read(base64.b64decode(told["b64_json"]), root)["manifest"]
            assert manifest["state"] == "trusted", (asked, more)


async def test_anyone_may_ask_what_a_picture_is(backend: Backend) -> None:
    content = await backend.generate(prompt="an apple", seed=5)
    data = (await backend.http.get(content["image_url"])).content

    known = await ask(backend, data)
    assert known["manifest"]["state"] == "trusted"
    assert known["matches_receipt"] is True
    assert known["manifest"]["facts"]["content_id"] == content["id"]
    assert "was made by a model and is unchanged" in known["summary"]

    changed = bytearray(data)
    changed[-30] ^= 1
    bare = without_manifest(data)
    assert bare is not None
    stripped = await ask(backend, bare)
    assert (stripped["manifest"], stripped["matches_receipt"]) == (None, None)
    assert "no signed manifest" in stripped["summary"]
    refused = await ask(backend, b"no picture", 422)
    assert "file: it is not a PNG, JPEG or WebP picture" in refused["detail"]


async def test_marking_can_only_be_turned_off_by_saying_so(
    start_backend: StartBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_backend(marking="off") as backend:
        content = await backend.generate(prompt="an apple")
        data = (await backend.http.get(content["image_url"])).content

    assert read(data, "")["manifest"] is None
    assert content["images"][0]["sha256"] == content["images"][0]["file_sha256"]
    assert "MARKING=off" in caplog.text


def test_a_caller_without_a_key_may_ask_so_often_and_no_more() -> None:
    now = [0.0]
    rate = Rate(2, per_seconds=60, clock=lambda: now[0])
    rate.take("a")
    rate.take("a")
    with pytest.raises(RateLimited):
        rate.take("a")
    rate.take("b")
    now[0] = 30.0
    rate.take("a")
    with pytest.raises(RateLimited):
        rate.take("a")
