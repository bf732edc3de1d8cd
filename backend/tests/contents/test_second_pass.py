"""A second pass: asked for, held against limits, kept and drawn again as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.repositories.contents import Usual
from app.services.contents.drafts import estimate
from app.services.worker.answer import check_size
from sdxl_contract.errors import GenerationFailed
from sdxl_contract.request import GenerateRequest
from sdxl_contract.result import GenerateResult, Metadata, ModelInfo
from testkit.backend import Backend, StartBackend, ended
from testkit.doubles.inference_double import InferenceDouble

HIRES = {
    "scale": 1.5, "steps": 10, "strength": 0.5, "prompt": "a pear", "scheduler": "Euler",
}  # fmt: skip


async def test_it_is_drawn_with_the_avatar_s_words_and_again_as_it_was(
    backend: Backend, inference: InferenceDouble
) -> None:
    avatar = await backend.http.post(
        "/api/v1/identities/avatars",
        json={"name": "Mia", "base_prompt": "mia, red hair", "negative_prompt": "blurred"},
    )
    content = await backend.generate(avatar_id=avatar.json()["id"], hires=HIRES, width=1024)
    first = inference.requests[-1]
    assert first.hires is not None
    assert (first.hires.prompt, first.hires.negative_prompt) == ("mia, red hair, a pear", None)
    assert (first.hires.scale, first.hires.steps, first.hires.scheduler) == (1.5, 10, "euler")
    shown = content["parameters"]
    assert (shown["width"], shown["height"]) == (1024, 1024)  # of the first pass
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (1536, 1536)
    answer = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    again = await ended(backend, answer.json()["id"])
    assert again["images"][0]["sha256"] == content["images"][0]["sha256"]
    assert inference.requests[-1].hires == first.hires


@pytest.mark.parametrize(
    ("hires", "field"),
    [
        ({"scale": 3}, "hires.scale"),
        ({"upscaler": "4x-magic"}, "hires.upscaler"),
        ({"scheduler": "heun"}, "hires.scheduler"),
        ({"prompt": "(a:x)"}, "hires.prompt"),
        ({"prompt": "a\x00"}, "hires.prompt"),
        ({"strength": 0.01}, "hires.strength"),
        ({"steps": True}, "hires.steps"),
    ],
)
async def test_what_is_wrong_is_refused_by_field(
    backend: Backend, hires: dict[str, Any], field: str
) -> None:
    body = await backend.generate(hires=hires, expected=400 if "(" in str(hires) else 422)
    assert body["field"] == field, body


async def test_a_forbidden_word_is_found_in_its_prompt(
    start_backend: StartBackend, tmp_path: Path
) -> None:
    (tmp_path / "words").write_text("pear\n")
    async with start_backend(prompt_blocklist_file=tmp_path / "words") as backend:
        answer = await backend.http.post(
            "/api/v1/content/generate", json={"prompt": "an apple", "hires": HIRES}
        )
    assert answer.status_code == 422
    assert answer.json()["field"] == "hires.prompt"


def test_the_estimate_counts_what_a_second_pass_a_size_and_more_steps_cost() -> None:
    usual = Usual(0.01)

    def usd(hires: dict[str, Any] | None, **more: Any) -> float:
        values = {"prompt": "x", "steps": 28, "hires": hires} | more
        found = estimate(GenerateRequest.model_validate(values), usual)
        assert found is not None
        return found

    assert usd(None, num_images=3) == pytest.approx(0.03)
    # At twice the sides a step takes 5.3 times as long.
    assert usd({"steps": 20}) == pytest.approx(0.01 * (1 + 20 * 5.28 / 28), rel=1e-2)
    assert usd({}, num_images=2) == pytest.approx(0.02 * (1 + 5.28), rel=1e-2)
    assert estimate(GenerateRequest(prompt="x"), None) is None
    # Four times the pixels and twice the steps of the usual picture; what is left open is as usual.
    usual = Usual(0.01, pixels=512 * 512, steps=14)
    assert usd(None, width=1024, height=1024) == pytest.approx(0.01 * 4 * 2)
    assert usd(None, num_images=3) == pytest.approx(0.01 * 3 * 2)
    assert estimate(GenerateRequest(prompt="x"), usual) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("size", "is_right"),
    [((1536, 1152), True), ((1528, 1152), True), ((1024, 768), False), ((2048, 1536), False),
     ((1536, 700), False)],
)  # fmt: skip
def test_a_picture_of_another_size_is_not_taken(size: tuple[int, int], is_right: bool) -> None:
    request = GenerateRequest.model_validate(
        {"prompt": "x", "width": 1024, "height": 768, "hires": {"scale": 1.5}}
    )
    result = GenerateResult(
        image_size=size, generation_time_seconds=1.0,
        model_info=ModelInfo(base_model="x", lora_applied=False),
        metadata=Metadata(seed_used=1, actual_steps=1, actual_cfg=1.0),
    )  # fmt: skip
    if is_right:
        check_size(size, result, request)
        return
    with pytest.raises(GenerationFailed, match="second pass"):
        check_size(size, result, request)
