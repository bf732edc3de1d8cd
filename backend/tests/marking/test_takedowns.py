"""Takedowns: gone for everybody, at once, and a LoRA never used again."""

from __future__ import annotations

import asyncio
import io
import uuid
import zlib
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image, ImageEnhance, ImageOps
from pydantic import SecretStr
from sqlalchemy import URL

from app.core.db import migrate
from app.services.inputs.likeness import (
    NEAR_BITS,
    as_hex,
    from_hex,
    is_telling,
    likeness,
    mirrored,
)
from app.services.inputs.reading import look_at
from sdxl_contract.request import GenerateRequest
from testkit.backend import Backend, StartBackend, ended, migrate_down
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

ADMIN = "/api/v1/admin/takedowns"
TOKEN = "an-operator-s-token-of-32-characters"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
ASYNC = {"Prefer": "respond-async"}


async def order(backend: Backend, expected: int = 201, **body: Any) -> dict[str, Any]:
    answer = await backend.http.post(ADMIN, json={"reason": "court order"} | body, headers=HEADERS)
    assert answer.status_code == expected, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def test_a_content_goes_with_every_copy_of_its_picture(start_backend: StartBackend) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        twin = await backend.generate(prompt="somebody", seed=1)
        other = await backend.generate(prompt="an apple", seed=2)
        assert (await backend.http.get(first["image_url"])).status_code == 200

        record = await order(backend, kind="content", value=first["id"])

        assert sorted(record["contents"]) == sorted([first["id"], twin["id"]])
        for gone in (first, twin):
            assert (await backend.http.get(f"/api/v1/content/{gone['id']}")).status_code == 404
            assert (await backend.http.get(gone["image_url"])).status_code == 404
        assert (await backend.http.get(f"/api/v1/content/{other['id']}")).status_code == 200
        records = (await backend.http.get(ADMIN, headers=HEADERS)).json()
        assert [one["id"] for one in records] == [record["id"]]


async def test_webhooks_hear_of_what_was_taken_down(start_backend: StartBackend) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        made = await backend.http.post(
            "/api/v1/webhooks",
            json={"url": "https://example.com/", "events": [*WANTED]},
        )
        assert made.status_code == 201, made.text
        deaf = await backend.http.post(
            "/api/v1/webhooks",
            json={"url": "https://example.com/", "events": ["content.failed"]},
        )
        content = await backend.generate(prompt="somebody", seed=1)
        lora = await backend.upload(kohya_lora())
        await order(backend, kind="picture", value=content["images"][0]["sha256"])
        await order(backend, kind="lora", value=lora["sha256"])

        told = await deliveries(backend, made.json()["id"])
        assert told == {("content.taken_down", content["id"]), ("lora.taken_down", lora["id"])}
        assert await deliveries(backend, deaf.json()["id"]) == set()


WANTED = ("content.taken_down", "lora.taken_down")


async def deliveries(backend: Backend, webhook: str) -> set[tuple[str, str]]:
    answer = await backend.http.get(f"/api/v1/webhooks/{webhook}/deliveries")
    return {(one["type"], one["content_id"]) for one in answer.json()["items"]}


@pytest.mark.parametrize("which", ["sha256", "file_sha256"])
async def test_a_picture_goes_by_its_hash(start_backend: StartBackend, which: str) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await backend.generate(prompt="somebody", seed=1)
        value = content["images"][0][which]
        record = await order(backend, kind="picture", value=value)
        assert record["contents"] == [content["id"]]


