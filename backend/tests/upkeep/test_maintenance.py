"""What is removed for its age, what a sweep takes and leaves, and the figures about both."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.core.errors import StorageFailed
from app.services.storage import LocalStorage
from app.services.upkeep.retention import remove_old
from app.services.upkeep.sweep import Swept, sweep
from sdxl_contract.prices import USD_PER_SECOND
from testkit.backend import Backend, StartBackend
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

DAY = 86400.0
USUAL_USD = 10 * USD_PER_SECOND["L4"]


def parts(backend: Backend) -> tuple[Any, LocalStorage]:
    services = backend.app.state.services
    assert isinstance(services.storage, LocalStorage)
    return services.database, services.storage


async def age(backend: Backend, content_id: str, days: float) -> None:
    """Make a content, its pictures' rows and its files so old."""
    database, storage = parts(backend)
    async with database.session() as session:
        for statement in (
            "UPDATE generation SET finished_at = finished_at - make_interval(secs => :s) "
            "WHERE id = :id",
            "UPDATE content_piece SET created_at = created_at - make_interval(secs => :s) "
            "WHERE generation_id = :id",
        ):
            await session.execute(text(statement), {"s": days * DAY, "id": content_id})
    for file in (storage.root / "owners/local/images" / content_id).iterdir():
        make_old(file, days)


def make_old(file: Path, days: float = 2) -> None:
    moment = time.time() - days * DAY
    os.utime(file, (moment, moment))


