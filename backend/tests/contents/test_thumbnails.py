"""Small copies of pictures: made, shown, and gone with their picture."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.core.errors import StorageFailed
from app.core.settings import Settings
from app.services.storage import LocalStorage
from app.services.thumbnails import encode, make_thumbnail
from app.services.upkeep.sweep import sweep
from app.services.worker.answer import decode_images
from sdxl_contract.request import GenerateRequest, OutputFormat
from sdxl_contract.result import GenerateResult
from testkit.backend import Backend, StartBackend


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 200 if mode == "L" else (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 1024), (256, 256)), ((1536, 512), (256, 85)), ((300, 1200), (64, 256))],
)
def test_the_longer_side_becomes_256_px(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = make_thumbnail(png(*size))

    assert small is not None
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.format, opened.size) == ("WEBP", expected)


def test_a_small_picture_has_none() -> None:
    assert make_thumbnail(png(256, 128)) is None


def test_a_grey_picture_has_one_too() -> None:
    assert make_thumbnail(png(512, 512, "L")) is not None


@pytest.mark.parametrize("kind", OutputFormat)
def test_the_small_copy_of_what_a_worker_sent_is_the_one_that_its_file_gives(
    kind: OutputFormat,
) -> None:
    size = (320, 448)
    pixels = random.Random(1).randbytes(3 * size[0] * size[1])
    file = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(file, kind.value.upper())
    sent = GenerateResult.model_construct(  # type: ignore[call-arg]  # the rest is not read
        images=[],
        image_base64=base64.b64encode(file.getvalue()).decode(),
        image_sha256=hashlib.sha256(file.getvalue()).hexdigest(),
        image_size=size,
    )
    request = GenerateRequest(prompt="x", width=size[0], height=size[1], output_format=kind)

    [decoded] = decode_images(sent, request)

    assert decoded.file == file.getvalue()
    assert decoded.shrunk is not None
    assert encode(decoded.shrunk) == make_thumbnail(file.getvalue())


def objects(settings: Settings) -> list[Path]:
    return [
        path for path in (settings.data_dir / "objects" / "owners").rglob("*") if path.is_file()
    ]


async def test_a_content_shows_its_thumbnail_and_takes_it_along_when_it_is_deleted(
    backend: Backend, settings: Settings
) -> None:
    content = await backend.generate(width=1024, height=768)
    url = content["images"][0]["thumbnail_url"]
    answer = await backend.http.get(url)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert opened.size == (256, 192)
    assert len(objects(settings)) == 2
    await backend.http.delete(f"/api/v1/content/{content['id']}")
    assert objects(settings) == []


async def test_a_thumbnail_that_cannot_be_stored_does_not_fail_the_picture(
    start_backend: StartBackend, settings: Settings
) -> None:
    class NoThumbnails(LocalStorage):
        async def put(self, key: str, data: Any) -> None:
            if key.endswith(".webp"):
                raise StorageFailed("no")
            await super().put(key, data)

    async with start_backend(storage=NoThumbnails(settings)) as backend:
        content = await backend.generate(width=1024, height=1024)

    assert content["status"] == "succeeded"
    assert content["images"][0]["thumbnail_url"] is None


async def test_the_sweep_knows_a_thumbnail_from_a_leftover(
    backend: Backend, settings: Settings
) -> None:
    await backend.generate(width=1024, height=1024)
    services = backend.app.state.services
    (thumbnail,) = [path for path in objects(settings) if path.suffix == ".webp"]
    leftover = thumbnail.with_name("1-0-leftover.webp")
    leftover.write_bytes(b"of a process that died")

    swept = await sweep(services.database, services.storage, -60)

    assert swept.removed == 1
    assert thumbnail.exists()
    assert not leftover.exists()
