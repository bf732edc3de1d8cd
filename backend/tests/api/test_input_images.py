"""Pictures to draw from: taken in, each owner's own, signed at dispatch, gone with their time."""

from __future__ import annotations

import hashlib
import io
import uuid
from datetime import timedelta
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import URL, update

from app.models import InputImage
from app.models.base import utc_now
from app.services.upkeep.retention import remove_old
from app.services.upkeep.sweep import sweep
from sdxl_contract.errors import ImageDownloadFailed
from sdxl_contract.pictures import Area
from testkit.backend import Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble

IMAGES = "/api/v1/images"


def picture(colour: str = "teal", kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


async def put(backend: Backend, data: bytes, expected: int = 201, **more: Any) -> dict[str, Any]:
    answer = await backend.http.post(IMAGES, files={"file": ("a.png", data)}, **more)
    assert answer.status_code == expected, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_picture_is_kept_once_shown_and_removed(backend: Backend) -> None:
    data = picture()
    first = await put(backend, data)
    again = await put(backend, data, expected=200)
    assert again["id"] == first["id"]
    assert (first["width"], first["height"], first["media_type"]) == (40, 30, "image/png")
    assert first["sha256"] == hashlib.sha256(data).hexdigest()
    assert (await backend.http.get(first["url"])).content == data
    listed = (await backend.http.get(IMAGES)).json()["items"]
    assert [one["id"] for one in listed] == [first["id"]]
    assert (await backend.http.delete(f"{IMAGES}/{first['id']}")).status_code == 204
    assert (await backend.http.get(f"{IMAGES}/{first['id']}")).status_code == 404
    assert (await backend.http.get(first["url"])).status_code == 404


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
async def test_the_kinds_that_the_worker_reads_are_taken(backend: Backend, kind: str) -> None:
    assert (await put(backend, picture(kind=kind)))["media_type"] == f"image/{kind.lower()}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format"),
        (picture(kind="GIF"), "format"),
        (picture(size=(2000, 2000))[:500], "damaged"),
        (picture(size=(9000, 2)), "too_large"),
    ],
    ids=["nothing", "SVG", "GIF", "cut", "wide"],
)
async def test_what_is_no_picture_is_refused_by_field(
    backend: Backend, data: bytes, reason: str
) -> None:
    body = await put(backend, data, expected=422)
    assert body["error_code"] == "IMAGE_LOAD_FAILED"
    assert body["field"] == "file"
    assert body["details"]["reason"] == reason


async def test_a_file_over_the_limit_is_not_read_to_its_end(backend: Backend) -> None:
    body = await put(backend, b"\0" * (33 * 2**20), expected=413)
    assert body["error_code"] == "TOO_LARGE"


async def test_the_worker_gets_a_url_that_serves_the_picture_and_its_hash(
    backend: Backend, inference: InferenceDouble
) -> None:
    data, mask = picture(), picture("white")
    ids = [(await put(backend, one))["id"] for one in (data, mask)]
    content = await backend.generate(
        image={"image_id": ids[0]}, mask={"image_id": ids[1], "invert": True}, strength=0.5,
        inpaint={"blur": 2, "soft": True}, guidance_rescale=0.3, width=1024, height=1024,
    )  # fmt: skip
    request = inference.requests[-1]
    assert request.image is not None
    assert request.mask is not None
    assert request.image.sha256 == hashlib.sha256(data).hexdigest()
    assert (await backend.http.get(request.image.url)).content == data
    assert (await backend.http.get(request.mask.url)).content == mask
    assert (request.mask.invert, request.strength, request.guidance_rescale) == (True, 0.5, 0.3)
    assert request.inpaint is not None
    assert (request.inpaint.blur, request.inpaint.soft) == (2, True)
    shown = content["parameters"]
    assert shown["image"] == {"image_id": ids[0], "sha256": request.image.sha256}
    assert shown["strength"] == 0.5
    assert "url" not in str(shown)