def metric(text: str, name: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


async def test_old_contents_go_with_their_pictures_and_the_rest_stays(backend: Backend) -> None:
    old, young = await backend.generate(num_images=2), await backend.generate()
    await age(backend, old["id"], 8)
    await age(backend, young["id"], 6)
    database, storage = parts(backend)
    assert await remove_old(database, storage, None) == 0
    assert await remove_old(database, storage, 7) == 1
    left = (await backend.http.get("/api/v1/content")).json()["items"]
    assert [content["id"] for content in left] == [young["id"]]
    assert (await backend.http.get(left[0]["image_url"])).status_code == 200
    assert (await backend.http.get(old["image_url"])).status_code == 404
    assert await sweep(database, storage, DAY) == Swept(objects=2)


async def test_what_has_not_ended_is_never_too_old(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    inference.gate.clear()
    async with start_backend() as backend:
        content = await backend.generate(expected=202, headers={"Prefer": "respond-async"})
        database, storage = parts(backend)
        async with database.session() as session:
            await session.execute(
                text("UPDATE generation SET created_at = created_at - interval '99 days'")
            )
        assert await remove_old(database, storage, 1) == 0
        assert (await backend.http.get(f"/api/v1/content/{content['id']}")).status_code == 200
        inference.gate.set()


async def test_an_old_batch_goes_once_it_is_empty(backend: Backend) -> None:
    answer = await backend.http.post("/api/v1/content/batch", json={"prompts": ["a"]})
    [content_id], place = answer.json()["content_ids"], answer.headers["location"]
    for _ in range(1000):
        if (await backend.http.get(place)).json()["succeeded"]:
            break
        await asyncio.sleep(0.05)
    database, storage = parts(backend)
    async with database.session() as session:
        await session.execute(text("UPDATE batch SET created_at = created_at - interval '9 days'"))
    await remove_old(database, storage, 7)
    assert (await backend.http.get(place)).status_code == 200
    await age(backend, content_id, 8)
    await remove_old(database, storage, 7)
    assert (await backend.http.get(place)).status_code == 404


async def test_a_sweep_takes_only_old_objects_that_no_row_names(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora())
    content = await backend.generate()
    await age(backend, content["id"], 2)
    database, storage = parts(backend)
    folder = f"owners/local/images/{uuid.uuid4()}"
    keys = {
        "old orphan": f"{folder}/1-0-aaaaaaaa.png",
        "fresh orphan": f"{folder}/1-1-bbbbbbbb.png",
        "old LoRA orphan": f"owners/other/loras/{'0' * 64}.safetensors",
        "somebody else's": "owners/readme.txt",
        "elsewhere": "backups/yesterday.dump",
    }
    for key in keys.values():
        await storage.put(key, b"x")
    for name, key in keys.items():
        if name != "fresh orphan":
            make_old(storage.path(key))
    # Names that no key of ours has: a store's own scraps, or a person's upload.
    foreign = [storage.root / folder / name for name in (".tmp.0f3a", "my photo.png")]
    for file in foreign:
        file.write_bytes(b"x")
        make_old(file)
    make_old(storage.path(f"owners/local/loras/{lora['sha256']}.safetensors"))
    half, fresh_half = storage.root / ".incoming/half", storage.root / ".incoming/fresh"
    half.write_bytes(b"x")
    fresh_half.write_bytes(b"x")
    make_old(half)
    swept = await sweep(database, storage, DAY)
    assert swept == Swept(objects=6, removed=2)  # a picture and its thumbnail
    left = {name for name, key in keys.items() if await storage.exists(key)}
    assert left == {"fresh orphan", "somebody else's", "elsewhere"}
    assert all(file.exists() for file in foreign)
    assert (half.exists(), fresh_half.exists()) == (False, True)
    assert (await backend.http.get(content["image_url"])).status_code == 200
    await backend.generate(loras=[{"lora_model_id": lora["id"]}])


async def test_rows_whose_object_is_gone_are_counted_and_kept(backend: Backend) -> None:
    gone, there, fresh = [await backend.generate() for _ in range(3)]
    database, storage = parts(backend)
    for content in (gone, there):
        await age(backend, content["id"], 2)
    for content in (gone, fresh):
        [file] = (storage.root / "owners/local/images" / content["id"]).glob("*.png")
        file.unlink()
    swept = await sweep(database, storage, DAY)
    assert (swept.removed, swept.missing_objects) == (0, 1)
    assert gone["id"] in swept.missing[0]
    [thumbnail] = (storage.root / "owners/local/images" / there["id"]).glob("*.webp")
    thumbnail.unlink()
    swept = await sweep(database, storage, DAY)
    # In the order of the rows' ids, which are random.
    assert sorted(key.rpartition(".")[2] for key in swept.missing) == ["png", "webp"]
    assert swept.missing_objects == 2
    assert len((await backend.http.get("/api/v1/content")).json()["items"]) == 3


async def test_a_deletion_succeeds_where_the_store_is_away_and_the_sweep_ends_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_key: str) -> None:
        raise StorageFailed("The object store did not take or give the file.")

    content = await backend.generate()
    database, storage = parts(backend)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", away)
        place = f"/api/v1/content/{content['id']}"
        assert (await backend.http.delete(place)).status_code == 204
        assert (await backend.http.get(place)).status_code == 404
    folder = storage.root / "owners/local/images" / content["id"]
    for file in folder.iterdir():
        make_old(file)
    assert (await sweep(database, storage, DAY)).removed == 2
    assert list(folder.iterdir()) == []


def runs(shown: str, chore: str, outcome: str = "succeeded") -> float:
    """How often a chore ran. Its own time of the day may come in the middle of a test, too."""
    start = f'chore_runs_total{{chore="{chore}",outcome="{outcome}"}} '
    found = [line.removeprefix(start) for line in shown.splitlines() if line.startswith(start)]
    return float(found[0]) if found else 0.0


async def test_the_periodic_tasks_run_as_jobs_and_are_counted(start_backend: StartBackend) -> None:
    async with start_backend(retention_days=7, metrics_refresh_seconds=0.2) as backend:
        content = await backend.generate()
        await age(backend, content["id"], 8)
        queue = backend.app.state.services.queue
        for name in ("remove_old_contents", "sweep_storage"):
            await queue._app.tasks[name].defer_async(timestamp=0)
        for _ in range(1000):
            shown = (await backend.http.get("/metrics")).text
            if runs(shown, "remove_old_contents") and runs(shown, "sweep_storage"):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(shown)
        assert metric(shown, "retention_removed_total") == 1
        assert metric(shown, "sweep_missing_objects") == 0
        assert 'chore_succeeded_timestamp_seconds{chore="sweep_storage"} 1.' in shown
        assert (await backend.http.get("/api/v1/content")).json()["items"] == []


async def test_a_chore_that_fails_is_counted_and_breaks_nothing(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StorageFailed("away")

    monkeypatch.setattr("app.services.upkeep.chores.sweep", fail)
    async with start_backend() as backend:
        await backend.app.state.services.queue._app.tasks["sweep_storage"].defer_async(timestamp=0)
        for _ in range(1000):
            shown = (await backend.http.get("/metrics")).text
            if runs(shown, "sweep_storage", "failed"):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(shown)
        await backend.generate()


async def test_metrics_tell_the_queue_and_raise_the_cost_alert(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend(
        daily_alert_usd=1.5 * USUAL_USD, max_open_contents=2, job_concurrency=1
    ) as backend:
        services, metrics = backend.app.state.services, backend.app.state.metrics
        await backend.generate()
        await metrics.look(services.database)
        shown = (await backend.http.get("/metrics")).text
        assert metric(shown, "cost_today_usd") == pytest.approx(USUAL_USD)
        assert metric(shown, "cost_alert") == 0
        await backend.generate()
        inference.gate.clear()
        later = {"Prefer": "respond-async"}
        await backend.generate(expected=202, headers=later)
        while len(inference.requests) < 3:
            await asyncio.sleep(0.02)
        await backend.generate(expected=202, headers=later)
        await backend.generate(expected=429)
        await metrics.look(services.database)
        shown = (await backend.http.get("/metrics")).text
        assert metric(shown, "cost_alert") == 1
        assert metric(shown, "cost_alert_threshold_usd") == pytest.approx(1.5 * USUAL_USD)
        assert metric(shown, 'contents_open{status="queued"}') == 1
        assert metric(shown, 'contents_open{status="running"}') == 1
        assert metric(shown, "content_oldest_queued_seconds") > 0
        assert metric(shown, 'limit_refusals_total{error_code="RATE_LIMITED"}') == 1
        inference.gate.set()
