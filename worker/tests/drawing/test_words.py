"""A1111's marks down to the picture: equal to what says the same without them, bit for bit."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import torch

from sdxl_contract.prompts.words import PromptSyntax, read_words
from sdxl_contract.request import GenerateRequest
from sdxl_worker.drawing.denoising import Denoising
from sdxl_worker.drawing.prompts import (
    Conditioning,
    conditioning_at_calls,
    encode_prompts,
    encode_words,
)
from sdxl_worker.run import Run
from testkit.worker import SIDE, RunningWorker, png_of

STEPS = 4
BASE = {"width": SIDE, "height": SIDE, "steps": STEPS, "seed": 5}


@pytest.fixture
def pipe(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready.model.pipe


def encoded(pipe: Any, prompt: str, negative: str = "", steps: int = STEPS) -> list[Conditioning]:
    sides = (
        read_words(prompt, PromptSyntax.A1111, steps),
        read_words(negative, PromptSyntax.A1111, steps, "negative_prompt"),
    )
    with torch.no_grad():
        return encode_words(pipe, sides)


def same(one: Conditioning, other: Conditioning) -> bool:
    return all(torch.equal(a, vars(other)[name]) for name, a in vars(one).items())


@torch.no_grad()
@pytest.mark.parametrize(
    ("marked", "weighted"),
    [
        ("a [red] apple", "a (red:0.909090909) apple"),
        ("a (red) apple", "a (red:1.1) apple"),
        ("a ((red)) apple", "a (red:1.21) apple"),
        ("a [(red)] apple", "a red apple"),
        (r"a \(red\) \[apple\]", "a (red) [apple]"),
    ],
)
def test_brackets_are_the_weights_they_stand_for(pipe: Any, marked: str, weighted: str) -> None:
    steps = encoded(pipe, marked, marked)
    assert all(one is steps[0] for one in steps)
    assert same(steps[0], encode_prompts(pipe, weighted, weighted))


@torch.no_grad()
def test_break_joins_windows_that_know_nothing_of_each_other(pipe: Any) -> None:
    found = encoded(pipe, "red apple BREAK white house")[0]
    rows = [
        pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for text in ("red apple", "white house")
    ]
    outputs = [
        encoder(torch.cat(rows), output_hidden_states=True)
        for encoder in (pipe.text_encoder, pipe.text_encoder_2)
    ]
    windows = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)

    assert torch.equal(found.prompt, windows.reshape(1, 154, -1))
    assert torch.equal(found.pooled, outputs[1][0][:1])
    assert found.negative_prompt.shape == found.prompt.shape


@torch.no_grad()
def test_clip_skip_is_diffusers_s(pipe: Any) -> None:
    sides = (
        read_words("a red apple", PromptSyntax.WEIGHTS, 1),
        read_words("blurry", PromptSyntax.WEIGHTS, 1),
    )
    for skip in (1, 2):
        expected = pipe.encode_prompt(
            "a red apple", device="cpu", do_classifier_free_guidance=True,
            negative_prompt="blurry", clip_skip=skip,
        )  # fmt: skip
        (found,) = encode_words(pipe, sides, None, skip)
        # diffusers, too, leaves the negative side as it is.
        for ours, theirs in zip(
            (found.prompt, found.negative_prompt, found.pooled, found.negative_pooled),
            expected,
            strict=True,
        ):
            assert torch.equal(ours, theirs)


def test_clip_skip_is_bounded_by_the_loaded_model_s_layers(client: httpx2.Client) -> None:
    allowed = client.get("/health").json()["limits"]["clip_skip_max"]
    assert allowed == 2
    most = drawn(client, prompt="apple", clip_skip=allowed)
    assert png_of(most).info["parameters"].endswith("Clip skip: 4")
    assert png_of(most).tobytes() != png_of(drawn(client, prompt="apple")).tobytes()
    answer = client.post(
        "/generate-image", json={**BASE, "prompt": "apple", "clip_skip": allowed + 1}
    )
    assert answer.status_code == 422
    assert answer.json()["details"] == {"field": "clip_skip", "maximum": allowed}


@torch.no_grad()
def test_each_text_is_encoded_once_and_swapped_at_its_step(pipe: Any) -> None:
    calls: list[int] = []

    def encode(number: int, ids: torch.Tensor, skip: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(number)
        output = (pipe.text_encoder, pipe.text_encoder_2)[number - 1](
            ids, output_hidden_states=True
        )
        return output.hidden_states[-2], output[0]

    sides = (
        read_words("[apple|house]", PromptSyntax.A1111, 40),
        read_words("[blurry::.5]", PromptSyntax.A1111, 40, "negative_prompt"),
    )
    steps = encode_words(pipe, sides, encode)

    # Not the empty negative side.
    assert sorted(calls) == [1, 1, 1, 2, 2, 2]
    assert same(steps[0], encode_prompts(pipe, "apple", "blurry"))
    assert same(steps[1], encode_prompts(pipe, "house", "blurry"))
    assert steps[2] is steps[0]
    # An empty negative side is zeros from the step on where it is empty.
    assert same(steps[20], encode_prompts(pipe, "apple", ""))
    assert not steps[20].negative_prompt.any()


def test_calls_of_samplers_with_two_stages_get_their_step_s_words() -> None:
    one, other = (Conditioning(*(torch.full((1,), float(value)),) * 4) for value in (1, 2))
    at = conditioning_at_calls([one, one, other], 2)
    assert at is not None
    # Of three steps such a sampler makes five calls.
    assert [at(call) is other for call in range(5)] == [False, False, False, False, True]
    assert conditioning_at_calls([one, one], 1) is None


@pytest.mark.parametrize("scheduler", ["euler", "heun", "dpmpp_2m_karras"])
def test_a_swap_draws_what_the_loop_draws_with_the_words_swapped_by_hand(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    ready = worker.engine._ready
    assert ready is not None
    seen: list[tuple[Conditioning, Any, Any]] = []
    run_loop = Denoising.run

    def looked_at(self: Denoising) -> torch.Tensor:
        latents = run_loop(self)
        at = self.conditioning_at or (lambda _: self.conditioning)
        seen.append((self.conditioning, [at(n) for n in range(len(self.timesteps))], latents))
        return latents

    monkeypatch.setattr(Denoising, "run", looked_at)
    for prompt in ("[apple:house:.5]", "apple", "[apple:apple:.5]"):
        request = GenerateRequest(prompt=prompt, prompt_syntax="a1111", scheduler=scheduler, **BASE)
        ready.drawer.draw(Run(request))
    (_, calls, swapped), (_, _, plain), (_, _, equal) = seen
    apple, house = (encode_prompts(ready.model.pipe, text, "") for text in ("apple", "house"))
    boundary = 2 * (2 if scheduler == "heun" else 1)
    assert all(same(one, apple) for one in calls[:boundary])
    assert all(same(one, house) for one in calls[boundary:])
    assert not torch.equal(swapped, plain)
    assert torch.equal(equal, plain)


def test_a_second_pass_gets_its_own_words(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = worker.engine._ready
    assert ready is not None
    seen: list[list[Conditioning]] = []
    run_loop = Denoising.run

    def looked_at(self: Denoising) -> torch.Tensor:
        at = self.conditioning_at or (lambda _: self.conditioning)
        seen.append([at(number) for number in range(len(self.timesteps))])
        return run_loop(self)

    monkeypatch.setattr(Denoising, "run", looked_at)
    request = GenerateRequest(
        prompt="[apple:house:1.5]", prompt_syntax="a1111", hires={"scale": 1.5, "steps": 2}, **BASE
    )
    ready.drawer.draw(Run(request))
    apple, house = (encode_prompts(ready.model.pipe, text, "") for text in ("apple", "house"))
    first, second = seen
    assert all(same(one, apple) for one in first)
    assert [same(one, apple) for one in second] == [True, False]
    assert same(second[1], house)


def drawn(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/generate-image", json={**BASE, **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    assert result["model_clean"] is True
    return result


def test_brackets_mean_nothing_new_unless_the_request_asks_for_it(client: httpx2.Client) -> None:
    plain = drawn(client, prompt="a (red) [apple|house]")
    marked = drawn(client, prompt="a (red) [apple|house]", prompt_syntax="a1111")
    escaped = drawn(client, prompt=r"a \(red\) \[apple\|house\]", prompt_syntax="a1111")

    assert plain["image_base64"] != marked["image_base64"]
    # The file says how it was asked for, so the pictures are compared without it.
    assert png_of(plain).tobytes() == png_of(escaped).tobytes()


def test_a_mark_that_cannot_be_read_is_refused_before_anything_is_fetched(
    client: httpx2.Client,
) -> None:
    body = {
        **BASE,
        "prompt": "x",
        "negative_prompt": "[a:b:1.5]",
        "prompt_syntax": "a1111",
        "lora_url": "https://127.0.0.2:9/never-asked",
    }
    answer = client.post("/generate-image", json=body)

    assert answer.status_code == 400
    assert answer.json()["error_code"] == "INVALID_PROMPT"
    assert answer.json()["error"].startswith("negative_prompt: the mark '[a:b:1.5]'")
