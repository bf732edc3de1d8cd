"""The wire format is fixed by the JSON files in golden/: other programs rely on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdxl_contract.errors import ERRORS, ContractError, ErrorBody, ErrorCode, from_body
from sdxl_contract.limits import ModelLimits
from sdxl_contract.prices import USD_PER_SECOND, usd
from sdxl_contract.request import (
    GenerateRequest,
    LoraRef,
    dump_request,
    field_path,
    parse_request,
)
from sdxl_contract.result import GenerateResult, Timings

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


@pytest.mark.parametrize(
    "name", ["request_given.json", "request_minimal.json", "request_extended.json"]
)
def test_golden_requests_survive_the_wire_unchanged(name: str) -> None:
    request = parse_request((GOLDEN / name).read_bytes())

    assert parse_request(dump_request(request)) == request
    said = golden(name)
    assert {key: request.model_dump(mode="json")[key] for key in said} == said


def test_defaults_are_the_given_ones() -> None:
    request = parse_request((GOLDEN / "request_minimal.json").read_bytes())

    assert request.model_dump(mode="json") == golden("request_minimal.defaults.json")
    assert request.size(ModelLimits()) == (1024, 1024)


def test_a_result_with_only_the_given_fields_is_understood() -> None:
    result = GenerateResult.model_validate(golden("result_given.json"))

    said = golden("result_given.json")
    dumped = result.model_dump(mode="json")
    for key in ("image_base64", "image_size", "generation_time_seconds"):
        assert dumped[key] == said[key]
    for part in ("model_info", "metadata"):
        assert {key: dumped[part][key] for key in said[part]} == said[part]


def test_a_newer_worker_may_send_fields_that_this_one_does_not_know() -> None:
    said = golden("result_given.json") | {"from_the_future": 1}

    assert GenerateResult.model_validate(said).metadata.seed_used == 7


def test_every_code_has_its_given_status() -> None:
    assert {code.value: cls.default_status for code, cls in ERRORS.items()} == golden("errors.json")
    assert set(ERRORS) == set(ErrorCode)


def test_error_bodies_come_back_as_the_same_error() -> None:
    body = ErrorBody.model_validate(golden("error_body.json"))

    error = from_body(body, status=429)

    assert error.code is ErrorCode.OVERLOADED
    assert error.retry_after == 4.0
    assert error.body().model_dump(mode="json") == golden("error_body.json")


def refusal(**fields: object) -> ContractError:
    with pytest.raises(ContractError) as caught:
        parse_request(json.dumps({"prompt": "a"} | fields)).check_limits(ModelLimits())
    return caught.value


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"prompt": "  \n"}, "INVALID_PROMPT", "prompt is blank"),
        ({"prompt": "x" * 4001}, "INVALID_PROMPT", "at most 4000"),
        ({"negative_prompt": "x" * 4001}, "INVALID_PROMPT", "negative_prompt has 4001"),
        ({"width": 511}, "INVALID_REQUEST", "the nearest allowed is 512"),
        ({"width": 1537}, "INVALID_REQUEST", "the nearest allowed is 1536"),
        ({"height": 700}, "INVALID_REQUEST", "height is 700"),
        ({"height": 700}, "INVALID_REQUEST", "the nearest allowed is 704"),
        ({"steps": 0}, "INVALID_REQUEST", "steps: must be at least 1"),
        ({"steps": 101}, "INVALID_REQUEST", "at most 100"),
        ({"steps": True}, "INVALID_REQUEST", "not true or false"),
        ({"steps": 2.5}, "INVALID_REQUEST", "steps"),
        ({"cfg": 0.5}, "INVALID_REQUEST", "cfg: must be at least 1.0"),
        ({"cfg": float("nan")}, "INVALID_REQUEST", "cfg"),
        ({"lora_scale": 1.5}, "INVALID_REQUEST", "lora_scale: must be at most 1.0"),
        (
            {"loras": [{"url": "u", "scale": 10.5}]},
            "INVALID_REQUEST",
            "must be at most 10.0",
        ),
        ({"loras": [{"url": "u", "scale": -10.5}]}, "INVALID_REQUEST", "loras[0].scale"),
        ({"output_url": "u", "num_images": 2}, "INVALID_REQUEST", "output_url: takes one image"),
        ({"output_urls": ["u"], "num_images": 2}, "INVALID_REQUEST", "output_urls: has 1 URLs"),
        ({"output_urls": ["u", "v"]}, "INVALID_REQUEST", "num_images is 1"),
        ({"output_urls": ["u", "u"], "num_images": 2}, "INVALID_REQUEST", "one URL twice"),
        ({"output_urls": ["u"], "output_url": "u"}, "INVALID_REQUEST", "output_urls: output_url"),
        ({"output_urls": [""]}, "INVALID_REQUEST", "output_urls[0]"),
        ({"output_urls": [None]}, "INVALID_REQUEST", "output_urls[0]"),
        ({"prompt": None}, "INVALID_PROMPT", "prompt"),
        ({"widht": None}, "INVALID_REQUEST", "widht: is not a field"),
        ({"loras": [{"scale": 1}]}, "INVALID_REQUEST", "loras[0].url: is required"),
        ({"loras": [{"url": "u"}] * 9}, "INVALID_REQUEST", "loras"),
        ({"loras": [{"url": "u"}], "lora_url": "u"}, "INVALID_REQUEST", "lora_url and loras"),
        ({"lora_sha256": "0" * 64}, "INVALID_REQUEST", "lora_sha256: belongs to lora_url"),
        ({"lora_url": "u", "lora_sha256": "g" * 64}, "INVALID_REQUEST", "64 hexadecimal"),
        ({"seed": -1}, "INVALID_REQUEST", "seed: must be at least 0"),
        ({"seed": 2**32}, "INVALID_REQUEST", "at most 4294967295"),
        ({"timeout": 301}, "INVALID_REQUEST", "timeout: must be at most 300"),
        ({"num_images": 9}, "INVALID_REQUEST", "num_images"),
        ({"output_format": "gif"}, "INVALID_REQUEST", "output_format"),
        ({"request_id": "a b"}, "INVALID_REQUEST", "request_id"),
        ({"widht": 512}, "INVALID_REQUEST", "widht: is not a field"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(
    fields: dict[str, object], code: str, says: str
) -> None:
    error = refusal(**fields)

    assert error.code == code
    assert says in error.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"{" * 5000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ContractError) as caught:
        parse_request(body)

    assert caught.value.code == "INVALID_REQUEST"
    assert "JSON object" in caught.value.message


def test_a_signed_url_stays_out_of_messages_and_reprs() -> None:
    url = "https://bucket.example/a?X-Amz-Signature=hunter2"
    error = refusal(lora_url=url, lora_scale=3, loras=[{"url": url, "sha256": "hunter2"}])

    assert "hunter2" not in error.message + json.dumps(error.details)
    assert "hunter2" not in repr(GenerateRequest(prompt="a", lora_url=url))
    assert "hunter2" not in repr(GenerateRequest(prompt="a", loras=[{"url": url}]))


def test_null_is_the_same_as_left_out_for_every_optional_field() -> None:
    fields = set(GenerateRequest.model_fields) - {"prompt"}
    empty = parse_request(json.dumps({"prompt": "a"} | dict.fromkeys(fields)))
    assert empty == parse_request('{"prompt": "a"}')

    ref = {"url": "u"} | dict.fromkeys(set(LoraRef.model_fields) - {"url"})
    assert parse_request(json.dumps({"prompt": "a", "loras": [ref]})).loras == [LoraRef(url="u")]


def test_each_image_has_its_place() -> None:
    assert parse_request('{"prompt": "a"}').places() == []
    one = parse_request('{"prompt": "a", "output_url": "u"}')
    assert one.places() == [("output_url", "u")]
    two = parse_request('{"prompt": "a", "num_images": 2, "output_urls": ["u", "v"]}')
    assert two.places() == [("output_urls[0]", "u"), ("output_urls[1]", "v")]


def test_sliders_may_be_pulled_to_ten_and_the_short_form_may_not() -> None:
    for scale in (-10, 10):
        assert parse_request(
            json.dumps({"prompt": "a", "loras": [{"url": "u", "scale": scale}]})
        ).loras[0].scale == scale  # fmt: skip


def test_the_short_form_is_one_lora() -> None:
    digest = "A" * 64
    request = GenerateRequest(prompt="a", lora_url="u", lora_scale=0.5, lora_sha256=digest)

    (ref,) = request.lora_refs()

    assert (ref.url, ref.scale, ref.sha256) == ("u", 0.5, digest.lower())


@given(st.integers(1, 20_000), st.integers(1, 64), st.integers(8, 600), st.integers(0, 2000))
def test_the_nearest_side_is_allowed_and_nothing_allowed_is_nearer(
    side: int, multiple: int, low: int, span: int
) -> None:
    limits = ModelLimits(min_side=low, max_side=low + span + multiple, multiple_of=multiple)
    allowed = [s for s in range(low, low + span + multiple + 1) if s % multiple == 0]

    nearest = limits.nearest_side(side)

    assert nearest in allowed
    assert abs(nearest - side) == min(abs(s - side) for s in allowed)
    assert (limits.side_problem("width", side) is None) == (side in allowed)


def test_field_paths_read_as_people_write_them() -> None:
    assert field_path(("loras", 0, "scale")) == "loras[0].scale"


def test_prices_are_per_second_and_unknown_gpus_have_none() -> None:
    assert usd("H100", 10) == pytest.approx(0.01097)
    assert usd("cpu", 10) is None
    assert all(0 < price < 0.01 for price in USD_PER_SECOND.values())


def test_timings_add_up() -> None:
    assert Timings(download=1.5, denoise=2.0).total() == 3.5


def test_a_request_is_never_half_valid() -> None:
    with pytest.raises(ValidationError):
        GenerateRequest(prompt="a", steps=-1)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ('{"prompt": "a", "cfg": true}', "cfg", "must be a number"),
        ('{"prompt": "a", "lora_scale": false}', "lora_scale", "must be a number"),
        ('{"prompt": "a", "steps": true}', "steps", "must be a number"),
        ('{"prompt": "a", "loras": [{"url": "u", "scale": true}]}', "loras[0].scale", "a number"),
        ('{"prompt": "a", "loras": ["u"]}', "loras[0]", "must be a JSON object"),
        ('{"prompt": "a", "loras": [{"url": "u"}], "lora_url": "u"}', "loras", "send one of them"),
        (f'{{"prompt": "a", "lora_sha256": "{"0" * 64}"}}', "lora_sha256", "lora_url"),
        ("[]", "request", "must be a JSON object"),
        ('{"prompt": "a"} x', "request", "not valid JSON (trailing characters"),
        ('{"prompt": "\\ud800"}', "request", "not valid JSON (unexpected end of hex"),
    ],
)
def test_a_refusal_names_the_very_field(body: str, field: str, says: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_request(body)

    assert caught.value.details is not None
    assert caught.value.details["field"] == field
    assert caught.value.message.startswith(f"{field}: ")
    assert says in caught.value.message
