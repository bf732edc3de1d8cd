"""Prompts: the weight syntax, and embeddings against the plain pipeline and compel."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import torch
from compel.embeddings_provider import (
    DownweightMode,
    EmbeddingsProvider,
    ReturnedEmbeddingsType,
)
from hypothesis import given
from hypothesis import strategies as st

from sdxl_contract.errors import InvalidPrompt
from sdxl_contract.prompts.weights import parse_weights
from sdxl_worker.drawing.prompts import encode_prompts
from testkit.worker import SIDE, RunningWorker


def parsed(text: str) -> list[tuple[str, float]]:
    return [(part.text, round(part.weight, 6)) for part in parse_weights(text)]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("", [("", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("a (red)1.3 apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("(red apple:.5)", [("red apple", 0.5)]),
        ("(red:0), (blue:3)", [("red", 0), (", ", 1), ("blue", 3)]),
        ("It is (red)1.3. Really", [("It is ", 1), ("red", 1.3), (". Really", 1)]),
        ("(red)1.3, round", [("red", 1.3), (", round", 1)]),
        ("((dark:1.2) red:1.5)", [("dark", 1.8), (" red", 1.5)]),
        ("((red):1.5)", [("(red)", 1.5)]),
        ("(see (red:1.5))", [("(see ", 1), ("red", 1.5), (")", 1)]),
        (r"\(red:1.3\)", [("(red:1.3)", 1)]),
        (r"(rem \(re:zero\):1.2)", [("rem (re:zero)", 1.2)]),
        ("(red)", [("(red)", 1)]),
        ("(style: oil)", [("(style: oil)", 1)]),
        ("(at 5:30 pm)", [("(at 5:30 pm)", 1)]),
        ("(draft)3d print", [("(draft)3d print", 1)]),
        ("a face :) or :(", [("a face :) or :(", 1)]),
        ("1) red 2) blue", [("1) red 2) blue", 1)]),
        ("(red: 1.5)", [("red", 1.5)]),
        ("(red:\t1.5)", [("red", 1.5)]),
        ("(red : 1.5 )", [("red", 1.5)]),
        ("(red :1.5)", [("red", 1.5)]),
        ("(style: 3d)", [("(style: 3d)", 1)]),
        ("(style: oil 2)", [("(style: oil 2)", 1)]),
        ("[cat] {dog}", [("[cat] {dog}", 1)]),
        (r"\[red:1.5]", [(r"\[red:1.5]", 1)]),
        ("\uff08red\uff09", [("\uff08red\uff09", 1)]),
        ("a < b, <3", [("a < b, <3", 1)]),
        ("(a cat): 3 of them", [("(a cat): 3 of them", 1)]),
        ("C++, (a)-b and (c) - d", [("C++, (a)-b and (c) - d", 1)]),
        ("ratio 2\u22361", [("ratio 2\u22361", 1)]),
    ],
)
def test_weights_are_read_and_all_else_is_text(
    text: str, fragments: list[tuple[str, float]]
) -> None:
    assert parsed(text) == fragments


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(red:)", "the number is missing"),
        ("(red:much)", "'much' is not a number"),
        ("(red:1.2.3)", "'1.2.3' is not a number"),
        ("(red:1,3)", "'1,3' is not a number"),
        ("(red)1,3", "'1,3' is not a number"),
        ("(red:-1)", "'-1' is not a number"),
        ("(red)-1", "'-1' is not a number"),
        ("(red:nan)", "'nan' is not a number"),
        ("(red:1e3)", "'1e3' is not a number"),
        ("(red:9)", "9 is out of range"),
        ("(red)3.01", "3.01 is out of range"),
        ("((red:2):2)", "nested weights multiply to 4"),
        ("(red:1.2)1.3", "two weights"),
        ("(red:1.3, a house", "closing parenthesis is missing"),
        ("(:1.3)", "parentheses are empty"),
        ("( )1.3", "parentheses are empty"),
        ("(red: 1,3)", "'1,3' is not a number"),
        ("(red: 1.2.3)", "'1.2.3' is not a number"),
        ("(red: -1)", "'-1' is not a number"),
        ("(red: 9)", "9 is out of range"),
        ("[red:1.5]", "only parentheses"),
        ("[cat:dog: 0.5]", "only parentheses"),
        ("{red:1.5}", "only parentheses"),
        ("(red\uff1a1.5)", "not those of ASCII"),
        ("\uff08red:1.5\uff09", "not those of ASCII"),
        ("(red\u22361.5)", "not those of ASCII"),
        ("\ufe59red\ufe551.5\ufe5a", "not those of ASCII"),
        ("(red:1.5:2)", "two weights"),
        ("(red: 1.5: 2)", "two weights"),
        ("(red::1.5)", "two colons"),
        ("(red):1.5", "stands outside"),
        ("(red) :1.5", "stands outside"),
        ("[[cat] dog:1.5]", "only parentheses"),
        ("[(cat):1.5]", "only parentheses"),
        ("(red)++", "'++'"),
        ("(red)--", "'--'"),
        ("(red:1.5)+", "'+'"),
    ],
)
def test_a_malformed_weight_is_an_error_that_quotes_it(text: str, says: str) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        parse_weights(f"a house, {text}", "negative_prompt")
    assert caught.value.message.startswith("negative_prompt: the weight in ")
    assert says in caught.value.message
    assert "(words:1.3)" in caught.value.message
    assert caught.value.details == {"field": "negative_prompt", "reason": "weight"}


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:x:1>",
        "<lora:line art:0.8>",
        "<LoRA:x>",
        "< lora : x : 1 >",
        "<lora:x:0.8:0.5>",
        "<lyco:x:1>",
        "<hypernet:x:1>",
        "<lora:x:1",
        "(<lora:x:1>:1.2)",
        "\uff1clora:x:1\uff1e",
        "<lora\uff1ax\uff1a1>",
        "&lt;lora:x:1&gt;",
    ],
)
def test_a_lora_named_in_the_prompt_is_refused_and_never_drawn_as_words(tag: str) -> None:
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidPrompt) as caught:
            parse_weights(f"a house {tag}", field)
        assert caught.value.details == {"field": field, "reason": "lora_tag"}


@given(st.text(alphabet="ab (:)1.3\\,-", max_size=40))
def test_any_text_is_read_or_refused_and_text_without_colon_or_digit_is_kept(text: str) -> None:
    try:
        fragments = parse_weights(text)
    except InvalidPrompt:
        assert "(" in text or ")" in text
        assert any(sign in text for sign in ":13") or ")--" in text
        return
    assert all(0 <= fragment.weight <= 3 for fragment in fragments)
    if not any(sign in text for sign in ":13\\"):
        assert "".join(fragment.text for fragment in fragments) == text


@pytest.fixture
def pipe(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready.model.pipe


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("a red apple", None), ("a red apple, (best) quality", "blurry"), ("apple " * 70, "x")],
)
def test_a_plain_prompt_is_the_plain_pipeline_s_bit_for_bit(
    pipe: Any, prompt: str, negative: str | None
) -> None:
    expected = pipe.encode_prompt(
        prompt, device="cpu", do_classifier_free_guidance=True, negative_prompt=negative
    )
    found = encode_prompts(pipe, prompt, negative or "")

    for ours, theirs in zip(
        (found.prompt, found.negative_prompt, found.pooled, found.negative_pooled),
        expected,
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def _compel(pipe: Any, number: int, fragments: list[str], weights: list[float]) -> torch.Tensor:
    suffix = "_2" if number else ""
    provider = EmbeddingsProvider(
        getattr(pipe, f"tokenizer{suffix}"),
        getattr(pipe, f"text_encoder{suffix}"),
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        downweight_mode=DownweightMode.MASK,
    )
    found: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [fragments], [weights]
    )
    return found


@torch.no_grad()
def test_weights_above_one_are_compel_s(pipe: Any) -> None:
    found = encode_prompts(pipe, "a house, (red apple)1.4 and (a tree:2)", "").prompt
    fragments, weights = ["a house, ", "red apple", " and ", "a tree"], [1, 1.4, 1, 2.0]
    expected = torch.cat([_compel(pipe, n, fragments, weights) for n in (0, 1)], dim=-1)

    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    plain = encode_prompts(pipe, "a house, red apple and a tree", "").prompt
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_only_the_weighted_tokens_move_and_zero_takes_them_away(pipe: Any) -> None:
    plain = encode_prompts(pipe, "house red tree", "")
    weighted = encode_prompts(pipe, "house (red:0) tree", "")
    empty = encode_prompts(pipe, "", "x").prompt
    tokens = [
        len(pipe.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("house", "red")
    ]
    moved = slice(1 + tokens[0], 1 + sum(tokens))
    width = pipe.text_encoder.config.hidden_size

    assert torch.equal(plain.pooled, weighted.pooled)
    assert torch.allclose(weighted.prompt[0, moved, :width], empty[0, moved, :width], atol=1e-5)
    assert torch.equal(weighted.prompt[0, : moved.start], plain.prompt[0, : moved.start])
    assert torch.equal(weighted.prompt[0, moved.stop :], plain.prompt[0, moved.stop :])


@torch.no_grad()
def test_a_long_prompt_is_its_windows_one_after_another(pipe: Any) -> None:
    first, second = "red apple, " * 20, "white house"
    length = len(pipe.tokenizer(first, add_special_tokens=False)["input_ids"])
    assert 50 < length <= 75, "the test's own premise"
    filler = " ".join(["tree"] * 60)
    whole = encode_prompts(pipe, first + filler, "")
    cut = encode_prompts(pipe, first, "")

    assert whole.prompt.shape[1] == 154
    assert whole.negative_prompt.shape == whole.prompt.shape
    # The first window ends behind the last comma, so it is what the first part alone gives.
    assert torch.allclose(whole.prompt[:, :77], cut.prompt, atol=1e-5)
    assert torch.allclose(whole.pooled, cut.pooled, atol=1e-5)
    changed = encode_prompts(pipe, first + filler + f" ({second}:1.5)", "")
    assert not torch.equal(changed.prompt[:, 77:], whole.prompt[:, 77:])


def test_a_malformed_weight_is_refused_before_anything_is_fetched(
    client: httpx2.Client, worker: RunningWorker
) -> None:
    body = {
        "prompt": "a (red:much) apple",
        "width": SIDE,
        "height": SIDE,
        "lora_url": "https://127.0.0.2:9/never-asked",
    }
    answer = client.post("/generate-image", json=body)

    assert answer.status_code == 400
    assert answer.json()["error_code"] == "INVALID_PROMPT"
    assert answer.json()["error"].startswith("prompt: the weight in '(red:much)'")
