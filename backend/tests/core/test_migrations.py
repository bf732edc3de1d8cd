"""Upgrades without downtime: versions side by side on one schema."""

from __future__ import annotations

import asyncio
import sys
import uuid

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import URL, text

from app.core.db import Database, migrate
from app.core.security import key_digest
from app.core.settings import Settings
from app.services.storage import LocalStorage
from testkit.backend import CONTENT, StartBackend, ended
from testkit.processes import BACKEND


async def test_a_version_runs_on_a_schema_that_a_later_one_has_migrated(
    start_backend: StartBackend, database_url: URL
) -> None:
    database = Database(database_url)
    async with database.session() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await session.execute(text("ALTER TABLE generation ADD COLUMN from_later text"))
    await asyncio.to_thread(migrate, database_url)
    async with start_backend() as backend:
        assert (await backend.generate())["status"] == "succeeded"
    async with database.session() as session:
        assert await session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    await database.close()


async def test_versions_that_start_together_migrate_once(database_url: URL) -> None:
    database = Database(database_url)
    async with database.session() as session:
        await session.execute(text("DROP SCHEMA public CASCADE"))
        await session.execute(text("CREATE SCHEMA public"))
    plain = database_url.render_as_string(hide_password=False)
    code = "import sys; from app.core.db import migrate, make_url; migrate(make_url(sys.argv[1]))"
    together = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", code, plain, cwd=BACKEND)
        for _ in range(2)
    ]
    assert [await process.wait() for process in together] == [0, 0]
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM alembic_version")) == 1
        assert await session.scalar(text("SELECT count(*) FROM generation")) == 0
    await database.close()


FIRST = """
INSERT INTO api_key (id, owner, name, key_sha256) VALUES (%(key)s, 'ann', 'first', %(digest)s);
INSERT INTO batch (id, owner, total, request) VALUES (%(batch)s, 'ann', 2, '{"prompts": ["x"]}');
INSERT INTO lora_model (id, owner, name, description, tags, sha256, size_bytes, object_key,
  base_model, algorithm, format, rank, modules, text_encoder, trigger_words, strays,
  parameter_count, dtype, file_metadata)
  VALUES (%(lora)s, 'ann', 'Ink', '', '["a"]', %(sha)s, 10, %(object)s, 'SDXL', 'lora', 'kohya',
  4, 1, false, '["ink"]', '[]', 10, 'F16', '{}');
INSERT INTO avatar (id, owner, name, base_prompt, negative_prompt, lora_model_id, lora_scale,
  updated_at) VALUES (%(avatar)s, 'ann', 'Ann', 'a woman', '', %(lora)s, 0.9, now());
INSERT INTO generation (id, owner, status, attempt, avatar_id, batch_id, prompt, negative_prompt,
  parameters, loras, request_sha256, idempotency_key, timings, cost_usd, cost_gpu, cost_seconds,
  finished_at)
  VALUES (%(done)s, 'ann', 'succeeded', 1, %(avatar)s, %(batch)s, 'a woman, smiling', '',
  %(parameters)s, %(uses)s, 'x', 'k1', '{"denoise": 1.5}', 0.01, 'L4', 2.0, now());
INSERT INTO content_piece (id, generation_id, position, object_key, seed, width, height, sha256,
  size_bytes, media_type) VALUES (%(image)s, %(done)s, 0, 'owners/ann/images/1/1-0.png', 7, 512,
  512, %(sha)s, 3, 'image/png');
INSERT INTO generation_event (generation_id, type, data) VALUES (%(done)s, 'succeeded', '{}');
INSERT INTO generation (id, owner, status, attempt, batch_id, prompt, negative_prompt, parameters,
  loras, request_sha256) VALUES (%(waiting)s, 'ann', 'queued', 0, %(batch)s, 'waits', '',
  %(parameters)s, '[]', 'y');
"""


