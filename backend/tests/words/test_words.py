"""How words are read: from the request to the worker, and never past the operator's list."""

from __future__ import annotations

from typing import Any

import pytest

from app.services.marking.forbidden_words import ForbiddenWords
from sdxl_contract.errors import ContentRefused
from sdxl_contract.prompts.words import PromptSyntax
from sdxl_contract.request import GenerateRequest
from testkit.backend import Backend, ended
from testkit.doubles.inference_double import InferenceDouble

GENERATE = "/api/v1/content/generate"


async def test_the_syntax_reaches_the_worker_and_every_replay(
    backend: Backend, inference: InferenceDouble
) -> None:
    content = await backend.generate(
        prompt="a ((red)) [apple|pear]", prompt_syntax="a1111", clip_skip=2
    )
    assert content["parameters"]["prompt_syntax"] == "a1111"
    answer = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    await ended(backend, answer.json()["id"])
    for request in inference.requests:
        assert request.prompt == "a ((red)) [apple|pear]"
        assert (request.prompt_syntax, request.clip_skip) == (PromptSyntax.A1111, 2)
    plain = await backend.generate(prompt="a (red) apple")
    assert "prompt_syntax" not in plain["parameters"]
    assert inference.requests[-1].prompt_syntax is PromptSyntax.WEIGHTS


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"prompt": "[a:b:1.5]", "prompt_syntax": "a1111"}, 400, "prompt"),
        ({"negative_prompt": "(a:9)", "prompt_syntax": "a1111"}, 400, "negative_prompt"),
        ({"prompt": "[a:b:0.5]"}, 400, "prompt"),
        ({"prompt_syntax": "compel"}, 422, "prompt_syntax"),
        ({"clip_skip": 0}, 422, "clip_skip"),
        ({"clip_skip": 12}, 422, "clip_skip"),
        ({"clip_skip": True}, 422, "clip_skip"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name(
    backend: Backend, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await backend.http.post(GENERATE, json={"prompt": "x", **body})
    assert answer.status_code == status, answer.text
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    "prompt",
    ["a [ap|pine]ple", "a [pear:ap:.5]ple", "a bad BREAK word", "(a)p[ple]", "[x:a bad word:.5]"],
)
def test_no_mark_hides_a_word_from_the_operator_s_list(prompt: str) -> None:
    words = ForbiddenWords(["apple", "bad word"])
    with pytest.raises(ContentRefused):
        words.check_request(GenerateRequest(prompt=prompt, prompt_syntax=PromptSyntax.A1111))
    words.check_request(GenerateRequest(prompt="a [pine|grape]s", prompt_syntax="a1111"))
