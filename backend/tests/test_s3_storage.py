"""S3 storage against a server that checks signatures and their expiry."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.core.errors import StorageFailed
from app.core.settings import load_settings
from app.services.storage import S3Storage, build_storage
from app.services.upkeep.sweep import sweep
from testkit.backend import StartBackend
from testkit.processes import s3_server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def storage(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    built = build_storage(load_settings())
    assert isinstance(built, S3Storage)
    return built


async def test_what_is_put_can_be_fetched_by_its_signed_url_only(storage: S3Storage) -> None:
    await storage.put("owners/a/x.png", b"picture")
    await storage.put("owners/a/y.safetensors", io.BytesIO(b"l" * 100_000))
    url = storage.sign_get("owners/a/x.png", 60)
    async with httpx2.AsyncClient() as http:
        assert (await http.get(url)).content == b"picture"
        large = await http.get(storage.sign_get("owners/a/y.safetensors", 60))
        assert len(large.content) == 100_000
        assert (await http.get(url.split("?")[0])).status_code == 403
        assert (await http.get(url.replace("x.png", "y.safetensors"))).status_code == 403
        assert (await http.put(url, content=b"other")).status_code == 403
        place = url.index("X-Amz-Signature=") + 20
        changed = url[:place] + ("0" if url[place] != "0" else "1") + url[place + 1 :]
        assert (await http.get(changed)).status_code == 403


async def test_a_signed_url_expires(storage: S3Storage) -> None:
    await storage.put("owners/a/x.png", b"picture")
    url = storage.sign_get("owners/a/x.png", 1)
    await asyncio.sleep(2.2)
    async with httpx2.AsyncClient() as http:
        assert (await http.get(url)).status_code == 403


async def test_what_is_deleted_is_gone(storage: S3Storage) -> None:
    await storage.put("owners/a/z.png", b"picture")
    assert await storage.exists("owners/a/z.png")
    await storage.delete("owners/a/z.png")
    await storage.delete("owners/a/z.png")
    assert not await storage.exists("owners/a/z.png")


async def test_a_folder_s_keys_are_those_right_below_it(storage: S3Storage) -> None:
    for key in ("owners/b/one/1-0.png", "owners/b/one/1-1.png", "owners/b/one-more/2-0.png"):
        await storage.put(key, b"picture")
    assert sorted(await storage.keys("owners/b/one")) == [
        "owners/b/one/1-0.png",
        "owners/b/one/1-1.png",
    ]
    assert await storage.keys("owners/b/none") == []


async def test_a_sweep_lists_the_whole_bucket_and_takes_only_orphans(
    storage: S3Storage, start_backend: StartBackend
) -> None:
    async with start_backend(storage=storage) as backend:
        content = await backend.generate()
        orphan = "owners/local/images/nobody/1-0-aaaaaaaa.png"
        await storage.put(orphan, b"picture")
        await storage.put("backups/x", b"not ours")
        database = backend.app.state.services.database
        assert (await sweep(database, storage, 60)).removed == 0
        assert await storage.exists(orphan)
        assert (await sweep(database, storage, -60)).removed >= 1
        assert not await storage.exists(orphan)
        assert await storage.exists("backups/x")
        again = await sweep(database, storage, -60)
        # The picture and its thumbnail.
        assert (again.objects, again.removed, again.missing_objects) == (2, 0, 0)
    async with httpx2.AsyncClient() as http:
        assert (await http.get(content["image_url"])).status_code == 200


async def test_a_wrong_key_is_a_storage_error_that_tells_nothing(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3 | {"R2_SECRET_ACCESS_KEY": "wrong"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageFailed) as caught:
        await build_storage(load_settings()).put("owners/a/x.png", b"picture")
    assert s3["R2_ENDPOINT_URL"] not in caught.value.message


async def test_public_images_have_plain_urls_and_loras_never(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2_PUBLIC_URL", "https://pictures.example/")
    public = build_storage(load_settings())
    assert public.image_url("a/b.png", 60) == "https://pictures.example/a/b.png"
    assert "X-Amz-Signature=" in public.sign_get("a/b.safetensors", 60)


async def test_pictures_go_to_the_bucket(storage: S3Storage, start_backend: StartBackend) -> None:
    async with start_backend(storage=storage) as backend:
        content = await backend.generate()
        assert (await backend.http.get("/files/x")).status_code == 404
    async with httpx2.AsyncClient() as http:
        assert (await http.get(content["image_url"])).content[:4] == b"\x89PNG"


@pytest.mark.parametrize("missing", ["R2_ENDPOINT_URL", "R2_ACCESS_KEY_ID"])
def test_half_a_bucket_is_refused(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, "" if name == missing else value)
    with pytest.raises(ValueError, match=missing):
        load_settings()


def test_a_data_folder_is_the_default(tmp_path: Path) -> None:
    assert not isinstance(build_storage(load_settings(data_dir=tmp_path)), S3Storage)
