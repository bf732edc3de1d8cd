"""What a worker refuses or answers, seen as a content: its code, its row, and the next request.

Where the other bad inputs are shown:

| input | code | test |
|---|---|---|
| blank prompt; size 511, 1537, 700; steps 0; cfg 0.5 | INVALID_PROMPT, INVALID_REQUEST |
  contents/test_content.py: test_a_wrong_field_is_named_with_what_would_be_right |
| scale 1.5 of an avatar | INVALID_REQUEST | test_loras.py: test_a_wrong_avatar_is_refused |
| at upload: LoRA for SD 1.5, truncated file, pickle named .safetensors | LORA_LOAD_FAILED |
  test_loras.py: test_what_is_no_sdxl_lora_is_refused |
| worker answers HTML, broken PNG, wrong size | GENERATION_FAILED |
  contents/test_bad_workers.py: test_the_row_says_why_and_the_next_content_works |
| no disk space | STORAGE_FAILED |
  test_loras.py: test_a_full_disk_fails_the_job_or_the_upload_and_nothing_else |
| no database | DATABASE_UNAVAILABLE |
  contents/test_jobs.py: test_a_lost_database_is_a_503_and_comes_back |

Here: the next request after a refusal at the door, the same LoRA files and URLs refused by the
worker, and a worker that is really down, over real HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.services.lora_inference import LoraInference
from app.services.modal_sdxl_lora_client import ModalSdxlLoraClient
from app.services.worker.retry import RetryPolicy
from sdxl_contract.errors import ContractError, LoraDownloadFailed, LoraLoadFailed
from testkit.backend import Backend, StartBackend, ended
from testkit.doubles.modal_edge_double import ModalEdgeDouble, Run
from testkit.loras.plain_bytes import kohya_lora, sd15_lora

SMALL = {"width": 512, "height": 512, "steps": 20}


def inference_of(url: str) -> LoraInference:
    policy = RetryPolicy(2, 0.001)
    return LoraInference(ModalSdxlLoraClient(url, policy=policy, poll_s=0.005))


async def row_of(backend: Backend, content: dict[str, Any]) -> dict[str, Any]:
    """The content as it is kept, not as it was first answered."""
    kept: dict[str, Any] = (await backend.http.get(f"/api/v1/content/{content['id']}")).json()
    return kept


def download(reason: str) -> LoraDownloadFailed:
    return LoraDownloadFailed(
        f"the LoRA could not be fetched: {reason}", details={"reason": reason}
    )


@pytest.mark.parametrize(
    ("error", "posts", "says"),
    [
        (LoraLoadFailed("the file seems to be a LoRA for SD 1.5"), 1, "SD 1.5"),
        (LoraLoadFailed("the file is truncated"), 1, "truncated"),
        (LoraLoadFailed("the file seems to be a pickle"), 1, "pickle"),
        (download("refused_address"), 1, "refused_address"),
        (download("refused_scheme"), 1, "refused_scheme"),
        (download("hash_mismatch"), 1, "hash_mismatch"),
        (download("expired"), 2, "expired"),
    ],
    ids=lambda value: value.message if isinstance(value, ContractError) else None,
)
async def test_what_the_worker_refuses_fails_the_row_and_not_the_next_one(
    start_backend: StartBackend, error: ContractError, posts: int, says: str
) -> None:
    async with (
        ModalEdgeDouble() as edge,
        start_backend(inference=inference_of(edge.url)) as backend,
    ):
        edge.plan(*[Run(says=error)] * posts)
        lora = await backend.upload(kohya_lora())
        asked: dict[str, Any] = SMALL | {"loras": [{"lora_model_id": lora["id"]}]}
        content = await backend.generate(**asked)
        kept = await row_of(backend, content)
        assert (kept["status"], kept["error"]["code"]) == ("failed", error.code.value)
        assert says in kept["error"]["message"]
        assert kept["finished_at"] is not None
        assert kept["images"] == []
        assert len(edge.posts) == posts
        assert "signature=" in edge.posts[0].json()["loras"][0]["url"]
        assert (await backend.generate(**asked))["status"] == "succeeded"


async def test_an_expired_url_is_signed_anew_and_the_content_succeeds(
    start_backend: StartBackend,
) -> None:
    async with (
        ModalEdgeDouble() as edge,
        start_backend(inference=inference_of(edge.url)) as backend,
    ):
        edge.plan(Run(says=download("expired")))
        lora = await backend.upload(kohya_lora())
        content = await backend.generate(**SMALL, loras=[{"lora_model_id": lora["id"]}])
        assert content["status"] == "succeeded"
        assert len(edge.posts) == 2


async def test_a_worker_that_is_down_is_waited_for(
    start_backend: StartBackend,
) -> None:
    async with ModalEdgeDouble() as edge:
        inference = inference_of(edge.url)
    async with start_backend(inference=inference) as backend:
        asked = await backend.generate(expected=202, headers={"Prefer": "wait=1"}, **SMALL)
        assert (asked["status"], asked["error"]) == ("queued", None)
        while not asked["waiting_for"]:
            await asyncio.sleep(0.05)
            asked = (await backend.http.get(f"/api/v1/content/{asked['id']}")).json()
        assert asked["waiting_for"]["reason"] == "worker_unreachable"
        async with ModalEdgeDouble() as up:
            inference._primary = inference_of(up.url)._primary
            assert (await ended(backend, asked["id"]))["status"] == "succeeded"


async def test_a_refusal_at_the_door_leaves_no_row_and_the_next_request_works(
    backend: Backend,
) -> None:
    refused: list[tuple[int, dict[str, Any]]] = [
        (400, {"prompt": " "}),
        (422, {"width": 511}),
        (422, {"height": 1537}),
        (422, {"width": 700}),
        (422, {"steps": 0}),
        (422, {"cfg": 0.5}),
    ]
    for status, body in refused:
        await backend.generate(expected=status, **body)
    assert (await backend.http.get("/api/v1/content")).json()["items"] == []
    for data in (sd15_lora(), kohya_lora()[:-100], b"\x80\x04\x95pickle"):
        await backend.upload(data, expected=422)
    avatar = {"name": "a", "base_prompt": "a", "lora_scale": 1.5}
    answer = await backend.http.post("/api/v1/identities/avatars", json=avatar)
    assert (answer.status_code, answer.json()["field"]) == (422, "lora_scale")
    assert (await backend.generate(**SMALL))["status"] == "succeeded"