async def test_an_upgrade_keeps_what_the_first_version_wrote_and_draws_what_waited(
    start_backend: StartBackend, database_url: URL, settings: Settings
) -> None:
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    key = "sdxl_of_the_first_version"
    names = ("key", "batch", "lora", "avatar", "done", "image", "waiting")
    ids = {name: str(uuid.uuid4()) for name in names}
    sha = "a" * 64
    values = {
        **ids,
        "digest": key_digest(key),
        "sha": sha,
        "object": f"owners/ann/loras/{sha}.safetensors",
        "parameters": Jsonb(
            {"width": 512, "height": 512, "steps": 2, "cfg": 5.0, "seed": 7, "num_images": 1}
        ),
        "uses": Jsonb([{"lora_model_id": ids["lora"], "sha256": sha, "scale": 0.9, "name": "Ink"}]),
    }
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        await asyncio.to_thread(migrate, database_url, "0001")
        for statement in FIRST.split(";\n"):
            connection.execute(statement.encode(), values if "%(" in statement else None)
    await LocalStorage(settings).put("owners/ann/images/1/1-0.png", b"old")
    await asyncio.to_thread(migrate, database_url)
    async with start_backend() as backend:
        backend.http.headers["Authorization"] = f"Bearer {key}"
        done = (await backend.http.get(f"/api/v1/content/{ids['done']}")).json()
        assert (done["status"], done["prompt"]) == ("succeeded", "a woman, smiling")
        assert (done["cost"]["usd"], done["timings"]) == (0.01, {"denoise": 1.5})
        assert (await backend.http.get(done["image_url"])).content == b"old"
        waited = await ended(backend, ids["waiting"])
        assert waited["status"] == "succeeded"
        assert waited["parameters"]["seed"] == 7
        lora = (await backend.http.get(f"/api/v1/loras/models/{ids['lora']}")).json()
        assert (lora["name"], lora["trigger_words"]) == ("Ink", ["ink"])
        avatar = (await backend.http.get(f"/api/v1/identities/avatars/{ids['avatar']}")).json()
        assert avatar["lora_model_id"] == ids["lora"]
        batch = (await backend.http.get(f"/api/v1/content/batch/{ids['batch']}")).json()
        assert (batch["total"], batch["succeeded"]) == (2, 2)
        assert (await backend.http.get("/api/v1/costs/summary")).status_code == 200
        assert (await backend.http.post(f"/api/v1/content/{ids['done']}/replay")).status_code < 500


async def test_a_database_with_contents_is_upgraded_and_they_go_on(
    start_backend: StartBackend, database_url: URL
) -> None:
    """As it was before contents waited: every value chosen, one row open and one ended."""
    database = Database(database_url)
    async with database.session() as session:
        await session.execute(text("DROP SCHEMA public CASCADE"))
        await session.execute(text("CREATE SCHEMA public"))
    await asyncio.to_thread(migrate, database_url, "0010")
    async with database.session() as session:
        for number, status in enumerate(("queued", "succeeded")):
            await session.execute(
                text(
                    "INSERT INTO generation (id, owner, status, attempt, prompt, negative_prompt, "
                    "parameters, loras, request_sha256, finished_at) VALUES (:id, 'local', "
                    ":status, :attempt, 'old', '', :parameters, '[]', 'x', "
                    "CASE WHEN :attempt = 1 THEN now() END)"
                ),
                {
                    "id": uuid.UUID(int=number),
                    "status": status,
                    "attempt": number,
                    "parameters": '{"width": 512, "height": 512, "steps": 20, "cfg": 5.0, '
                    '"seed": 7, "num_images": 1}',
                },
            )
    await database.close()
    await asyncio.to_thread(migrate, database_url)
    async with start_backend() as backend:
        waiting = await ended(backend, str(uuid.UUID(int=0)))
        assert waiting["status"] == "succeeded"
        assert (waiting["parameters"]["width"], waiting["parameters"]["seed"]) == (512, 7)
        events = (await backend.http.get(f"{CONTENT}/{uuid.UUID(int=0)}/events")).text
        kinds = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
        assert kinds == ["queued", "started", "succeeded"]
        again = await backend.http.post(f"{CONTENT}/{uuid.UUID(int=1)}/replay")
        done = await ended(backend, again.json()["id"])
        assert done["images"][0]["sha256"] == waiting["images"][0]["sha256"]
