"""Small copies of pictures: made, shown, and gone with their picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.core.errors import StorageFailed
from app.core.settings import Settings
from app.services.contents.storing import make_thumbnail
from app.services.storage import LocalStorage
from app.services.upkeep.sweep import sweep
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
