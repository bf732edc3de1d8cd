"""Takedowns: copies of which something was cut off go with the picture, and no others do."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from pydantic import SecretStr
from sqlalchemy import URL

from app.core.db import migrate
from app.core.errors import StorageFailed
from app.models.takedown import SHAPE_SLACK, Known, shape_of
from app.services.inputs.crops import known_by_crops
from app.services.inputs.likeness import NEAR_BITS, likeness
from app.services.inputs.reading import Look, look_at
from demo_model.common import HERE, SIZE
from sdxl_contract.request import GenerateRequest
from testkit.backend import Backend, StartBackend, add_key, ended, migrate_down
from testkit.doubles.inference_double import InferenceDouble

ADMIN = "/api/v1/admin/takedowns"
TOKEN = "an-operator-s-token-of-32-characters"
# Left, right, top, bottom, in units of what is cut.
WAYS = {
    "left": (1, 0, 0, 0),
    "right": (0, 1, 0, 0),
    "top": (0, 0, 1, 0),
    "bottom": (0, 0, 0, 1),
    "both sides": (1, 1, 0, 0),
    "above and below": (0, 0, 1, 1),
    "all sides": (1, 1, 1, 1),
}
MINE = 7  # a scene of which a tenth cut off any side is not near the whole
OTHERS = (*range(1, 7), *range(8, 12))
SHARES = (0.03, 0.055, 0.07, 0.1)


@functools.cache
def contact_sheet() -> Image.Image:
    with Image.open(HERE / "contact-sheet.png") as sheet:
        return sheet.convert("RGB")


def tile(number: int) -> Image.Image:
    """A picture that the demo model drew: one of its contact sheet."""
    row, column = divmod(number, contact_sheet().width // SIZE)
    left, top = column * SIZE, row * SIZE
    return contact_sheet().crop((left, top, left + SIZE, top + SIZE))


def scene(seed: int) -> Image.Image:
    """Things and some noise before one and the same sky; where they are, the seed says."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :384]
    sky = np.stack([rows * 0.5 + 60, columns * 0.3 + 50, 220 - rows * 0.6], axis=2)
    picture = Image.fromarray((sky + draw.normal(0, 6, sky.shape)).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for colour, size in (
        ("#c03028", 90),
        ("#f0e0a0", 70),
        ("#204020", 110),
        ("#fff", 50),
        ("#000", 60),
    ):
        x, y = int(draw.integers(0, 384 - size)), int(draw.integers(0, 256 - size))
        pen.ellipse((x, y, x + size, y + size * 0.8), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def cropped(picture: Image.Image, way: str, share: float, kind: str = "JPEG") -> bytes:
    """A copy as somebody would keep it."""
    left, right, top, bottom = (share * one for one in WAYS[way])
    width, height = picture.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    copy = picture.crop(tuple(round(one) for one in box))  # type: ignore[arg-type]
    file = io.BytesIO()
    copy.save(file, kind, quality=85)
    return file.getvalue()


def copies(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    for name, one in (("", picture), (", mirrored", ImageOps.mirror(picture))):
        for way in WAYS:
            for share in SHARES:
                yield f"{share:.1%} off {way}{name}", cropped(one, way, share)


@functools.cache
def looked_at(file: bytes) -> Look:
    return look_at(file)


def is_known(known: list[Known], file: bytes) -> bool:
    look = looked_at(file)
    shape = shape_of(look.width, look.height)
    return look.likeness is not None and any(
        bits_apart(one.likeness, look.likeness) <= one.bits
        and (one.shape is None or abs(shape / one.shape - 1) <= SHAPE_SLACK)
        for one in known
    )


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the worker's double draw the scene of a request's seed, or a cropped one of it."""

    def draw(request: GenerateRequest, seed: int, _: Any = None) -> bytes:
        picture = scene(seed)
        if request.prompt in WAYS:
            picture = Image.open(io.BytesIO(cropped(picture, request.prompt, 0.1)))
        return png(picture.resize((request.width or 1152, request.height or 768)))

    monkeypatch.setattr("testkit.doubles.inference_double.draw_picture", draw)


async def generate(
    backend: Backend, seed: int, way: str = "a scene", **more: Any
) -> dict[str, Any]:
    """A scene or, where `way` is one of `WAYS`, one cropped by a tenth, in its own proportions."""
    left, right, top, bottom = (0.1 * one for one in WAYS.get(way, (0, 0, 0, 0)))
    width, height = 1152 * (1 - left - right), 768 * (1 - top - bottom)
    more |= {"width": 8 * round(width / 8), "height": 8 * round(height / 8)}
    return await backend.generate(seed=seed, prompt=way, **more)


async def order(backend: Backend, kind: str, value: str) -> list[str]:
    """The ids of the contents that went."""
    answer = await backend.http.post(
        ADMIN,
        json={"kind": kind, "value": value, "reason": "court order"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status_code == 201, answer.text
    gone: list[str] = answer.json()["contents"]
    return gone


@pytest.mark.parametrize("kind", ["content", "picture"])
async def test_cropped_copies_that_another_owner_uploaded_go_and_no_other_picture(
    start_backend: StartBackend, database_url: URL, scenes: None, kind: str
) -> None:
    ann, ben = [await add_key(database_url, owner) for owner in ("ann", "ben")]
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await generate(backend, MINE, headers=ann)
        twin = await generate(backend, 2, headers=ben)
        sent = {
            (await backend.put_image(file, headers=ben))["id"]: what
            for what, file in copies(scene(MINE))
        }
        assert len(sent) == 2 * len(WAYS) * len(SHARES)
        others = [await backend.put_image(png(scene(seed)), headers=ben) for seed in OTHERS]
        others += [await backend.put_image(png(tile(number)), headers=ben) for number in range(10)]
        value = content["id"] if kind == "content" else content["images"][0]["sha256"]
        assert await order(backend, kind, value) == [content["id"]]

        left = (await backend.http.get("/api/v1/images", headers=ben)).json()["items"]
        ids = {one["id"] for one in left}
        assert [what for one, what in sent.items() if one in ids] == []
        assert ids == {one["id"] for one in others}
        answer = await backend.http.get(f"/api/v1/content/{twin['id']}", headers=ben)
        assert answer.status_code == 200


async def test_an_upload_s_hash_names_its_cropped_copies_among_what_was_drawn(
    start_backend: StartBackend, scenes: None
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        upload = await backend.put_image(png(scene(MINE)))
        drawn = [await generate(backend, MINE, way) for way in WAYS]
        other = await generate(backend, 2, "left")
        gone = await order(backend, "picture", upload["sha256"])
        assert sorted(gone) == sorted(one["id"] for one in drawn)
        answer = await backend.http.get(f"/api/v1/content/{other['id']}")
        assert answer.status_code == 200


async def test_a_cropped_copy_is_neither_taken_in_nor_drawn_after_the_order(
    start_backend: StartBackend, scenes: None
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await generate(backend, MINE)
        await order(backend, "content", content["id"])
        for what, file in copies(scene(MINE)):
            answer = await backend.http.post("/api/v1/images", files={"file": ("a.jpg", file)})
            assert answer.status_code == 422, what
            assert answer.json()["details"]["reason"] == "taken_down"
        for way in ("left", "all sides"):
            again = await generate(backend, MINE, way)
            assert again["error"]["details"] == {"reason": "taken_down"}
        for seed in OTHERS:
            await backend.put_image(png(scene(seed)))
            assert (await generate(backend, seed, "top"))["status"] == "succeeded"


async def test_what_is_being_drawn_from_a_cropped_copy_is_refused(
    start_backend: StartBackend, scenes: None, inference: InferenceDouble
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await generate(backend, MINE)
        copy = await backend.put_image(cropped(ImageOps.mirror(scene(MINE)), "left", 0.1))
        other = await backend.put_image(cropped(scene(2), "left", 0.1))
        inference.gate.clear()
        before = len(inference.requests)
        running, untouched = [
            await backend.generate(
                expected=202,
                headers={"Prefer": "respond-async"},
                seed=3,
                image={"image_id": one["id"]},
            )
            for one in (copy, other)
        ]
        while len(inference.requests) < before + 2:
            await asyncio.sleep(0.02)
        await order(backend, "picture", content["images"][0]["sha256"])
        inference.gate.set()
        done = await ended(backend, running["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "CONTENT_REFUSED")
        assert (await ended(backend, untouched["id"]))["status"] == "succeeded"


@pytest.mark.parametrize("trouble", ["away", "slow", "damaged"])
async def test_a_picture_that_cannot_be_read_goes_with_its_near_copies_alone(
    start_backend: StartBackend,
    scenes: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    async def get(key: str) -> bytes:
        if trouble == "slow":
            await asyncio.sleep(60)
        if trouble == "damaged":
            return b"\x89PNG\r\n\x1a\n"
        raise StorageFailed("The store is away.")

    monkeypatch.setattr("app.services.marking.takedowns._READ_SECONDS", 0.5)
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await generate(backend, MINE)
        near = await backend.put_image(png(scene(MINE).resize((192, 128))))
        copy = await backend.put_image(cropped(scene(MINE), "left", 0.1))
        monkeypatch.setattr(backend.app.state.services.storage, "get", get)
        with caplog.at_level(logging.WARNING):
            assert await order(backend, "content", content["id"]) == [content["id"]]
        assert "could not be read: cropped copies stay" in caplog.text
        left = (await backend.http.get("/api/v1/images")).json()["items"]
        assert [one["id"] for one in left] == [copy["id"]]
        assert near["id"] != copy["id"]


async def test_a_cropped_copy_does_not_name_what_it_was_cut_from(
    start_backend: StartBackend, scenes: None
) -> None:
    async with start_backend(admin_api_token=SecretStr(TOKEN)) as backend:
        content = await generate(backend, MINE)
        copy = await backend.put_image(cropped(scene(MINE), "left", 0.1))
        await order(backend, "picture", copy["sha256"])
        answer = await backend.http.get(f"/api/v1/content/{content['id']}")
        assert answer.status_code == 200


@pytest.mark.slow
def test_crops_know_the_demo_s_pictures_again_and_nothing_that_the_whole_does_not() -> None:
    files = [png(tile(number)) for number in range(96)]
    found = seen = 0
    for number in (*range(6), *range(24, 30)):
        picture, file = tile(number), files[number]
        known = known_by_crops(file)
        assert 60 < len(known) <= 104
        mine = likeness(file)
        for other in files:
            if other != file and is_known(known, other):
                assert bits_apart(mine, likeness(other)) <= NEAR_BITS
        for _, file in copies(picture):
            seen += 1
            found += is_known(known, file)
    assert found >= 0.96 * seen


@pytest.mark.slow
def test_a_picture_of_the_same_thing_elsewhere_is_no_crop_of_it() -> None:
    """As another seed draws it: what is in it lies as in a crop, and its proportions tell."""
    wide = tile(8).resize((400, 384))  # a dog
    picture, moved = wide.crop((0, 0, 384, 384)), wide.crop((16, 0, 400, 384))
    known = known_by_crops(png(picture))
    assert bits_apart(likeness(png(picture)), likeness(png(moved))) > NEAR_BITS
    assert min(bits_apart(one.likeness, likeness(png(moved))) for one in known) <= NEAR_BITS
    assert not is_known(known, png(moved))


def bits_apart(one: int, other: int) -> int:
    return ((one ^ other) % (1 << 64)).bit_count()


def test_squares_and_turned_copies_are_known() -> None:
    picture = scene(MINE)
    known = known_by_crops(png(picture))
    for left in (0, 64, 128):
        assert is_known(known, png(picture.crop((left, 0, left + 256, 256))))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned right by a quarter
    file = io.BytesIO()
    copy = picture.crop((0, 0, 384, 238)).transpose(Image.Transpose.ROTATE_90)
    copy.save(file, "JPEG", exif=turned)
    assert is_known(known, file.getvalue())
    assert known_by_crops(png(Image.new("RGB", (64, 64), "red"))) == []


async def test_an_earlier_version_holds_nothing_against_crops(database_url: URL) -> None:
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    rows = "SELECT likeness FROM taken_down_picture ORDER BY likeness"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO takedown (id, kind, value, reason, contents, created_at) "
            "VALUES (gen_random_uuid(), 'near', 'x', 'ordered', '[]', now())"
        )
        for value, shape in ((1, None), (2, 1.5)):
            connection.execute(
                "INSERT INTO taken_down_picture (id, takedown_id, likeness, shape) "
                "SELECT gen_random_uuid(), id, %s, %s FROM takedown",
                (value, shape),
            )
        await asyncio.to_thread(migrate_down, database_url, "0028")
        assert connection.execute(rows).fetchall() == [(1,)]
        await asyncio.to_thread(migrate, database_url)
        assert connection.execute("SELECT bits, shape FROM taken_down_picture").fetchall() == [
            (5, None)
        ]