async def test_a_lora_that_was_taken_down_draws_nothing_and_cannot_come_back(
    start_backend: StartBackend,
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        lora = await backend.upload(kohya_lora())
        await order(backend, kind="lora", value=lora["sha256"])

        refused = await backend.upload(kohya_lora(), expected=422)
        assert "was taken down" in refused["detail"]
        wanted = [{"lora_model_id": lora["id"], "scale": 1.0}]
        answer = await backend.http.post(
            "/api/v1/content/generate", json={"prompt": "x", "loras": wanted}
        )
        assert answer.status_code in (404, 409), answer.text


async def test_only_the_operator_may_and_only_where_a_token_is_set(
    start_backend: StartBackend,
) -> None:
    async with start_backend() as backend:
        assert (await backend.http.get(ADMIN, headers=HEADERS)).status_code == 404
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            answer = await backend.http.get(ADMIN, headers=headers)
            assert answer.status_code == 401


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("content", "7", "value: must be a content's id"),
        ("picture", "abc", "value: must be a SHA-256"),
        ("near", "0" * 16, "value: would be near every picture of one colour"),
        ("near", "xyz", "value: must be 16 hexadecimal digits"),
        ("lora", "Z" * 64, "value: must be a SHA-256"),
    ],
)
async def test_a_value_that_names_nothing_is_refused(
    start_backend: StartBackend, kind: str, value: str, says: str
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        refused = await order(backend, 422, kind=kind, value=value)
    assert says in refused["detail"]


@pytest.fixture
def patterned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the worker's double draw pictures that can be told apart by their likeness."""

    def draw(request: GenerateRequest, seed: int, _: Any = None) -> bytes:
        picture = _drawn(zlib.crc32(f"{request.prompt} {seed}".encode()))
        return _file(picture, request.output_format.value.upper())

    monkeypatch.setattr("testkit.doubles.inference_double.draw_picture", draw)


@pytest.mark.parametrize("kind", ["content", "picture", "near"])
async def test_what_was_taken_down_is_not_drawn_again(
    start_backend: StartBackend, patterned: None, kind: str
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        file = (await backend.http.get(first["image_url"])).content
        value = {
            "content": first["id"],
            "picture": first["images"][0]["sha256"],
            "near": as_hex(likeness(file)),
        }[kind]
        await order(backend, kind=kind, value=value)

        for change in ({}, {"output_format": "jpeg"}, {"num_images": 2}):
            again = await backend.generate(prompt="somebody", seed=1, **change)
            assert (again["status"], again["error"]["code"]) == ("failed", "CONTENT_REFUSED")
            assert again["error"]["details"] == {"reason": "taken_down"}
            assert again["images"] == []
            assert again["cost"]["usd"] > 0  # it was drawn
            stored = await backend.app.state.services.storage.keys("owners")
            assert [key for key in stored if again["id"] in key] == []
        other = await backend.generate(prompt="somebody", seed=2)
        assert other["status"] == "succeeded"


async def test_a_picture_of_one_colour_is_known_by_its_bytes_alone(
    start_backend: StartBackend,
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        await order(backend, kind="content", value=first["id"])
        again = await backend.generate(prompt="somebody", seed=1)
        assert again["error"]["code"] == "CONTENT_REFUSED"
        another = await backend.generate(prompt="somebody else", seed=1)
        assert another["status"] == "succeeded"


async def test_a_copy_of_what_was_taken_down_is_not_taken_in_to_draw_from(
    start_backend: StartBackend, patterned: None
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        file = (await backend.http.get(first["image_url"])).content
        copy = _file(Image.open(io.BytesIO(file)).convert("RGB").resize((200, 200)), "WEBP")
        for picture in (file, copy):
            assert await sent(backend, picture) in (200, 201)
        await order(backend, kind="content", value=first["id"])
        for picture in (file, copy):
            assert await sent(backend, picture) == 422
        assert await sent(backend, _file(_drawn(5))) == 201
        assert await sent(backend, _file(Image.new("I;16", (64, 64), 40_000))) == 201


@pytest.mark.parametrize("kind", ["content", "picture", "near", "an upload's hash"])
async def test_near_copies_that_were_uploaded_before_the_order_go_with_it(
    start_backend: StartBackend, patterned: None, kind: str
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        file = (await backend.http.get(first["image_url"])).content
        small = Image.open(io.BytesIO(file)).convert("RGB").resize((200, 200))
        copy = await backend.put_image(_file(small, "WEBP"))
        mirror = await backend.put_image(_file(ImageOps.mirror(small), "JPEG", quality=80))
        other = await backend.put_image(_file(_drawn(5)))
        value = {
            "content": first["id"],
            "picture": first["images"][0]["sha256"],
            "near": as_hex(likeness(file)),
            "an upload's hash": copy["sha256"],
        }[kind]
        await order(backend, kind="picture" if kind.startswith("an") else kind, value=value)

        left = (await backend.http.get("/api/v1/images")).json()["items"]
        assert [one["id"] for one in left] == [other["id"]]
        for gone in (copy, mirror):
            assert (await backend.http.get(gone["url"])).status_code == 404
            answer = await backend.http.post(
                "/api/v1/content/generate", json={"prompt": "x", "image": {"image_id": gone["id"]}}
            )
            assert answer.status_code == 404
        answer = await backend.http.get(f"/api/v1/content/{first['id']}")
        assert answer.status_code == 404


def test_a_picture_is_known_again_as_it_is_seen() -> None:
    """However its file says it: turned by Exif, in transparency, with 16 bits, mirrored."""
    picture = _drawn(1).convert("L")
    mine = likeness(_file(picture))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned right by a quarter
    dark = Image.new("LA", picture.size, 0)
    dark.putalpha(ImageOps.invert(picture))
    deep = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    files = (
        _file(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
        _file(dark),
        _file(dark.convert("RGBA"), "WEBP", lossless=True),
        _file(deep),
    )
    for file in files:
        found = look_at(file).likeness
        assert found is not None
        assert bits_apart(found, mine) <= 1
    assert bits_apart(likeness(_file(ImageOps.mirror(picture))), mirrored(mine)) <= 1
    assert mirrored(mirrored(mine)) == mine
    assert bits_apart(mirrored(mine), mine) > NEAR_BITS


def bits_apart(one: int, other: int) -> int:
    return ((one ^ other) % (1 << 64)).bit_count()


async def sent(backend: Backend, picture: bytes) -> int:
    answer = await backend.http.post("/api/v1/images", files={"file": ("a.png", picture)})
    assert answer.status_code < 300 or "was taken down" in answer.json()["detail"], answer.text
    return answer.status_code


async def test_orders_of_an_earlier_version_are_kept_to_by_hash_and_likeness(
    database_url: URL,
) -> None:
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        await asyncio.to_thread(migrate, database_url, "0018")
        for kind, value in (
            ("picture", "a" * 64),
            ("near", as_hex(-7)),
            ("lora", "b" * 64),
            ("content", str(uuid.UUID(int=1))),
        ):
            connection.execute(
                "INSERT INTO takedown (id, kind, value, reason, contents, created_at) "
                "VALUES (gen_random_uuid(), %s, %s, 'ordered', '[]', now())",
                (kind, value),
            )
        await asyncio.to_thread(migrate, database_url)
        known = connection.execute("SELECT sha256, likeness FROM taken_down_picture").fetchall()
        assert sorted(known, key=str) == [("a" * 64, None), (None, -7)]
        await asyncio.to_thread(migrate_down, database_url, "0018")
        assert connection.execute("SELECT to_regclass('taken_down_picture')").fetchone() == (None,)
        await asyncio.to_thread(migrate, database_url)


def _drawn(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)


def _file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.long
def test_a_likeness_survives_what_people_do_to_a_picture_and_tells_others_apart() -> None:
    picture = _drawn(1)
    mine = likeness(_file(picture))
    same = [
        _file(picture, "JPEG", quality=60),
        _file(picture.resize((128, 128))),
        _file(ImageEnhance.Brightness(picture).enhance(0.9), "WEBP", quality=70),
    ]
    for copy in same:
        assert bits_apart(likeness(copy), mine) <= NEAR_BITS
    others = [likeness(_file(_drawn(seed))) for seed in range(2, 302)]
    assert min(bits_apart(other, mine) for other in others) > NEAR_BITS
    assert is_telling(mine)
    assert from_hex(as_hex(mine)) == mine
    assert not is_telling(likeness(_file(Image.new("RGB", (64, 64), (200, 10, 10)))))


@pytest.mark.parametrize(
    "what", ["an upload", "a near copy", "a drawn picture", "a mask", "a lora"]
)
async def test_what_is_drawn_from_something_that_is_taken_down_meanwhile_is_refused(
    start_backend: StartBackend, patterned: None, inference: InferenceDouble, what: str
) -> None:
    async with start_backend(
        admin_api_token=SecretStr(TOKEN),
        job_stalled_seconds=60.0,  # nobody else begins it again, however slow this computer is
    ) as backend:
        first = await backend.generate(prompt="somebody", seed=1)
        file = (await backend.http.get(first["image_url"])).content
        upload, other = [await backend.put_image(_file(_drawn(number))) for number in (7, 8)]
        small = Image.open(io.BytesIO(file)).convert("RGB").resize((200, 200))
        copy = await backend.put_image(_file(small, "WEBP"))
        lora = await backend.upload(kohya_lora())
        drawn = {"kind": "picture", "value": first["images"][0]["sha256"]}
        cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "an upload": (
                {"image": {"image_id": upload["id"]}},
                {"kind": "picture", "value": upload["sha256"]},
            ),
            "a near copy": ({"image": {"image_id": copy["id"]}}, drawn),
            "a drawn picture": ({"image": {"image_id": first["images"][0]["id"]}}, drawn),
            "a mask": (
                {"image": {"image_id": other["id"]}, "mask": {"image_id": upload["id"]}},
                {"kind": "picture", "value": upload["sha256"]},
            ),
            "a lora": (
                {"loras": [{"lora_model_id": lora["id"]}]},
                {"kind": "lora", "value": lora["sha256"]},
            ),
        }
        asked, ordered = cases[what]
        inference.gate.clear()
        waits: dict[str, Any] = {"expected": 202, "headers": ASYNC, "prompt": "another", "seed": 3}
        before = len(inference.requests)
        running = await backend.generate(**waits, **asked)
        untouched = await backend.generate(**(waits | {"seed": 4}))
        while len(inference.requests) < before + 2:
            await asyncio.sleep(0.02)
        await order(backend, **ordered)
        inference.gate.set()

        done = await ended(backend, running["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "CONTENT_REFUSED")
        assert done["error"]["details"] == {"reason": "taken_down"}
        stored = await backend.app.state.services.storage.keys("owners")
        assert [key for key in stored if running["id"] in key] == []
        assert (await ended(backend, untouched["id"]))["status"] == "succeeded"
