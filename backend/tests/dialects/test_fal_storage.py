"""fal's storage with `fal-client`: pictures and LoRAs are sent first, and named by their URL."""

from __future__ import annotations

import io
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import fal_client
import psycopg
import pytest
from PIL import Image
from sqlalchemy import URL

from app.services.calls import sent_files
from sdxl_contract.limits import IMAGE_MAX_BYTES
from testkit.backend import Served
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

APP = "fal-ai/fast-sdxl"
BEGIN = "/fal/rest/storage/upload/initiate"


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


async def begun(served: Served, **body: Any) -> dict[str, str]:
    """An upload's two URLs, without the server's name."""
    answer = await served.backend.http.post(BEGIN, json=body)
    assert answer.status_code == 200, answer.text
    return {name: url.split("8000", 1)[1] for name, url in answer.json().items()}


async def test_fals_client_sends_a_picture_and_a_lora_and_draws_with_both(
    fal: fal_client.AsyncClient, served: Served, inference: InferenceDouble, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "Ink.safetensors").write_bytes(kohya_lora())
    picture = await fal.upload_file(tmp_path / "a.png", repository="fal")
    lora = await fal.upload_file(tmp_path / "Ink.safetensors", repository="fal")
    await fal.run(
        f"{APP}/image-to-image",
        {"prompt": "x", "image_url": picture, "loras": [{"path": lora, "scale": 0.5}]},
    )
    [request] = inference.requests
    [kept] = (await served.backend.http.get("/api/v1/loras/models")).json()["items"]
    [image] = (await served.backend.http.get("/api/v1/images")).json()["items"]
    assert kept["name"] == "Ink"
    assert [(ref.sha256, ref.scale) for ref in request.loras] == [(kept["sha256"], 0.5)]
    assert request.image is not None
    assert request.image.sha256 == image["sha256"]
    # The same bytes again are the same picture, by another name.
    again = await fal.upload(png(), "image/png", "b.png", repository="fal")
    assert again != picture
    assert len((await served.backend.http.get("/api/v1/images")).json()["items"]) == 1
    # Another's URL is nobody's, and one file is not the other.
    http, other = served.backend.http, {"Authorization": f"Key {served.other_key}"}
    for body, headers, status, hint in (
        ({"image_url": picture}, other, 404, "no file"),
        ({"loras": [{"path": lora}]}, other, 404, "no file"),
        ({"image_url": lora}, {}, 422, "is a LoRA"),
        ({"loras": [{"path": picture}]}, {}, 422, "is a picture"),
        ({"image_url": f"{picture}x"}, {}, 404, "no file"),
    ):
        base = {"Host": picture.split("/")[2], **headers}
        url = await http.post(
            f"https://x/fal/run/{APP}", json={"prompt": "x", **body}, headers=base
        )
        assert (url.status_code, hint in url.text) == (status, True), (body, url.text)


async def test_a_file_comes_by_its_token_alone_once_and_in_time(
    served: Served, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = served.backend.http
    nobody = {"Authorization": ""}
    urls = await begun(served, file_name=None, content_type="image/png")
    put = urls["upload_url"]
    right = await http.put(put, content=png(), headers=nobody)
    assert (right.status_code, right.json()) == (200, {})
    # A client that did not get the answer sends it again: the first file stays.
    assert (await http.put(put, content=png("blue"), headers=nobody)).status_code == 200
    assert len((await http.get("/api/v1/images")).json()["items"]) == 1
    for wrong in (f"{put}x", put.replace("file=", "file=x"), "/fal/storage", f"/fal/storage?{put}"):
        answer = await http.put(wrong, content=png(), headers=nobody)
        assert (answer.status_code, "not valid" in answer.json()["detail"]) == (401, True), wrong
    late = (await begun(served))["upload_url"]
    monkeypatch.setattr(sent_files, "_TIME", timedelta(0))
    assert (await http.put(late, content=png(), headers=nobody)).status_code == 401
    monkeypatch.undo()
    with psycopg.connect(database_url.set(drivername="postgresql").render_as_string(False)) as own:
        own.execute("UPDATE api_key SET revoked_at = now() WHERE owner = 'local'")
    assert (await http.put(late, content=png(), headers=nobody)).status_code == 401
    assert (await http.post(BEGIN, json={})).status_code == 401


async def test_what_is_sent_is_bounded_and_a_picture_or_a_lora(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = served.backend.http
    for content, status, hint in (
        (b"", 422, ""),
        (b"hello", 422, ""),
        (b"\x89PNG broken", 422, "PNG"),
        (b"\x89PNG" + bytes(IMAGE_MAX_BYTES), 413, "at most"),
    ):
        urls = await begun(served, file_name="x.png")
        answer = await http.put(urls["upload_url"], content=content)
        assert (answer.status_code, hint in answer.text) == (status, True), (status, answer.text)
        drawn = await http.post(
            f"/fal/run/{APP}",
            json={"prompt": "x", "image_url": f"http://127.0.0.1:8000{urls['file_url']}"},
        )
        assert drawn.status_code == 404  # it has not come
    assert (await http.get("/api/v1/images")).json()["items"] == []
    parts = await http.post(f"{BEGIN}-multipart", json={})
    assert (parts.status_code, "90 MB" in parts.json()["detail"]) == (413, True)
    wrong = await http.post(BEGIN, json={"file_name": 7})
    assert wrong.json()["detail"][0]["loc"] == ["body", "file_name"]
    monkeypatch.setattr(sent_files, "_OPEN_MAX", 5)
    answers = [await http.post(BEGIN, json={}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[-1].headers["retry-after"]


async def test_one_owner_sends_a_few_at_a_time(served: Served) -> None:
    files = served.backend.app.state.services.sent_files
    urls = await begun(served)
    with files.place("local"), files.place("local"), files.place("local"), files.place("local"):
        busy = await served.backend.http.put(urls["upload_url"], content=png())
        assert busy.status_code == 429
    free = await served.backend.http.put(urls["upload_url"], content=png())
    assert free.status_code == 200
    assert not files._coming
    assert uuid.UUID(urls["file_url"].rpartition("/")[2])


async def test_the_javascript_client_begins_by_its_proxy(served: Served) -> None:
    target = "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"
    answer = await served.backend.http.post(
        "/fal/proxy", json={"file_name": "a.png"}, headers={"x-fal-target-url": target}
    )
    assert set(answer.json()) == {"upload_url", "file_url"}
