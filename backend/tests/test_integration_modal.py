"""The whole way, with nothing doubled: an HTTP client, the backend's process, a real PostgreSQL,
the worker's process with the small SDXL, and a real object store. Once with an S3 server that
checks signatures, once with the backend's own signed URLs.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from PIL import Image
from psycopg.rows import dict_row
from sqlalchemy import URL
from typer.testing import CliRunner

from app.cli import cli
from app.services.marking.unsigned import without_manifest
from testkit.backend import StartBackend, ended
from testkit.loras.plain_bytes import kohya_lora, sd15_lora
from testkit.processes import REPOSITORY, backend_process, free_port, s3_server, worker_process

pytestmark = pytest.mark.slow

MODEL = REPOSITORY / "demo_model" / "sdxl-demo"
URL_SECONDS = 6
UNET = json.loads((MODEL / "unet" / "config.json").read_text())
# How wide the text is, and the layer that the LoRA changes.
WIDTHS = {"context": UNET["cross_attention_dim"], "width": UNET["block_out_channels"][1]}
LORA = kohya_lora(rank=4, seed=1, **WIDTHS)
PICTURE = {
    "prompt": "a red apple, white background",
    "seed": 7,
    "steps": 2,
    "width": 64,
    "height": 64,
}


@dataclass
class Stack:
    """The running services, as a client and the database's operator see them."""

    http: httpx2.Client
    conninfo: str
    stores_in_s3: bool

    def call(self, method: str, path: str, expected: int, **arguments: Any) -> dict[str, Any]:
        """One call of the API."""
        answer = self.http.request(method, f"/api/v1{path}", **arguments)
        assert answer.status_code == expected, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def upload(self, data: bytes, expected: int) -> dict[str, Any]:
        """Put a LoRA into the library."""
        return self.call(
            "POST",
            "/loras/models/upload",
            expected,
            files={"file": ("ink.safetensors", data, "application/octet-stream")},
            data={"name": "Ink"},
        )

    def lora(self) -> dict[str, Any]:
        """The LoRA that fits the small model."""
        self.http.post("/api/v1/loras/models/upload", **_form(LORA))
        return self.upload(LORA, 200)

    def draw(self, **body: Any) -> tuple[dict[str, Any], bytes]:
        """A content that succeeded, and its picture."""
        content = self.call("POST", "/content/generate", 200, json=PICTURE | body)
        assert content["status"] == "succeeded", content["error"]
        picture = httpx2.get(content["image_url"])
        assert picture.status_code == 200
        assert hashlib.sha256(picture.content).hexdigest() == content["images"][0]["file_sha256"]
        return content, picture.content

    def row(self, content_id: str) -> dict[str, Any]:
        """A content's row with its picture's, straight from PostgreSQL."""
        with psycopg.connect(self.conninfo, row_factory=dict_row) as connection:
            found = connection.execute(
                "SELECT g.*, p.object_key, p.file_sha256 FROM generation g "
                "JOIN content_piece p ON p.generation_id = g.id WHERE g.id = %s",
                [content_id],
            ).fetchone()
        assert found is not None
        return found


def _form(data: bytes) -> dict[str, Any]:
    return {
        "files": {"file": ("ink.safetensors", data, "application/octet-stream")},
        "data": {"name": "Ink"},
    }


@pytest.fixture(scope="module")
def worker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (MODEL / "model_index.json").exists():
        pytest.fail(f"{MODEL} is not there: it belongs to the repository")
    with worker_process(tmp_path_factory.mktemp("worker"), MODEL) as url:
        yield url


