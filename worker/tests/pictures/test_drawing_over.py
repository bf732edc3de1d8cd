"""Pictures that start from pictures, over HTTP: as asked, bounded, with nothing left behind."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from sdxl_contract.request import GenerateRequest
from sdxl_worker.line.registry import fingerprint
from testkit.worker import FileServer, RunningWorker, hashes, photo_like, png_of

BODY: dict[str, Any] = {"prompt": "a red apple", "steps": 4, "seed": 5}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


SOURCE = photo_like(64)
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (32, 0, 64, 64))


@pytest.fixture
def image(files: FileServer) -> dict[str, str]:
    data = png(SOURCE)
    return {"url": files.add(data, "/source.png"), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def mask(files: FileServer) -> dict[str, Any]:
    return {"url": files.add(png(MASK), "/mask.png")}


def drawn(client: httpx2.Client, **fields: Any) -> tuple[Image.Image, dict[str, Any]]:
    answer = client.post("/generate-image", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return png_of(answer.json()), answer.json()


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


def test_the_less_is_drawn_the_more_is_the_source_s(
    client: httpx2.Client, worker: RunningWorker, image: dict[str, str]
) -> None:
    weights = hashes(worker.engine)
    far = []
    for strength in (0.25, 0.5, 1.0):
        picture, body = drawn(client, image=image, strength=strength, steps=8, cfg=1.0)
        again, _ = drawn(client, image=image, strength=strength, steps=8, cfg=1.0)
        assert again.tobytes() == picture.tobytes()
        assert picture.size == (64, 64)
        assert (body["model_clean"], body["structure_clean"]) == (True, True)
        assert body["timings"]["encode_image"] > 0
        far.append(difference(picture, SOURCE))
    assert far == sorted(far)
    assert far[0] < far[2] * 0.75, far
    assert hashes(worker.engine) == weights


def test_progress_counts_the_steps_that_are_drawn(
    client: httpx2.Client, image: dict[str, str]
) -> None:
    headers = {"Accept": "text/event-stream"}
    body = BODY | {"image": image, "strength": 0.5}
    text = client.post("/generate-image", json=body, headers=headers).text
    assert '"step":2,"steps":2' in text.replace(" ", "")
    assert '"steps":4' not in text.replace(" ", "")


def test_the_file_tells_what_it_was_drawn_from(
    client: httpx2.Client, image: dict[str, str], mask: dict[str, Any]
) -> None:
    inpaint = {"area": "masked", "padding": 8, "blur": 2, "fill": "noise"}
    picture, _ = drawn(
        client, image=image, mask=mask | {"invert": True}, inpaint=inpaint, width=64, height=64,
        guidance_rescale=0.5,
    )  # fmt: skip
    facts = picture.info["parameters"].splitlines()[-1]
    for fact in (
        "Denoising strength: 0.75", "Mask blur: 2", "Inpaint area: Only masked",
        "Masked area padding: 8", "Masked content: latent noise", "CFG Rescale phi: 0.5",
        "Mask mode: Inpaint not masked",
    ):  # fmt: skip
        assert fact in facts
    assert "https://" not in picture.info["parameters"]
    assert "127.0.0.1" not in picture.info["parameters"]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("area", ["whole", "masked"])
@pytest.mark.parametrize("fill", ["original", "surroundings", "noise", "nothing"])
def test_outside_the_mask_every_byte_is_the_source_s(
    client: httpx2.Client, image: dict[str, str], mask: dict[str, Any], soft: bool, area: str,
    fill: str,
) -> None:  # fmt: skip
    inpaint = {"area": area, "fill": fill, "soft": soft, "blur": 0, "padding": 8}
    picture, body = drawn(client, image=image, mask=mask, inpaint=inpaint, width=64, height=64)
    left, right = (0, 0, 32, 64), (32, 0, 64, 64)
    assert picture.crop(left).tobytes() == SOURCE.crop(left).tobytes()
    assert difference(picture.crop(right), SOURCE.crop(right)) > 5
    assert body["structure_clean"] is True


def test_an_outpainting_keeps_the_source_where_it_was(
    client: httpx2.Client, image: dict[str, str]
) -> None:
    outpaint = {"left": 32, "top": 16, "overlap": 8}
    picture, body = drawn(client, image=image, outpaint=outpaint, inpaint={"blur": 0})
    assert body["image_size"] == [96, 80]
    assert picture.crop((40, 24, 96, 80)).tobytes() == SOURCE.crop((8, 8, 64, 64)).tobytes()
    assert 'Outpaint: "left 32, top 16, overlap 8"' in picture.info["parameters"]


def test_several_pictures_of_one_source_are_each_their_seed_s(
    client: httpx2.Client, image: dict[str, str]
) -> None:
    _, both = drawn(client, image=image, num_images=2)
    alone, _ = drawn(client, image=image, seed=6)
    second = png_of({"image_base64": both["images"][1]["image_base64"]})
    assert second.tobytes() == alone.tobytes()


REFUSED: dict[str, tuple[dict[str, Any], int, str, str, str | None]] = {
    "text": ({"image": {"url": "/text.png"}}, 422, "IMAGE_LOAD_FAILED", "image", "format"),
    "a missing file": (
        {"image": {"url": "/none.png"}}, 400, "IMAGE_DOWNLOAD_FAILED", "image", "http_status"
    ),
    "another file": (
        {"image": {"url": "/source.png", "sha256": "0" * 64}}, 400, "IMAGE_DOWNLOAD_FAILED",
        "image", "hash_mismatch",
    ),
    "a file that is too large": (
        {"image": {"url": "/large.png"}}, 400, "IMAGE_DOWNLOAD_FAILED", "image", "too_large"
    ),
    "an inner address": (
        {"image": {"url": "http://10.0.0.1/a.png"}}, 400, "IMAGE_DOWNLOAD_FAILED", "image", None
    ),
    "a mask that is none": (
        {"image": {"url": "/source.png"}, "mask": {"url": "/text.png"}}, 422, "IMAGE_LOAD_FAILED",
        "mask", "format",
    ),
    "an empty mask": (
        {"image": {"url": "/source.png"}, "mask": {"url": "/black.png"}}, 422, "IMAGE_LOAD_FAILED",
        "mask", "empty_mask",
    ),
    "a mask without a source": (
        {"mask": {"url": "/source.png"}}, 422, "INVALID_REQUEST", "mask", None
    ),
    "a strength without a source": ({"strength": 0.5}, 422, "INVALID_REQUEST", "strength", None),
    "too little to draw": (
        {"image": {"url": "/source.png"}, "strength": 0.2}, 422, "INVALID_REQUEST", "strength", None
    ),
    "a strength above 1": (
        {"image": {"url": "/source.png"}, "strength": 1.1}, 422, "INVALID_REQUEST", "strength", None
    ),
    "true as a strength": (
        {"image": {"url": "/source.png"}, "strength": True}, 422, "INVALID_REQUEST", "strength",
        None,
    ),
    "an empty frame": (
        {"image": {"url": "/source.png"}, "outpaint": {}}, 422, "INVALID_REQUEST", "outpaint", None
    ),
    "a mask and a frame": (
        {"image": {"url": "/source.png"}, "mask": {"url": "/black.png"}, "outpaint": {"left": 8}},
        422, "INVALID_REQUEST", "mask", None,
    ),
    "an unknown fill": (
        {"image": {"url": "/source.png"}, "mask": {"url": "/a"}, "inpaint": {"fill": "magic"}},
        422, "INVALID_REQUEST", "inpaint.fill", None,
    ),
    "inpainting without a mask": (
        {"image": {"url": "/source.png"}, "inpaint": {"blur": 1}}, 422, "INVALID_REQUEST",
        "inpaint", None,
    ),
    "base64 in place of a URL": (
        {"image": "iVBORw0KGgo="}, 422, "INVALID_REQUEST", "image", None
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_drawn_from_is_refused_by_field(
    client: httpx2.Client, files: FileServer, image: dict[str, str], what: str
) -> None:
    fields, status, code, field, reason = REFUSED[what]
    files.add(b"not a picture", "/text.png")
    files.add(png(Image.new("L", (64, 64), 0)), "/black.png")
    files.add(b"\0" * (32 * 2**20 + 1), "/large.png")

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: files.url(v) if k == "url" and v.startswith("/") else absolute(v)
                for k, v in value.items()
            }
        return value

    answer = client.post("/generate-image", json=BODY | absolute(fields))
    body = answer.json()
    assert (answer.status_code, body["error_code"]) == (status, code), body
    assert body["details"]["field"] == field
    assert reason is None or body["details"]["reason"] == reason
    assert "secret" not in answer.text
    assert "LoRA" not in body["error"]


def test_a_signature_is_no_part_of_a_request_and_a_hash_is() -> None:
    def of(url: str, sha256: str | None = None) -> str:
        image = {"url": url, "sha256": sha256}
        return fingerprint(GenerateRequest.model_validate(BODY | {"image": image}))

    url = "https://bucket.example/a.png"
    assert of(f"{url}?sig=1") == of(f"{url}?sig=2")
    assert len({of(url), of(f"{url}2"), of(url, "0" * 64), of(url, "1" * 64)}) == 4


def test_who_joins_a_run_must_be_able_to_read_its_picture(
    client: httpx2.Client, files: FileServer, image: dict[str, str]
) -> None:
    body = BODY | {"image": image, "request_id": "shared-picture"}
    assert client.post("/generate-image", json=body).status_code == 200
    other = image | {"url": image["url"].replace("secret", "guessed")}
    files.scripts["/source.png"] = lambda handler: handler.send_error(403)
    refused = client.post("/generate-image", json=body | {"image": other})
    assert (refused.status_code, refused.json()["error_code"]) == (400, "IMAGE_DOWNLOAD_FAILED")
