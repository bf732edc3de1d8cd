"""A picture is drawn again from its own receipt, and compared pixel by pixel."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from app.core.settings import Settings
from app.services.marking.keys import development_identity
from app.services.marking.marker import Facts, Marker
from app.services.marking.reading import read
from app.services.marking.receipts import as_asked, pictures_of, receipt_of
from sdxl_contract.errors import ContractError
from sdxl_contract.limits import ControlInfo, ControlKind, ModelLimits
from testkit.backend import Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

REPLAYS = "/api/v1/replays"
RECEIPT: dict[str, Any] = {
    "seed": 7,
    "prompt": "x",
    "parameters": {"steps": 3},
    "base_model": "double",
    "loras": [],
}


async def post(
    backend: Backend, data: bytes, expected: int, path: str = "", **form: str
) -> dict[str, Any]:
    answer = await backend.http.post(REPLAYS + path, files={"file": ("x.png", data)}, data=form)
    assert answer.status_code == expected, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def replayed(backend: Backend, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content that was drawn from a file's receipt, and the comparison."""
    content = await ended(backend, (await post(backend, data, 202))["id"])
    assert content["status"] == "succeeded", content["error"]
    return content, await post(backend, data, 200, "/comparison", content_id=content["id"])


async def file_of(backend: Backend, content: dict[str, Any], position: int = 0) -> bytes:
    return (await backend.http.get(content["images"][position]["url"])).content


def manifest_in(picture: bytes) -> bytes:
    """What lies in a PNG's `caBX` chunk."""
    start = picture.index(b"caBX")
    return picture[start + 4 :][: int.from_bytes(picture[start - 4 : start], "big")]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_each_picture_of_a_batch_is_drawn_again_and_equal(
    backend: Backend, output_format: str
) -> None:
    first = await backend.upload(kohya_lora(seed=1), "Ink")
    second = await backend.upload(kohya_lora(seed=2), "Soft")
    content = await backend.generate(
        prompt="an apple",
        negative_prompt="a pear",
        seed=5,
        num_images=2 if output_format == "png" else 1,
        width=512,
        height=768,
        steps=7,
        cfg=3.5,
        scheduler="euler",
        output_format=output_format,
        loras=[
            {"lora_model_id": second["id"], "scale": -0.5},
            {"lora_model_id": first["id"], "scale": 1.25},
        ],
    )
    for position, image in enumerate(content["images"]):
        again, compared = await replayed(backend, await file_of(backend, content, position))
        assert again["images"][0]["sha256"] == image["sha256"]
        assert compared["is_equal"]
        assert (compared["same_file"], compared["same_pixels"]) == (True, True)
        assert (compared["pixels"], compared["pixels_differing"]) == (512 * 768, 0)
        assert compared["content_id"] == again["id"]


async def test_what_was_left_to_the_model_is_left_to_it_again(
    backend: Backend, inference: InferenceDouble
) -> None:
    content = await backend.generate(prompt="an apple", seed=5)
    again, compared = await replayed(backend, await file_of(backend, content))

    assert compared["is_equal"]
    assert again["parameters"] == content["parameters"]
    assert inference.requests[0].scheduler == inference.requests[1].scheduler


async def test_a_manifest_without_its_picture_is_enough(backend: Backend) -> None:
    content = await backend.generate(prompt="an apple", seed=5, width=512, height=512)
    small = (await backend.http.get(content["images"][0]["thumbnail_url"])).content
    _, compared = await replayed(backend, manifest_in(await file_of(backend, content)))
    _, by_thumbnail = await replayed(backend, small)

    for found in (compared, by_thumbnail):
        assert (found["is_equal"], found["same_file"], found["same_pixels"]) == (True, True, None)
    alone = await backend.http.post(
        "/api/v1/verify", files={"file": ("x", manifest_in(await file_of(backend, content)))}
    )
    assert alone.json()["manifest"]["state"] == "trusted"
    assert alone.json()["media_type"] == "application/c2pa"


