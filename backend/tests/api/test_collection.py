"""Stars, boards, the bin, search, covers and links for others, over HTTP."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, text

from app.core.db import Database
from app.services.storage import LocalStorage
from app.services.upkeep.retention import remove_old
from testkit.backend import CONTENT, Backend, StartBackend, add_key, ended
from testkit.doubles.inference_double import InferenceDouble
from testkit.loras.plain_bytes import kohya_lora

API = "/api/v1"
NOWHERE = str(uuid.uuid4())


async def found(backend: Backend, **query: Any) -> list[str]:
    """The ids that a filtered list holds."""
    answer = await backend.http.get(CONTENT, params=query)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["items"]]


async def post(backend: Backend, path: str, body: dict[str, Any], expected: int = 204) -> Any:
    answer = await backend.http.post(f"{API}{path}", json=body)
    assert answer.status_code == expected, answer.text
    return answer.json() if answer.content else None


def image_ids(content: dict[str, Any]) -> list[str]:
    return [image["id"] for image in content["images"]]


async def test_words_of_the_prompt_find_contents_by_their_beginnings(backend: Backend) -> None:
    fox = await backend.generate(prompt="A red fox in the snow, masterpiece")
    boat = await backend.generate(prompt="a boat on Snowdon's lake")

    assert await found(backend, q="snow") == [boat["id"], fox["id"]]
    assert await found(backend, q="FOX mast") == [fox["id"]]
    assert await found(backend, q="fox boat") == []
    # Nothing that a person types is an operator, and signs alone narrow nothing down.
    assert await found(backend, q="fox & ! | ( :* 'snow'") == [fox["id"]]
    assert await found(backend, q="&|!") == [boat["id"], fox["id"]]
    assert (await backend.http.get(CONTENT, params={"q": "x" * 201})).status_code == 422


async def test_a_list_is_narrowed_down_by_lora_date_and_star_together(backend: Backend) -> None:
    lora = await backend.upload(kohya_lora())
    plain = await backend.generate(prompt="plain")
    inked = await backend.generate(prompt="inked", loras=[{"lora_model_id": lora["id"]}])
    await post(backend, "/content/star", {"image_ids": image_ids(inked), "starred": True})
    now = datetime.now(UTC)

    assert await found(backend, lora_model_id=lora["id"]) == [inked["id"]]
    assert await found(backend, starred=True) == [inked["id"]]
    assert await found(backend, created_from=(now + timedelta(hours=1)).isoformat()) == []
    assert await found(backend, created_until=now.isoformat()) == [inked["id"], plain["id"]]
    assert await found(backend, starred=True, q="plain") == []
    shown = (await backend.http.get(f"{CONTENT}/{inked['id']}")).json()
    assert [image["starred"] for image in shown["images"]] == [True]
    await post(backend, "/content/star", {"image_ids": image_ids(inked), "starred": False})
    assert await found(backend, starred=True) == []
    no_zone = await backend.http.get(CONTENT, params={"created_from": "2026-01-01T00:00:00"})
    assert no_zone.status_code == 422


async def test_a_binned_picture_is_gone_from_lists_until_it_is_restored(backend: Backend) -> None:
    content = await backend.generate(num_images=2)
    first, second = image_ids(content)
    await post(backend, "/content/bin", {"image_ids": [first]})

    shown = (await backend.http.get(f"{CONTENT}/{content['id']}")).json()
    assert image_ids(shown) == [second]
    assert [image["position"] for image in shown["images"]] == [1]
    binned = (await backend.http.get(CONTENT, params={"deleted": True})).json()["items"]
    assert [image_ids(one) for one in binned] == [[first]]
    # With its last picture the content goes, too.
    await post(backend, "/content/bin", {"image_ids": [second]})
    assert await found(backend) == []
    assert (await backend.http.get(f"{CONTENT}/{content['id']}")).json()["deleted_at"]
    restored = await post(backend, "/content/restore", {"content_ids": [content["id"]]}, 200)
    assert [image_ids(one) for one in restored["items"]] == [[first, second]]
    assert await found(backend) == [content["id"]]
    assert await found(backend, deleted=True) == []


async def test_the_bin_is_emptied_after_its_days_and_nothing_else_goes(backend: Backend) -> None:
    services = backend.app.state.services
    assert isinstance(services.storage, LocalStorage)
    whole, half, kept = [await backend.generate(num_images=2) for _ in range(3)]
    await post(
        backend,
        "/content/bin",
        {"content_ids": [whole["id"]], "image_ids": [image_ids(half)[0]]},
    )
    assert await remove_old(services.database, services.storage, None, bin_days=1) == 0
    async with services.database.session() as session:
        for table in ("generation", "content_piece"):
            await session.execute(
                text(f"UPDATE {table} SET deleted_at = deleted_at - '2 days'::interval")
            )

    assert await remove_old(services.database, services.storage, None, bin_days=None) == 0
    assert await remove_old(services.database, services.storage, None, bin_days=1) == 2
    assert (await backend.http.get(f"{CONTENT}/{whole['id']}")).status_code == 404
    left = (await backend.http.get(f"{CONTENT}/{half['id']}")).json()
    assert image_ids(left) == image_ids(half)[1:]
    assert await found(backend) == [kept["id"], half["id"]]
    files = list(services.storage.root.rglob("*.png"))
    assert len(files) == 3


async def test_boards_gather_pictures_and_leave_them_when_they_go(backend: Backend) -> None:
    content = await backend.generate(num_images=2)
    first, second = image_ids(content)
    board = await post(backend, "/boards", {"name": " Foxes "}, 201)
    assert board["name"] == "Foxes"
    await post(backend, f"/boards/{board['id']}/images", {"add": [first, second, first]})
    await post(backend, f"/boards/{board['id']}/images", {"add": [first], "remove": [second]})

    listed = (await backend.http.get(f"{API}/boards")).json()["items"]
    assert [(one["name"], one["images"]) for one in listed] == [("Foxes", 1)]
    assert await found(backend, board_id=board["id"]) == [content["id"]]
    again = await backend.http.post(f"{API}/boards", json={"name": "Foxes"})
    assert (again.status_code, again.json()["details"]["reason"]) == (409, "name_taken")
    url = f"{API}/boards/{board['id']}"
    assert (await backend.http.patch(url, json={"name": "Birds"})).status_code == 204
    assert (await backend.http.delete(url)).status_code == 204
    assert (await backend.http.get(f"{API}/boards")).json()["items"] == []
    assert await found(backend) == [content["id"]]


async def test_what_a_person_says_of_a_lora_can_be_changed_and_its_file_cannot(
    backend: Backend,
) -> None:
    lora = await backend.upload(kohya_lora())
    picture = image_ids(await backend.generate())[0]
    url = f"{API}/loras/models/{lora['id']}"
    changes = {
        "name": "Ink, fine",
        "description": "for portraits",
        "tags": ["ink", " ink ", "fine"],
        "trigger_words": ["inkstyle", "fine lines"],
        "default_scale": 0.7,
        "cover_image_id": picture,
    }
    changed = (await backend.http.patch(url, json=changes)).json()

    assert changed["cover_url"]
    assert changed == {
        **lora,
        **changes,
        "tags": ["ink", "fine"],
        "cover_url": changed["cover_url"],
    }
    assert (await backend.http.get(changed["cover_url"])).status_code == 200
    only_name = (await backend.http.patch(url, json={"name": "Ink"})).json()
    assert only_name["trigger_words"] == changes["trigger_words"]
    assert (await backend.http.patch(url, json={"rank": 4})).status_code == 422
    other = await backend.upload(kohya_lora(rank=2), name="Pencil")
    taken = await backend.http.patch(url, json={"name": other["name"]})
    assert (taken.status_code, taken.json()["details"]["reason"]) == (409, "name_taken")
    assert (await backend.http.patch(url, json={"cover_image_id": NOWHERE})).status_code == 404
    # A cover in the bin is not shown; a cover that is gone leaves none.
    await post(backend, "/content/bin", {"image_ids": [picture]})
    assert (await backend.http.get(url)).json()["cover_url"] is None


async def test_a_link_shows_one_picture_without_a_key_until_it_expires(
    backend: Backend, database_url: URL
) -> None:
    content = await backend.generate(prompt="a secret fox")
    picture = image_ids(content)[0]
    plain = await post(backend, "/shares", {"image_id": picture, "hours": 2}, 201)
    told = await post(backend, "/shares", {"image_id": picture, "with_prompt": True}, 201)
    await add_key(database_url, "somebody")
    shown = await backend.http.get(f"{API}/shared/{plain['token']}")

    assert shown.status_code == 200, shown.text
    assert shown.json()["prompt"] is None
    assert (await backend.http.get(shown.json()["url"])).content.startswith(b"\x89PNG")
    with_prompt = (await backend.http.get(f"{API}/shared/{told['token']}")).json()
    assert with_prompt["prompt"] == "a secret fox"
    assert (await backend.http.get(f"{API}/shared/{'x' * 43}")).status_code == 404
    assert (await backend.http.get(CONTENT)).status_code == 401
    services = backend.app.state.services
    async with services.database.session() as session:
        rows = (await session.execute(text("SELECT token_sha256 FROM share"))).scalars().all()
        assert plain["token"] not in rows
        await session.execute(text("UPDATE share SET expires_at = now() - '1 s'::interval"))
    assert (await backend.http.get(f"{API}/shared/{plain['token']}")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/content/star", {"image_ids": ["IMAGE"], "starred": True}),
        ("/content/bin", {"content_ids": ["CONTENT"]}),
        ("/content/bin", {"image_ids": ["IMAGE"]}),
        ("/content/restore", {"image_ids": ["IMAGE"]}),
        ("/boards/BOARD/images", {"add": ["IMAGE"]}),
        ("/shares", {"image_id": "IMAGE"}),
    ],
)
async def test_another_keys_pictures_are_not_there(
    start_backend: StartBackend, database_url: URL, path: str, body: dict[str, Any]
) -> None:
    owner, stranger = [await add_key(database_url, name) for name in ("owner", "stranger")]
    async with start_backend() as backend:
        content = await backend.generate(headers=owner)
        board = await backend.http.post(f"{API}/boards", json={"name": "b"}, headers=stranger)
        there = {
            "IMAGE": content["images"][0]["id"],
            "CONTENT": content["id"],
            "BOARD": board.json()["id"],
        }
        own = {
            name: [there.get(one, one) for one in value]
            if isinstance(value, list)
            else there.get(value, value)
            for name, value in body.items()
        }
        url = f"{API}{path.replace('BOARD', there['BOARD'])}"
        answer = await backend.http.post(url, json=own, headers=stranger)
        after = await backend.http.get(f"{CONTENT}/{content['id']}", headers=owner)

    assert answer.status_code == 404, answer.text
    assert after.json()["images"][0]["starred"] is False
    assert after.json()["deleted_at"] is None


@pytest.mark.slow
@pytest.mark.long
async def test_a_word_is_found_quickly_among_100_000_prompts(database_url: URL) -> None:
    """Rare and frequent words alike; the index is what makes it so (the control)."""
    database = Database(database_url)
    fill = """
        INSERT INTO generation (id, owner, status, attempt, prompt, negative_prompt, parameters,
            loras, request_sha256, created_at, finished_at)
        SELECT gen_random_uuid(), 'local', 'succeeded', 1,
            'a fox number n' || n || ', masterpiece, soft light, ' || md5(n::text)
            || CASE WHEN n = 77 THEN ' unicorn' ELSE '' END,
            '', '{}', '[]', '', now() - make_interval(secs => n), now()
        FROM generate_series(1, 100000) AS n
    """
    query = (
        "SELECT id FROM generation WHERE owner = 'local' AND deleted_at IS NULL AND "
        "prompt_search @@ to_tsquery('simple', :words) ORDER BY created_at DESC, id DESC LIMIT 101"
    )
    async with database.session() as session:
        await session.execute(text(fill))
        # What autovacuum does soon after.
        await session.execute(text("SELECT gin_clean_pending_list('ix_generation_prompt_search')"))
        await session.execute(text("ANALYZE generation"))

        async def rows_read(words: str) -> float:
            """How many rows of the table PostgreSQL says that it looked at."""
            explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
            [answer] = (await session.execute(explained, {"words": words})).scalar_one()
            nodes, looked_at = [answer["Plan"]], 0
            while nodes:
                node = nodes.pop()
                nodes += node.get("Plans", [])
                if "Relation Name" in node:
                    kinds = ("Actual Rows", "Rows Removed by Filter")
                    looked_at += sum(node.get(kind, 0) for kind in kinds) * node["Actual Loops"]
            return looked_at

        both = "'fox':* & 'n4242':*"
        # A prefix's rows are not known to PostgreSQL: for a rare one it goes by date, once through.
        for words, rows, most in (
            ("'unico':*", 1, 100_000),
            ("'fox':*", 101, 1000),
            (both, 1, 1000),
        ):
            found_rows = (await session.execute(text(query), {"words": words})).all()
            assert len(found_rows) >= rows
            assert await rows_read(words) <= most
        await session.execute(text("DROP INDEX ix_generation_prompt_search"))
        assert await rows_read(both) > 50_000
    await database.close()


async def test_a_batch_is_stopped_as_a_whole_and_asked_for_again(
    start_backend: StartBackend, inference: InferenceDouble
) -> None:
    async with start_backend(job_concurrency=1) as backend:
        inference.gate.clear()
        asked = {"prompts": ["one pear", "x" * 300], "count": 2, "steps": 7}
        batch = await post(backend, "/content/batch", asked, 202)
        url = f"{CONTENT}/batch/{batch['batch_id']}"
        listed = (await backend.http.get(url)).json()
        assert listed["prompts"] == ["one pear", "x" * 200]
        await backend.http.post(f"{url}/cancel")
        inference.gate.set()
        for content_id in batch["content_ids"]:
            await ended(backend, content_id)
        stopped = (await backend.http.get(url)).json()
        assert stopped["cancelled"] >= 3
        again = await post(backend, f"/content/batch/{batch['batch_id']}/repeat", {}, 202)
        contents = [await ended(backend, one) for one in again["content_ids"]]

    assert again["batch_id"] != batch["batch_id"]
    assert [content["prompt"] for content in contents] == ["one pear"] * 2 + ["x" * 300] * 2
    assert {content["parameters"]["steps"] for content in contents} == {7}