async def test_a_drawn_picture_can_be_drawn_from_and_again_exactly(
    backend: Backend, inference: InferenceDouble
) -> None:
    first = await backend.generate()
    image = first["images"][0]
    shown = (await backend.http.get(f"{IMAGES}/{image['id']}")).json()
    assert (shown["sha256"], shown["width"]) == (image["file_sha256"], image["width"])
    assert (await backend.http.get(shown["url"])).status_code == 200
    second = await backend.generate(image={"image_id": image["id"]}, outpaint={"left": 64})
    request = inference.requests[-1]
    assert request.image is not None
    assert request.image.sha256 == image["file_sha256"]
    assert (await backend.http.get(request.image.url)).status_code == 200
    answer = await backend.http.post(f"/api/v1/content/{second['id']}/replay")
    assert answer.status_code in (200, 202), answer.text
    await ended(backend, answer.json()["id"])
    again = inference.requests[-1]
    assert again.image is not None
    assert again.image.sha256 == request.image.sha256
    assert (again.seed, again.outpaint) == (request.seed, request.outpaint)


async def test_the_size_of_a_drawing_that_is_put_back_stays_what_was_asked(
    backend: Backend, inference: InferenceDouble
) -> None:
    source = (await put(backend, picture()))["id"]
    content = await backend.generate(
        image={"image_id": source}, mask={"image_id": source}, inpaint={"area": "masked"}
    )
    assert inference.requests[-1].area is Area.MASKED
    assert content["parameters"]["width"] is None


@pytest.mark.parametrize("field", ["image", "mask"])
async def test_another_owner_s_picture_is_not_there(
    start_backend: StartBackend, database_url: URL, field: str
) -> None:
    keys = [await add_key(database_url, owner) for owner in ("ann", "ben")]
    async with start_backend() as backend:
        mine = await put(backend, picture(), headers=keys[0])
        theirs = await put(backend, picture("red"), headers=keys[1])
        drawn = await backend.generate(headers=keys[1])
        for other in (theirs["id"], drawn["images"][0]["id"], str(uuid.uuid4())):
            body = {"image": {"image_id": mine["id"]}, field: {"image_id": other}}
            refused = await backend.generate(expected=404, headers=keys[0], **body)
            assert refused["field"] == f"{field}.image_id"
        for call in ("GET", "DELETE"):
            answer = await backend.http.request(call, f"{IMAGES}/{theirs['id']}", headers=keys[0])
            assert answer.status_code == 404
        same = await put(backend, picture(), headers=keys[1])
        assert same["id"] != mine["id"]
        nobody = await backend.http.post(IMAGES, files={"file": ("a.png", picture())})
        assert nobody.status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"strength": 0.5}, "strength"),
        ({"mask": True}, "mask"),
        ({"image": True, "strength": 0.01}, "strength"),
        ({"image": True, "strength": 1.5}, "strength"),
        ({"image": True, "strength": "0.5"}, "strength"),
        ({"image": True, "outpaint": {}}, "outpaint"),
        ({"image": True, "outpaint": {"left": 8}, "mask": True}, "mask"),
        ({"image": True, "inpaint": {"blur": 1}}, "inpaint"),
        ({"image": True, "fit": "pad"}, "fit"),
        ({"guidance_rescale": 2}, "guidance_rescale"),
    ],
    ids=str,
)
async def test_what_does_not_go_together_is_refused_before_anything_is_queued(
    backend: Backend, inference: InferenceDouble, body: dict[str, Any], field: str
) -> None:
    use = {"image_id": (await put(backend, picture()))["id"]}
    sent = {name: use if value is True else value for name, value in body.items()}
    refused = await backend.generate(expected=422, **sent)
    assert refused["field"] == field
    assert not inference.requests