async def test_a_renamed_lora_draws_the_same_file(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora(), "Ink")
    wanted = [{"lora_model_id": lora["id"], "scale": 1.0}]
    content = await backend.generate(seed=5, loras=wanted)
    data = await file_of(backend, content)
    renamed = await backend.http.patch(f"/api/v1/loras/models/{lora['id']}", json={"name": "Pen"})
    assert renamed.status_code == 200, renamed.text

    again, compared = await replayed(backend, data)

    assert again["loras"][0]["name"] == "Ink"
    assert compared["is_equal"]


async def test_changed_pixels_are_counted(backend: Backend, settings: Settings) -> None:
    content = await backend.generate(prompt="an apple", seed=5, width=512, height=512)
    data = await file_of(backend, content)
    with Image.open(io.BytesIO(data)) as opened:
        changed = opened.convert("RGB")
    red, green, blue = changed.getpixel((3, 4))  # type: ignore[misc]
    changed.putpixel((3, 4), (red ^ 64, green, blue))
    changed.putpixel((5, 4), (red, green, blue ^ 1))
    file = io.BytesIO()
    changed.save(file, "PNG")
    # The manifest of the true picture in the changed one.
    start = data.index(b"caBX") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    forged = file.getvalue()[:33] + chunk + file.getvalue()[33:]

    again, compared = await replayed(backend, forged)

    assert (compared["is_equal"], compared["same_file"]) == (False, True)
    assert (compared["pixels_differing"], compared["largest_difference"]) == (2, 64)
    assert compared["summary"].startswith("2 of 262144 pixels differ")
    assert again["images"][0]["sha256"] == content["images"][0]["sha256"]


async def test_a_picture_drawn_from_another_is_drawn_again_from_it(backend: Backend) -> None:
    source = await backend.generate(prompt="a source", seed=1)
    uploaded = await backend.http.post(
        "/api/v1/images", files={"file": ("s.png", await file_of(backend, source))}
    )
    assert uploaded.status_code in (200, 201), uploaded.text
    for image_id in (uploaded.json()["id"], source["images"][0]["id"]):
        content = await backend.generate(
            prompt="an apple", seed=5, image={"image_id": image_id}, strength=0.5
        )
        data = await file_of(backend, content)
        again, compared = await replayed(backend, data)
        assert compared["is_equal"]
        assert again["parameters"]["image"]["sha256"] == uploaded.json()["sha256"]
        assert again["parameters"]["strength"] == 0.5
        manifest = read(data, "")["manifest"]
        assert manifest["digital_source_type"].endswith("/compositeWithTrainedAlgorithmicMedia")
    for path in (f"/images/{uploaded.json()['id']}", f"/content/{source['id']}"):
        gone = await backend.http.delete(f"/api/v1{path}")
        assert gone.status_code == 204, gone.text
    refused = await post(backend, data, 409)
    assert refused["details"]["missing"] == [{"name": "image", "sha256": uploaded.json()["sha256"]}]


async def test_a_held_picture_is_drawn_again_from_what_held_it(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    lines = ControlInfo(name="lines", sha256="0" * 64, kind=ControlKind.CONTROLNET, bytes=9)
    inference.limits = ModelLimits(controls=(lines,))
    async with start_backend() as backend:
        source = await backend.generate(prompt="a map", seed=1)
        image_id = source["images"][0]["id"]
        control = {"model": "lines", "image": {"image_id": image_id}, "end": 0.5, "canny": {}}
        data = await file_of(backend, await backend.generate(seed=5, controls=[control]))
        again, compared = await replayed(backend, data)
        assert compared["is_equal"]
        [held] = again["parameters"]["controls"]
        assert held["image"]["image_id"] == image_id
        assert (held["model"], held["end"], held["canny"]["low"]) == ("lines", 0.5, 100)
        await backend.http.delete(f"/api/v1/content/{source['id']}")
        refused = await post(backend, data, 409)
        assert refused["details"]["missing"][0]["name"] == "controls[0].image"


async def test_a_part_of_a_picture_is_not_equal_to_it(backend: Backend) -> None:
    content = await backend.generate(prompt="an apple", seed=5, width=512, height=512)
    data = await file_of(backend, content)
    with Image.open(io.BytesIO(data)) as opened:
        part = opened.convert("RGB").crop((0, 0, 300, 512))
    file = io.BytesIO()
    part.save(file, "PNG")
    start = data.index(b"caBX") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]

    _, compared = await replayed(backend, file.getvalue()[:33] + chunk + file.getvalue()[33:])

    assert (compared["is_equal"], compared["same_pixels"]) == (False, None)
    assert "it has 300 × 512 px" in compared["summary"]