@pytest.fixture(scope="module", params=["s3", pytest.param("local", marks=pytest.mark.long)])
def stack(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: URL,
    worker_url: str,
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp(request.param)
    name = f"integration_{request.param}"
    server = postgres.set(drivername="postgresql")
    with psycopg.connect(
        server.render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # empty: the backend migrates it
    conninfo = server.set(database=name).render_as_string(hide_password=False)
    environment = {
        "DATABASE_URL": conninfo,
        "MODAL_ENDPOINT_URL": f"{worker_url}/generate-image",
        "IMAGE_URL_SECONDS": str(URL_SECONDS),
    }
    port = free_port()
    if request.param == "s3":
        with s3_server(folder) as s3:
            yield from _running(folder, port, environment | s3, stores_in_s3=True)
    else:
        yield from _running(folder, port, environment, stores_in_s3=False)


def _running(
    folder: Path, port: int, environment: dict[str, str], *, stores_in_s3: bool
) -> Iterator[Stack]:
    with (
        backend_process(folder / "data", port, **environment),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http,
    ):
        yield Stack(http, environment["DATABASE_URL"], stores_in_s3)


def test_a_lora_changes_the_picture_and_leaves_nothing_behind(stack: Stack) -> None:
    lora = stack.lora()
    base, base_png = stack.draw()
    styled, styled_png = stack.draw(loras=[{"lora_model_id": lora["id"], "scale": 1.0}])
    again, again_png = stack.draw()
    # Byte for byte, once the signatures are off: no two of these are the same.
    bare = [without_manifest(png) for png in (base_png, styled_png, again_png)]
    assert bare[2] == bare[0]
    assert bare[1] != bare[0]
    assert Image.open(io.BytesIO(styled_png)).size == (64, 64)
    assert [content["model_clean"] for content in (base, styled, again)] == [True, True, True]
    report = styled["loras"][0]
    assert (report["modules_matched"], report["modules_unmatched"]) == (1, [])
    assert report["sha256"] == hashlib.sha256(LORA).hexdigest()
    assert styled["timings"]["denoise"] > 0
    assert styled["cost"]["gpu"] == "cpu"
    row = stack.row(styled["id"])
    assert (row["status"], row["attempt"], row["provider_attempts"]) == ("succeeded", 1, 1)
    assert row["file_sha256"] == hashlib.sha256(styled_png).hexdigest()


@pytest.mark.long
def test_a_picture_is_drawn_again_from_its_own_file(stack: Stack) -> None:
    lora = stack.lora()
    used = [{"lora_model_id": lora["id"], "scale": 0.7}]
    for changes in ({"loras": used, "num_images": 2}, {"output_format": "webp", "cfg": 3.0}):
        content, _ = stack.draw(**changes)
        picture = httpx2.get(content["images"][-1]["url"]).content
        form = {"file": ("mine", picture)}
        again = stack.call("POST", "/replays", 202, files=form)
        while stack.call("GET", f"/content/{again['id']}", 200)["status"] in ("queued", "running"):
            time.sleep(0.05)
        compared = stack.call(
            "POST", "/replays/comparison", 200, files=form, data={"content_id": again["id"]}
        )
        assert (compared["pixels_differing"], compared["same_file"]) == (0, True), compared


async def test_a_watermarked_picture_is_found_and_drawn_again_exactly(
    start_backend: StartBackend, worker_url: str
) -> None:
    """Also where the setting is another by then."""
    big: dict[str, Any] = PICTURE | {"width": 128, "height": 128}
    real: dict[str, Any] = {
        "inference": None,
        "modal_endpoint_url": f"{worker_url}/generate-image",
    }
    async with start_backend(watermark="spread", **real) as backend:
        content = await backend.generate(**big)
        assert content["status"] == "succeeded", content["error"]
        picture = (await backend.http.get(content["image_url"])).content
        form = {"file": ("mine.png", picture)}
        report = (await backend.http.post("/api/v1/verify", files=form)).json()
        assert report["manifest"]["state"] == "trusted"
        assert report["watermark"]["contents"] == [content["id"]]
        assert report["manifest"]["facts"]["watermark"].startswith("spread-1:")

    async with start_backend(watermark="off", **real) as backend:
        accepted = (await backend.http.post("/api/v1/replays", files=form)).json()
        again = await ended(backend, accepted["id"])
        compared = await backend.http.post(
            "/api/v1/replays/comparison", files=form, data={"content_id": again["id"]}
        )
        assert (compared.json()["pixels_differing"], compared.json()["same_file"]) == (0, True)


def test_an_avatar_draws_with_its_prompt_and_lora(stack: Stack) -> None:
    avatar = stack.call(
        "POST",
        "/identities/avatars",
        201,
        json={
            "name": "Ann",
            "base_prompt": "an apple",
            "negative_prompt": "blur",
            "lora_model_id": stack.lora()["id"],
        },
    )
    content, png = stack.draw(prompt="on a table", avatar_id=avatar["id"], width=None, height=None)
    assert Image.open(io.BytesIO(png)).size == (128, 128)  # the model's native size
    assert content["prompt"] == "an apple, on a table"
    assert content["negative_prompt"] == "blur"
    assert content["loras"][0]["scale"] == 0.9


@pytest.mark.long
def test_an_image_url_works_until_it_expires_or_is_changed(stack: Stack) -> None:
    content, _ = stack.draw()
    signed_at = time.monotonic()
    url = stack.call("GET", f"/content/{content['id']}", 200)["image_url"]
    assert url.startswith(str(stack.http.base_url)) is not stack.stores_in_s3
    assert httpx2.get(url).status_code == 200
    changed = url[:-1] + ("0" if url[-1] != "0" else "1")
    assert httpx2.get(changed).status_code == 403
    # Kept the same for as long again, so that browsers can cache the picture.
    time.sleep(max(0.0, 2 * URL_SECONDS + 1.5 - (time.monotonic() - signed_at)))
    assert httpx2.get(url).status_code == 403
    fresh = stack.call("GET", f"/content/{content['id']}", 200)["image_url"]
    assert httpx2.get(fresh).status_code == 200


def test_what_does_not_fit_the_loaded_model_is_refused_at_once(stack: Stack) -> None:
    model = stack.call("GET", "/model", 200)
    assert (model["limits"]["native_size"], model["worker"]) == (128, "ready")
    problem = stack.call("POST", "/content/generate", 422, json=PICTURE | {"width": 700})
    assert problem["field"] == "width"
    assert f"nearest allowed is {model['limits']['max_side']}" in problem["detail"]
    for file in (sd15_lora(), kohya_lora(), LORA[:-64], b"\x80\x04K\x01."):
        assert stack.upload(file, 422)["error_code"] == "LORA_LOAD_FAILED"
    stack.draw()


def test_the_command_line_does_the_same(stack: Stack, tmp_path: Path) -> None:
    server = ["--server", str(stack.http.base_url)]
    file, output = tmp_path / "ink.safetensors", tmp_path / "apple.png"
    file.write_bytes(LORA)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, [*arguments, *server])
        assert result.exit_code == code, result.output
        return result.output

    lora = json.loads(run("upload-lora", str(file)))
    avatar = json.loads(run("create-avatar", "Ann", "an apple", "--lora", lora["id"]))
    options = ["--steps", "2", "--width", "64", "--height", "64", "--output", str(output)]
    content = json.loads(run("generate", "red", "--avatar", avatar["id"], *options))
    assert hashlib.sha256(output.read_bytes()).hexdigest() == content["images"][0]["file_sha256"]
    assert json.loads(run("show", content["id"]))["id"] == content["id"]
    assert "succeeded" in run("show")
    assert "INVALID_REQUEST" in run("generate", "red", "--width", "700", code=1)


def test_a_lora_that_vanished_from_the_store_fails_the_job_and_says_so(stack: Stack) -> None:
    file = kohya_lora(rank=2, seed=2, **WIDTHS)
    lora = stack.upload(file, 201)
    key = f"owners/local/loras/{lora['sha256']}.safetensors"
    with psycopg.connect(stack.conninfo) as connection:
        connection.execute(
            "UPDATE lora_model SET object_key = %s WHERE id = %s", [f"gone/{key}", lora["id"]]
        )
    body = PICTURE | {"loras": [{"lora_model_id": lora["id"], "scale": 1.0}]}
    content = stack.call("POST", "/content/generate", 200, json=body)
    assert content["status"] == "failed"
    assert content["error"]["code"] == "LORA_DOWNLOAD_FAILED"
    assert "http://" not in content["error"]["message"]
    stack.draw()


def test_a_picture_is_drawn_over_an_uploaded_one_and_kept_outside_the_mask(stack: Stack) -> None:
    source, mask = Image.new("RGB", (64, 64), (20, 90, 160)), Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    ids = []
    for picture in (source, mask):
        file = io.BytesIO()
        picture.save(file, "PNG")
        answer = stack.http.post("/api/v1/images", files={"file": ("a.png", file.getvalue())})
        assert answer.status_code in (200, 201), answer.text
        ids.append({"image_id": answer.json()["id"]})
    content, data = stack.draw(
        image=ids[0], mask=ids[1], strength=1.0, inpaint={"blur": 0, "fill": "noise"}
    )
    drawn = Image.open(io.BytesIO(data))
    assert drawn.size == (64, 64)
    assert drawn.crop((0, 0, 32, 64)).tobytes() == source.crop((0, 0, 32, 64)).tobytes()
    assert drawn.crop((32, 0, 64, 64)).tobytes() != source.crop((32, 0, 64, 64)).tobytes()
    assert content["model_clean"] is True
    again, repeated = stack.draw(image={"image_id": content["images"][0]["id"]}, strength=0.5)
    assert again["parameters"]["image"]["sha256"] == content["images"][0]["file_sha256"]
    assert without_manifest(repeated) != without_manifest(data)
    assert again["timings"]["encode_image"] > 0
