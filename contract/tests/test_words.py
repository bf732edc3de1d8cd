"""A1111's marks: what each means, what is refused, and that nothing grows without a bound."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_contract.errors import InvalidPrompt
from sdxl_contract.prompts.weights import parse_weights
from sdxl_contract.prompts.words import PromptSyntax, Words, read_words
from sdxl_contract.request import GenerateRequest
from testkit.growth import grows_in_line

A1111, WEIGHTS = PromptSyntax.A1111, PromptSyntax.WEIGHTS
STRONGER, WEAKER = 1.1, round(1 / 1.1, 9)


def plain(words: Words) -> list[list[tuple[str, float]]]:
    return [[(one.text, one.weight) for one in piece] for piece in words.pieces]


def fragments(text: str) -> list[tuple[str, float]]:
    """Of a prompt that stays the same over the steps and has no BREAK."""
    timeline = read_words(text, A1111, 7)
    assert timeline.at == (0,) * 7
    (piece,) = plain(timeline.texts[0])
    return piece


def by_step(text: str, steps: int = 4) -> list[str]:
    timeline = read_words(text, A1111, steps)
    return [timeline.texts[number].text for number in timeline.at]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("", [("", 1)]),
        ("a (red) apple", [("a ", 1), ("red", STRONGER), (" apple", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", WEAKER)]),
        ("[[red]]", [("red", round(1 / 1.21, 9))]),
        ("[(red)]", [("red", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 1.3 )", [("red", 1.3)]),
        ("(red:.5), (blue:2)", [("red", 0.5), (", ", 1), ("blue", 2)]),
        ("((dark:1.2) red:1.5)", [("dark", 1.8), (" red", 1.5)]),
        ("(red)1.3", [("red", STRONGER), ("1.3", 1)]),
        (r"\(red\) \[blue\] a\\b c\:d", [(r"(red) [blue] a\b c:d", 1)]),
        (r"(rem \(re:zero\):1.2)", [("rem (re:zero)", 1.2)]),
        ("(style: oil)", [("style: oil", STRONGER)]),
        ("[style: oil]", [("style: oil", WEAKER)]),
        ("at 5:30, a|b", [("at 5:30, a|b", 1)]),
        ("red) blue]", [("red) blue]", 1)]),
        ("a (red blue", [("a ", 1), ("red blue", STRONGER)]),
        ("a [red blue", [("a ", 1), ("red blue", WEAKER)]),
        ("(a|b)", [("a|b", STRONGER)]),
        ("r(e)d", [("r", 1), ("e", STRONGER), ("d", 1)]),
        ("BREAKFAST, break", [("BREAKFAST, break", 1)]),
    ],
)
def test_brackets_weigh_as_in_a1111(text: str, found: list[tuple[str, float]]) -> None:
    assert fragments(text) == found


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("[a:b:.5]", ["a", "a", "b", "b"]),
        ("[a:b:0.3]", ["a", "b", "b", "b"]),
        ("[a:b:1.0]", ["a", "a", "a", "a"]),
        ("[a:b:1]", ["a", "b", "b", "b"]),
        ("[a:b:10]", ["a", "a", "a", "a"]),
        ("[a:b:0]", ["b", "b", "b", "b"]),
        ("[a : b : 2 ]", ["a ", "a ", " b ", " b "]),
        ("[a::.5]", ["a", "a", "", ""]),
        ("[:b:.5]", ["", "", "b", "b"]),
        ("[b:.5]", ["", "", "b", "b"]),
        ("[a|b]", ["a", "b", "a", "b"]),
        ("[a|b|c]", ["a", "b", "c", "a"]),
        ("[a|]", ["a", "", "a", ""]),
        ("[cat:dog:.5]s", ["cats", "cats", "dogs", "dogs"]),
        ("[a|[b:c:.5]]", ["a", "b", "a", "c"]),
        ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
        ("[a:b:.5] [c|d]", ["a c", "a d", "b c", "b d"]),
        (r"[a\:b:c:.5]", ["a:b", "a:b", "c", "c"]),
    ],
)
def test_words_change_over_the_steps(text: str, steps: list[str]) -> None:
    assert by_step(text) == steps


def test_shares_are_of_whole_steps() -> None:
    assert by_step("[a:b:.5]", 5) == ["a", "a", "b", "b", "b"]
    assert by_step("[a:b:0.29]", 100).count("a") == 29
    assert by_step("[a:b:.5]", 1) == ["b"]


def test_a_second_pass_goes_on_where_the_first_one_ended() -> None:
    def both(text: str, **second: object) -> list[list[str]]:
        request = GenerateRequest(
            prompt=text, prompt_syntax=A1111, steps=4, hires={"steps": 2, **second}
        )
        request.check_prompts()
        passes = [prompt for prompt, _ in request.timelines()]
        return [[one.texts[number].text for number in one.at] for one in passes]

    assert both("[a:b:.5]") == [["a", "a", "b", "b"], ["b", "b"]]
    assert both("[a:b:1.5]") == [["a"] * 4, ["a", "b"]]
    assert both("[a:b:5]") == [["a"] * 4, ["a", "b"]]
    assert both("[a|b|c]") == [["a", "b", "c", "a"], ["a", "b"]]
    assert both("x", prompt="[a:b:1.5]") == [["x"] * 4, ["a", "b"]]
    with pytest.raises(InvalidPrompt, match=r"hires\.prompt: .*2\.5 is more than all steps"):
        both("x", prompt="[a:b:2.5]")


def test_what_only_enlarges_has_no_steps_and_no_use_for_what_draws_words() -> None:
    enlarges = {"prompt": "[a:b:.5]", "prompt_syntax": "a1111", "upscale": {}}
    enlarges["image"] = {"url": "https://a.example/a"}
    GenerateRequest.model_validate(enlarges).check_prompts()
    embedding = {"url": "https://a.example/e", "token": "a"}
    for field, value in (("clip_skip", 1), ("embeddings", [embedding])):
        with pytest.raises(ValueError, match="no part in upscale"):
            GenerateRequest.model_validate(enlarges | {field: value})


def test_equal_texts_are_one_text_however_they_come_about() -> None:
    assert read_words("[red:red:.5]", A1111, 4) == read_words("red", A1111, 4)
    assert read_words("[red|red] apple", A1111, 4) == read_words("red apple", A1111, 4)
    assert len(read_words("[a|b]", A1111, 100).texts) == 2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a, BREAK,b", ["a,", ",b"]),
        ("BREAK a BREAK BREAK b BREAK", ["a", "b"]),
        ("a\nBREAK\nb", ["a", "b"]),
        ("BREAK", [""]),
    ],
)
def test_break_ends_a_piece(text: str, pieces: list[str]) -> None:
    (words,) = read_words(text, A1111, 3).texts
    assert ["".join(t for t, _ in piece) for piece in plain(words)] == pieces


def test_break_keeps_the_weights_around_it_and_may_come_and_go() -> None:
    (words,) = read_words("(a BREAK b:1.3) c", A1111, 1).texts
    assert plain(words) == [[("a", 1.3)], [("b", 1.3), (" c", 1.0)]]
    timeline = read_words("a [BREAK :.5]b", A1111, 2)
    assert [len(timeline.texts[n].pieces) for n in timeline.at] == [1, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(red:1.2.3)", "'1.2.3' is not a number"),
        ("(red:1,3)", "'1,3' is not a number"),
        ("(red:-1)", "'-1' is not a number"),
        ("(red:nan)", "'nan' is not a number"),
        ("(red:9)", "9 is out of range"),
        ("(:1.3)", "the parentheses are empty"),
        ("((red:2):2)", "multiply to 4"),
        ("(" * 13 + "red" + ")" * 13, "multiply to 3.45"),
        ("(red:1.3, a house", "closing bracket is missing"),
        ("[red:blue:.5", "closing bracket is missing"),
        ("[red|blue", "closing bracket is missing"),
        ("[a|b:.5]", "brackets of their own"),
        ("[a:b:c:.5]", "more than two texts"),
        ("[a:b:1.5]", "1.5 is more than all steps"),
        ("[red:1.5]", "1.5 is more than all steps"),
        ("[a:b:-1]", "'-1' is not a number of steps"),
        ("[a:b:0,5]", "'0,5' is not a number of steps"),
        ("[" * 17 + "a" + "]" * 17, "more than 16 deep"),
        ("(" * 3000, "more than 16 deep"),
        ("a BREAK " * 17, "at most 16"),
        ("a" * 20_001, "at most 20000"),
        ("[" + "|".join(map(str, range(40))) + "]", "at most 32"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        read_words(text, A1111, 100, "negative_prompt")
    assert caught.value.message.startswith("negative_prompt: ")
    assert says in caught.value.message
    assert caught.value.details is not None
    assert caught.value.details["field"] == "negative_prompt"
    assert caught.value.details["reason"] == "mark"


def test_a_lora_named_in_the_prompt_is_refused_in_this_syntax_too() -> None:
    with pytest.raises(InvalidPrompt) as caught:
        read_words("a house <lora:x:1>", A1111, 4)
    assert caught.value.details == {"field": "prompt", "reason": "lora_tag"}


def test_many_texts_of_a_long_prompt_are_refused_as_one_request() -> None:
    many = "[" + "|".join("abcdefghijklmno") + "]"
    GenerateRequest(prompt=many, prompt_syntax=A1111).check_prompts()
    GenerateRequest(prompt="word " * 700, prompt_syntax=A1111).check_prompts()
    for prompt, negative, field in (
        (many + "word " * 700, "", "prompt"),
        ("word " * 700, many, "negative_prompt"),
    ):
        asked = GenerateRequest(prompt=prompt, negative_prompt=negative, prompt_syntax=A1111)
        with pytest.raises(InvalidPrompt, match="may be at most") as caught:
            asked.check_prompts()
        assert caught.value.details is not None
        assert caught.value.details["field"] == field


def test_without_the_syntax_all_brackets_keep_their_old_meaning() -> None:
    for text in ("a (red) [cat] BREAK (blue:1.3)", "((x)) [a|b]", ""):
        request = GenerateRequest(prompt=text or "x", negative_prompt=text)
        ((_, negative),) = request.timelines()
        assert set(negative.at) == {0}
        assert negative.texts == (Words((tuple(parse_weights(text)),)),)
    with pytest.raises(InvalidPrompt, match="prompt_syntax"):
        parse_weights("[cat:dog:0.5]")


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "(" + ":" * n,
        lambda n: "([" * 8 + ":9" * (n // 2),
        lambda n: "[a|b]" * (n // 5),
        lambda n: ":1" * (n // 2),
    ],
    ids=["colons", "numbers", "turns", "weights"],
)
def test_long_prompts_take_time_in_line_with_their_length(text: Callable[[int], str]) -> None:
    def prepare(length: int) -> Callable[[], None]:
        made = text(length)

        def read() -> None:
            with contextlib.suppress(InvalidPrompt):
                read_words(made, A1111, 100)

        return read

    assert grows_in_line(prepare, 4000 // 8)  # as long as a prompt may be


@given(st.text(alphabet="ab ([:|])BREAK1.5\\,-", max_size=60), st.integers(1, 9))
def test_any_text_is_read_or_refused(text: str, steps: int) -> None:
    try:
        timeline = read_words(text, A1111, steps)
    except InvalidPrompt:
        assert set("([BREAK") & set(text)
        return
    assert len(timeline.at) == steps
    for words in timeline.texts:
        assert all(0 <= one.weight <= 3 for piece in words.pieces for one in piece)
    if not set("([:|])\\") & set(text) and "BREAK" not in text:
        assert timeline.texts[0].text == text