@pytest.mark.parametrize("kind", ["content", "picture"])
async def test_what_was_taken_down_is_not_drawn_again(
    start_backend: StartBackend, kind: str
) -> None:
    token = "an-operator-s-token-of-32-characters"
    async with start_backend(admin_api_token=SecretStr(token)) as backend:
        content = await backend.generate(prompt="somebody", seed=5)
        data = await file_of(backend, content)
        value = content["id"] if kind == "content" else content["images"][0]["sha256"]
        ordered = await backend.http.post(
            "/api/v1/admin/takedowns",
            json={"kind": kind, "value": value, "reason": "asked for"},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert ordered.status_code == 201
        refused = await post(backend, data, 422)
        assert refused["error_code"] == "CONTENT_REFUSED"


async def test_missing_loras_are_named_by_their_hash(start_backend: StartBackend) -> None:
    async with start_backend() as backend:
        lora = await backend.upload(kohya_lora(), "Ink")
        wanted = [{"lora_model_id": lora["id"], "scale": 1.0}]
        content = await backend.generate(seed=5, loras=wanted)
        data = await file_of(backend, content)
        assert (await backend.http.delete(f"/api/v1/loras/models/{lora['id']}")).status_code == 204

        refused = await post(backend, data, 409)
        assert lora["sha256"] in refused["detail"]
        assert refused["details"]["reason"] == "loras_missing"
        assert refused["details"]["missing"] == [{"name": "Ink", "sha256": lora["sha256"]}]

        await backend.upload(kohya_lora(), "Another name")
        _, compared = await replayed(backend, data)
        assert compared["is_equal"]


async def test_another_model_is_named(backend: Backend, settings: Settings) -> None:
    marker = Marker(development_identity(settings.data_dir / "marking"), "1")
    refused = await post(backend, _signed(marker, base_model="another"), 409)

    assert "'another'" in refused["detail"]
    assert refused["details"] == {
        "reason": "other_model",
        "base_model": "another",
        "weights": None,
        "loaded": "double",
        "loaded_weights": None,
    }


async def test_a_model_is_the_same_by_its_weights_whatever_its_name(
    start_backend: StartBackend, settings: Settings, inference: InferenceDouble
) -> None:
    inference.weights = "0a" * 16
    async with start_backend() as backend:
        marker = Marker(development_identity(settings.data_dir / "marking"), "1")
        content = await backend.generate(seed=5)
        report = await backend.http.post(
            "/api/v1/verify", files={"file": ("x.png", await file_of(backend, content))}
        )
        assert report.json()["manifest"]["facts"]["weights"] == "0a" * 16
        renamed = _signed(marker, base_model="renamed", weights="0a" * 16)
        assert (await post(backend, renamed, 202))["prompt"] == "x"
        assert await post(backend, _signed(marker), 202)  # of a version that told no weights
        refused = await post(backend, _signed(marker, weights="0b" * 16), 409)
        assert "0b" * 16 in refused["detail"]
        assert refused["details"]["loaded_weights"] == "0a" * 16


def _signed(marker: Marker, unsigned_sha256: str = "a" * 64, **changes: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(file, "WEBP")
    facts = Facts(unsigned_sha256, RECEIPT | changes, "2026-11-26T20:00:00Z")
    return marker.mark(file.getvalue(), "image/webp", facts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"prompt": "x" * 200_000}, "prompt"),
        ({"parameters": {"steps": 10**9}}, "steps"),
        ({"parameters": {"sigmas": 0.5}}, "was drawn with sigmas"),
        ({"parameters": {"strength": 7}}, "strength"),
        ({"parameters": {"image": {"sha256": "../x"}}}, "image has no SHA-256"),
        ({"parameters": {"controls": 7}}, "names no pictures"),
        ({"parameters": {"controls": "lines"}}, "names no pictures"),
        ({"parameters": {"controls": [{"model": "lines"}]}}, "names no pictures"),
        ({"parameters": {"controls": [{"image": 7}]}}, "controls[0].image has no SHA-256"),
        ({"parameters": {"controls": [{"image": {"sha256": "a" * 64}}] * 11}}, "too many pictures"),
        ({"parameters": {"controls": [{"image": {"sha256": "a" * 64}}]}}, "controls[0].model"),
        ({"parameters": 7}, "parameters"),
        ({"loras": [{"name": "x", "sha256": "y", "scale": 1}]}, "loras[0].sha256"),
        ({"loras": [{"name": "x", "sha256": "a" * 64, "scale": 1}] * 2}, "twice"),
        ({"loras": [{"name": "x", "sha256": "a" * 64}] * 99}, "loras"),
        ({"unsigned_sha256": "../x"}, "unsigned_sha256"),
        ({"scheduler": "no such"}, "scheduler"),
    ],
)
def test_a_stranger_s_receipt_is_held_against_every_limit(
    changes: dict[str, Any], says: str
) -> None:
    facts = RECEIPT | {"unsigned_sha256": "a" * 64} | changes
    manifest = {"state": "valid", "receipt_is_signed": True, "facts": facts}
    with pytest.raises(ContractError) as refused:
        receipt = receipt_of({"manifest": manifest})
        pictures_of(receipt)
        as_asked(receipt, {})
    assert refused.value.message.startswith("file: it ")
    assert says in refused.value.message
    assert refused.value.details == {"field": "file"}