async def test_a_picture_that_a_content_waits_for_stays_and_goes_later(
    backend: Backend, inference: InferenceDouble
) -> None:
    uploaded = await put(backend, picture())
    services = backend.app.state.services
    inference.gate.clear()
    try:
        asked = {"headers": {"Prefer": "respond-async"}, "image": {"image_id": uploaded["id"]}}
        waiting = await backend.generate(expected=202, **asked)
        refused = await backend.http.delete(f"{IMAGES}/{uploaded['id']}")
        assert (refused.status_code, refused.json()["details"]["contents"]) == (409, 1)
        async with services.database.session() as session:
            await session.execute(update(InputImage).values(used_at=utc_now() - timedelta(days=9)))
        await remove_old(services.database, services.storage, days=3)
        assert (await backend.http.get(f"{IMAGES}/{uploaded['id']}")).status_code == 200
    finally:
        inference.gate.set()
    await ended(backend, waiting["id"])
    await remove_old(services.database, services.storage, days=3)
    assert (await backend.http.get(f"{IMAGES}/{uploaded['id']}")).status_code == 404
    assert (await backend.http.get(uploaded["url"])).status_code == 404


async def test_a_used_picture_is_younger_than_an_unused_one(backend: Backend) -> None:
    used, unused = [await put(backend, picture(colour)) for colour in ("red", "blue")]
    services = backend.app.state.services
    async with services.database.session() as session:
        await session.execute(update(InputImage).values(used_at=utc_now() - timedelta(days=9)))
    await backend.generate(image={"image_id": used["id"]})
    await remove_old(services.database, services.storage, days=3)
    left = [one["id"] for one in (await backend.http.get(IMAGES)).json()["items"]]
    assert left == [used["id"]]
    assert unused["id"] not in left


async def test_a_content_whose_picture_was_deleted_says_so(
    backend: Backend, inference: InferenceDouble
) -> None:
    uploaded = await put(backend, picture())
    content = await backend.generate(image={"image_id": uploaded["id"]})
    await backend.http.delete(f"{IMAGES}/{uploaded['id']}")
    answer = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    assert answer.status_code == 409
    assert answer.json()["details"] == {"reason": "picture_deleted", "field": "image"}


async def test_a_picture_whose_server_is_away_is_waited_for(
    backend: Backend, inference: InferenceDouble
) -> None:
    uploaded = await put(backend, picture())
    inference.failures = [
        ImageDownloadFailed("away", details={"reason": "unreachable", "field": "image"}, status=502)
    ]
    content = await backend.generate(image={"image_id": uploaded["id"]})
    assert content["status"] == "succeeded"


async def test_the_sweep_knows_uploaded_pictures_and_removes_strays(backend: Backend) -> None:
    uploaded = await put(backend, picture())
    services = backend.app.state.services
    stray = "owners/local/inputs/0123.png"
    await services.storage.put(stray, b"stray")
    swept = await sweep(services.database, services.storage, grace_seconds=-60)
    assert (swept.removed, swept.missing_objects) == (1, 0)
    assert (await backend.http.get(uploaded["url"])).status_code == 200
    assert not await services.storage.exists(stray)


async def test_a_picture_that_was_taken_down_cannot_come_back(
    start_backend: StartBackend,
) -> None:
    token = "operator-" + "x" * 30
    async with start_backend(admin_api_token=SecretStr(token)) as backend:
        uploaded = await put(backend, picture())
        order = {"kind": "picture", "value": uploaded["sha256"], "reason": "asked"}
        headers = {"Authorization": f"Bearer {token}"}
        answer = await backend.http.post("/api/v1/admin/takedowns", json=order, headers=headers)
        assert answer.status_code == 201, answer.text
        assert (await backend.http.get(f"{IMAGES}/{uploaded['id']}")).status_code == 404
        assert (await backend.http.get(uploaded["url"])).status_code == 404
        refused = await put(backend, picture(), expected=422)
        assert refused["details"]["reason"] == "taken_down"


@pytest.mark.parametrize("words", [{"prompt": None}, {"prompt": ""}, {"prompt": "  "}])
async def test_a_picture_is_enlarged_without_words(
    backend: Backend, inference: InferenceDouble, words: dict[str, Any]
) -> None:
    image = (await backend.generate())["images"][0]
    await backend.generate(
        **words, image={"image_id": image["id"]}, upscale={"upscaler": "lanczos", "scale": 2}
    )
    request = inference.requests[-1]
    assert request.upscale is not None
    assert (request.upscale.upscaler, request.prompt) == ("lanczos", "")
    body = await backend.generate(**words, image={"image_id": image["id"]}, expected=400)
    assert body["error_code"] == "INVALID_PROMPT"
