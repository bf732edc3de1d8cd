"""Where requests meet: a key for each set of LoRAs, and its order of preference over workers."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from sdxl_contract.request import GenerateRequest
from sdxl_contract.routing.affinity import lora_key, preference, session_id

ONE, OTHER = ({"url": f"https://bucket.example/{n}?sig=1&sv=2"} for n in "ab")


def request(*loras: dict[str, Any], **fields: Any) -> GenerateRequest:
    return GenerateRequest(prompt="x", loras=list(loras), **fields)


def test_every_worker_is_preferred_alike_and_losing_one_moves_only_its_own() -> None:
    names = [f"worker-{n}" for n in range(5)]
    keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(2000)]
    first = {key: preference(key, names)[0] for key in keys}

    counts = [list(first.values()).count(name) for name in names]
    assert min(counts) > 300
    left = {key: preference(key, names[1:])[0] for key in keys}
    assert all(left[key] == first[key] for key in keys if first[key] != names[0])


@pytest.mark.parametrize("decide", [lora_key, session_id])
def test_a_key_is_the_set_of_loras_whatever_their_signatures_order_and_scales(decide: Any) -> None:
    anew = {"url": "https://bucket.example/a?sig=new&sv=2", "scale": 0.4}

    assert decide(request(ONE, OTHER)) == decide(request(OTHER, ONE))
    assert decide(request(ONE)) == decide(request(anew))
    assert decide(request(ONE)) != decide(request(OTHER))
    assert decide(request()) is None


def test_a_hash_names_a_lora_wherever_it_lies() -> None:
    digest = "a" * 64
    places = [{"url": f"https://{n}.example/x", "sha256": digest} for n in "ab"]

    assert lora_key(request(places[0])) == lora_key(request(places[1])) == digest


def test_what_is_sent_names_nobody_s_bucket() -> None:
    sent = session_id(request(ONE)) or ""

    assert len(sent) == 32
    assert "bucket" not in sent