async def test_a_stranger_s_receipt_is_held_against_the_model_s_limits(
    backend: Backend, tmp_path: Any
) -> None:
    stranger = Marker(development_identity(tmp_path / "other"), "1")
    refused = await post(backend, _signed(stranger, parameters={"width": 8}), 422)
    assert "width" in refused["detail"]
    refused = await post(backend, _signed(stranger, prompt=" "), 400)
    assert "blank" in refused["detail"]


async def test_what_has_no_receipt_is_refused(backend: Backend, settings: Settings) -> None:
    marker = Marker(development_identity(settings.data_dir / "marking"), "1")
    plain = io.BytesIO()
    Image.new("RGB", (64, 64)).save(plain, "PNG")
    forged = bytearray(_signed(marker))
    forged[forged.index(b"double")] ^= 1  # in the receipt

    for data, says in (
        (b"no picture", "not a PNG"),
        (plain.getvalue(), "carries no signed manifest"),
        (bytes(forged), "manifest that was changed"),
        (b"\0\0\0\x20jumb" + bytes(24), "neither a picture nor a manifest"),
    ):
        refused = await post(backend, data, 422)
        assert says in refused["detail"]
        assert refused["field"] == "file"


async def test_nothing_is_drawn_or_compared_for_another_owner(
    start_backend: StartBackend, database_url: Any
) -> None:
    mine, other = await add_key(database_url, "a"), await add_key(database_url, "b")
    async with start_backend() as backend:
        backend.http.headers.update(mine)
        content = await backend.generate(seed=5)
        data = await file_of(backend, content)
        backend.http.headers.update(other)
        await post(backend, data, 404, "/comparison", content_id=content["id"])
        del backend.http.headers["Authorization"]
        await post(backend, data, 401)
        await post(backend, data, 401, "/comparison", content_id=content["id"])


async def test_there_is_nothing_to_compare_before_it_is_drawn(
    backend: Backend, inference: InferenceDouble
) -> None:
    content = await backend.generate(seed=5)
    data = await file_of(backend, content)
    inference.gate.clear()
    waiting = await post(backend, data, 202)
    refused = await post(backend, data, 409, "/comparison", content_id=waiting["id"])
    inference.gate.set()
    assert refused["details"]["reason"] == "not_drawn"
    await ended(backend, waiting["id"])
