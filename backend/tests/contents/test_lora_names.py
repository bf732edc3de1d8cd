"""LoRAs by name: one owner's only one, found also when it is spelt a little otherwise."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from sqlalchemy import URL

from app.core.errors import NotFound
from app.services.lora_names import find_by_name, free_name
from sdxl_contract.errors import InvalidRequest
from testkit.backend import Backend, add_key
from testkit.loras.plain_bytes import kohya_lora

INK, LINE, LINE_2 = (uuid.UUID(int=number) for number in (1, 2, 3))
NAMES = {INK: "Ink (2)", LINE: "Line Art", LINE_2: "line-art"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Ink (2)", INK),
        ("ink (2)", INK),
        ("ink_2", INK),
        ("Ink (2).safetensors", INK),
        ("Line Art", LINE),
        ("line art", LINE),
        ("line-art", LINE_2),
    ],
)
def test_a_name_is_found_exactly_first_and_then_by_its_letters(name: str, found: uuid.UUID) -> None:
    assert find_by_name(name, NAMES, "loras[0].name") == found


def test_a_name_that_may_mean_two_is_refused_with_both_ids() -> None:
    with pytest.raises(InvalidRequest) as caught:
        find_by_name("LINE_ART", NAMES, "loras[0].name")
    assert caught.value.details is not None
    assert set(caught.value.details["lora_model_ids"]) == {str(LINE), str(LINE_2)}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="Near: “Ink \\(2\\)”") as caught:
        find_by_name("ink 3", NAMES, "loras[0].name")
    assert caught.value.field == "loras[0].name"
    with pytest.raises(NotFound, match=r"name “zzzz”\.$"):
        find_by_name("zzzz", NAMES, "x")


def test_a_taken_name_gets_the_first_free_number_and_stays_within_its_length() -> None:
    assert free_name("a", []) == "a"
    assert free_name("a", ["a", "a (2)"]) == "a (3)"
    assert free_name("a" * 200, ["a" * 200]) == "a" * 196 + " (2)"


async def test_uploads_at_the_same_time_get_names_of_their_own(backend: Backend) -> None:
    files = [kohya_lora(seed=seed) for seed in range(4)]
    loras = await asyncio.gather(*(backend.upload(data, "Ink") for data in files))
    assert {lora["name"] for lora in loras} == {"Ink", "Ink (2)", "Ink (3)", "Ink (4)"}


async def test_a_content_may_name_its_loras(backend: Backend, database_url: URL) -> None:
    lora = await backend.upload(kohya_lora(), "Line Art")
    content = await backend.generate(loras=[{"name": "line_art", "scale": 0.5}])
    assert [(use["lora_model_id"], use["scale"]) for use in content["loras"]] == [(lora["id"], 0.5)]
    wrong = await backend.generate(404, loras=[{"name": "line arts"}])
    assert (wrong["field"], "Line Art" in wrong["detail"]) == ("loras[0].name", True)
    for use in ({}, {"name": "Line Art", "lora_model_id": lora["id"]}):
        assert (await backend.generate(422, loras=[use]))["field"].startswith("loras[0]")
    both = [{"name": "Line Art"}, {"lora_model_id": lora["id"]}]
    assert "twice" in (await backend.generate(422, loras=both))["detail"]
    other = await add_key(database_url, "other")
    unseen = await backend.generate(404, loras=[{"name": "Line Art"}], headers=other)
    assert "Near" not in unseen["detail"]
