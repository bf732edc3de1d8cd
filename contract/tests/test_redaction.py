"""Planted secrets do not come through, and what a log is read for does."""

from __future__ import annotations

import random
from functools import partial

import pytest

from sdxl_contract import redaction
from sdxl_contract.redaction import redact, redact_value
from testkit.growth import grows_in_line

SECRET = "hunter2hunter2hunter2"
PRESIGNED = (
    "https://acct.r2.example/bucket/private-name/v1.safetensors?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    f"&X-Amz-Credential={SECRET}%2F20260101&X-Amz-Signature={SECRET}"
)


@pytest.mark.parametrize(
    "text",
    [
        PRESIGNED,
        f"GET {PRESIGNED} failed",
        f"<{PRESIGNED}>",
        f'{{"url": "{PRESIGNED}", "x": 1}}',
        PRESIGNED.upper().replace(SECRET.upper(), SECRET),
        f"https://user:{SECRET}@host.example",
        f"https://user:{SECRET}@host.example/path",
        f"postgresql+psycopg://user:{SECRET}@db.example/name",
        f"s3://{SECRET}@bucket/key",
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}==",
        f"WORKER_API_TOKEN={SECRET}",
        f"HUGGINGFACE_HUB_TOKEN: {SECRET}",
        f"AWS_SECRET_ACCESS_KEY='{SECRET}'",
        f"R2_ACCESS_KEY_ID={SECRET}",
        f"api_key={SECRET}",
        f"api-key: {SECRET}",
        f"password = {SECRET}",
        f'{{"token": "{SECRET}"}}',
        f"Modal-Key: {SECRET}",
        f"Modal-Secret: {SECRET}",
        f"sig={SECRET}&x=1",
        f"X-Amz-Signature={SECRET}",
        f"X-Amz-Signature%3D{SECRET}",
        f"Authorization: token {SECRET}",
        f"('modal-secret', '{SECRET}')",
        f"/files/a.png?expires=1&signature={SECRET}",
        f"apitoken={SECRET}",
        f"r8_{SECRET}",
        f"sdxl_{(SECRET * 3)[:43]}",
        f"hf_{SECRET}",
        f"wk-{SECRET}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{SECRET}",
    ],
)
def test_a_planted_secret_is_gone(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


def test_the_object_s_name_is_gone_but_the_host_stays() -> None:
    assert redact(f"GET {PRESIGNED} failed") == "GET https://acct.r2.example/*** failed"


@pytest.mark.parametrize(
    "text",
    [
        "the prompt has 80 tokens: 3 too many",
        "https://host.example",
        "steps: 28, cfg: 5.5, seed: 7",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "design=flat, resign: no",
        "key: unet.down_blocks.0.attn1.to_q",
        "a bearer of good news",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_redaction_twice_is_redaction_once() -> None:
    once = redact(f"{PRESIGNED} token={SECRET}")

    assert redact(once) == once


def test_values_of_every_kind_are_redacted() -> None:
    event = {
        "event": f"got {PRESIGNED}",
        "list": [PRESIGNED, {"deep": (f"token={SECRET}", 3)}],
        "set": {PRESIGNED},
        "token": SECRET,
        "headers": {"Authorization": SECRET, "modal-key": SECRET.encode()},
        "error": ValueError(f"no {PRESIGNED}"),
        "bytes": f"token={SECRET}".encode(),
        "count": 3,
        "tokens": 77,
        "flag": True,
        "nothing": None,
    }

    redacted = redact_value(event)

    assert SECRET not in repr(redacted)
    assert (redacted["count"], redacted["tokens"], redacted["flag"], redacted["nothing"]) == (
        3,
        77,
        True,
        None,
    )
    assert redacted["error"] == "ValueError('no https://acct.r2.example/***')"


@pytest.mark.parametrize("part", ["a.", "a-", "x-amz-a-", "eyJ-", "token_", "://a@", "A1-", "a_"])
def test_a_long_text_takes_time_in_line_with_its_length(part: str) -> None:
    assert grows_in_line(lambda n: partial(redact, part * n), 5_000)


@pytest.mark.parametrize("before", [".", "-", "1", "+", "(", "=", "://"])
def test_a_url_is_cut_whatever_stands_before_it(before: str) -> None:
    assert SECRET not in redact(before + PRESIGNED)


def test_what_is_left_alone_as_harmless_holds_nothing_that_a_pattern_takes_out() -> None:
    chance = random.Random(7)
    pieces = ["sig", "hf_", "r8_", "wk-", "AKIA", "sdxl_", "eyJ", "token", "bearer", "a", "0", "f"]
    pieces += ["_", ".", "-", "x" * 12, "a" * 43, "9" * 12]
    left_alone = 0
    for _ in range(20_000):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 6)))
        if redaction._HARMLESS.fullmatch(text):
            left_alone += 1
            patterns = [redaction._URL, redaction._PATHS, *(one for one, _ in redaction._PATTERNS)]
            assert not any(pattern.search(text) for pattern in patterns), text
    assert left_alone > 1000
