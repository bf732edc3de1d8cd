"""The header reader meets anything: it answers with an inspection or a clean refusal.

`LORA_FUZZ_SECONDS=600 pytest contract/tests/test_lora_header_fuzz.py` fuzzes for ten minutes;
without it, some hundred examples per strategy.
"""

from __future__ import annotations

import io
import json
import os
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.header import inspect_lora_file
from sdxl_contract.lora.header_json import split_at_once, split_by_hand
from sdxl_contract.lora.modules import KeyMap
from sdxl_contract.lora.safetensors import _entry
from sdxl_contract.lora.spelling import Slot
from sdxl_contract.lora.topology import family_modules
from testkit.loras.malformed import STEM, corpus, plain
from testkit.loras.plain_bytes import SIZES, build, raw

MODULES = {n: s for n, s in family_modules("sdxl").items() if ".1.attentions.0" in n or "conv" in n}
SIGNATURES = [
    BaseModelSignature(
        name="sdxl", family="SDXL", cross_attention_dim=2048,
        text_encoder_hidden_sizes=(768, 1280), modules=MODULES,
    ),
    BaseModelSignature(
        name="demo", family="SDXL", cross_attention_dim=96, text_encoder_hidden_sizes=(32, 64)
    ),
]  # fmt: skip
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def survives(data: bytes, size: int | None = None) -> bool:
    """Whether `data` is accepted; anything but a clean refusal propagates."""
    accepted = False
    check_both_ways(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for signature in SIGNATURES:
        try:
            found = inspect_lora_file(
                io.BytesIO(data), len(data) if size is None else size, signature
            )
        except LoraLoadFailed as refusal:
            check(refusal)
        else:
            accepted = True
            found.model_dump_json().encode()
    return accepted


def check_both_ways(header: bytes) -> None:
    """What is read at once is read so by hand, too."""
    at_once = split_at_once(header) if header.startswith(b"{") else None
    if at_once is not None:
        try:
            by_hand = split_by_hand(header)
        except LoraLoadFailed:
            # Of an entry that is too long to be one: whoever looks at it refuses it.
            with pytest.raises(LoraLoadFailed):
                for name, entry in at_once[0].items():
                    _entry(name, entry)
            return
        assert by_hand[1] == at_once[1]
        assert in_ascii(by_hand[0]) == in_ascii(at_once[0])


def in_ascii(entries: dict[str, Any]) -> dict[str, Any]:
    """Without the entries that hold anything else, which are refused whichever way they are
    spelled."""
    return {
        name: entry if json.dumps(entry, ensure_ascii=False).isascii() else None
        for name, entry in entries.items()
    }


def check(refusal: LoraLoadFailed) -> None:
    """A clean refusal: a reason, and a message that can be shown and sent."""
    assert refusal.message.isprintable()
    assert refusal.details is not None
    assert refusal.details["reason"]
    json.dumps(refusal.body().model_dump(mode="json")).encode()


STEMS = [*(f"lora_unet_{name[5:].replace('.', '_')}" for name in MODULES), *MODULES, "bundle_emb"]
KEYS = st.builds(
    lambda stem, dot, slot, weight: f"{stem}{dot}{slot}{weight}",
    st.sampled_from(STEMS) | st.text(max_size=20),
    st.sampled_from([".", "_", ""]),
    st.sampled_from([slot.value for slot in Slot] + ["lora_A", "lora_B.default", "w_norm", "x"]),
    st.sampled_from(["", ".weight"]),
)
SHAPES = st.lists(
    st.sampled_from([1, 2, 4, 8, 64, 640, 1280, 2048]) | st.integers(1, 9), max_size=5
)
SPECS = st.dictionaries(KEYS, st.tuples(st.sampled_from(list(SIZES)), SHAPES), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=20,
)
METADATA = st.dictionaries(
    st.sampled_from(
        ["ss_tag_frequency", "lora_adapter_metadata", "modelspec.trigger_phrase", "ss_output_name"]
    ),
    st.text(max_size=40) | JSON.map(json.dumps),
    max_size=3,
)


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    survives(data)


@QUICK
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_any_length_field(data: bytes, length: int) -> None:
    survives(length.to_bytes(8, "little") + data)


@QUICK
@given(JSON, st.integers(0, 64))
def test_any_json_header(header: Any, data: int) -> None:
    survives(raw(json.dumps(header).encode(), bytes(data)))
    survives(raw(json.dumps({STEM: header, "__metadata__": header}).encode(), bytes(data)))


@QUICK
@given(SPECS, METADATA)
def test_any_tensors_in_any_shapes(spec: dict[str, tuple[str, list[int]]], meta: Any) -> None:
    total = sum(SIZES[dtype] * _product(shape) for dtype, shape in spec.values())
    if total > 1 << 22:
        # The data is never read: a size that is merely claimed does as well.
        data = build(
            {name: (dtype, tuple(shape)) for name, (dtype, shape) in spec.items()}, meta, b""
        )
        survives(data, len(data) + total)
    else:
        survives(build({name: (d, tuple(s)) for name, (d, s) in spec.items()}, meta))


def _product(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


@QUICK
@given(st.data())
def test_a_good_file_with_some_bytes_changed(data: st.DataObject) -> None:
    whole = bytearray(build(plain(STEM, (640, 640), rank=1), {"ss_output_name": "x"}))
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header - 1))
        whole[position] = data.draw(st.integers(0, 255))
    survives(bytes(whole))


def test_the_unchanged_file_is_accepted() -> None:
    good = build(plain(STEM, (640, 640), rank=1))
    assert survives(good)
    assert split_at_once(good[8 : 8 + int.from_bytes(good[:8], "little")]) is not None
    assert KeyMap(MODULES).resolve(STEM) is not None


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": 1} x',
        b'{"\xff": 1}',
        b'{"a": "\n"}',
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": {"a": "b"}, "__metadata__": {}}',
        b'{"__metadata__": []}',
        b'{"' + b"a" * 1025 + b'": 1}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": "' + b"b" * (1 << 20) + b'"}',
        '{"a": 1}'.encode("utf-16"),
    ],
    ids=lambda header: header[:24],
)
def test_what_is_unusual_is_left_to_reading_by_hand(header: bytes) -> None:
    assert split_at_once(header) is None


@pytest.mark.skipif("LORA_FUZZ_SECONDS" not in os.environ, reason="set LORA_FUZZ_SECONDS to run")
@pytest.mark.timeout(0)
def test_mutations_of_the_corpus_for_as_long_as_asked() -> None:
    """Cuts, flips, insertions and splices of malformed and good headers."""
    seconds = float(os.environ["LORA_FUZZ_SECONDS"])
    chance = random.Random(int(os.environ.get("LORA_FUZZ_SEED", "0")))
    seeds = [case.data for case in corpus(family_modules("sdxl")) if len(case.data) < 1 << 16]
    seeds += [build(plain(STEM, (640, 640), rank=1), {"ss_output_name": "x"})]
    until, runs = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        survives(_mutated(chance, seeds))
        runs += 1
    print(f"{runs} files in {seconds:.0f} s")


def _mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    tokens = [b'"', b"[", b"]", b"{", b"}", b":", b",", b"-1", b"1e9", b"null", b"true", b"NaN"]
    tokens += [b"\\ud800", b"F16", b"data_offsets", b"__metadata__", b".alpha", b"9" * 20]
    for _ in range(chance.randint(1, 6)):
        position = chance.randrange(len(data) + 1) if data else 0
        if chance.random() < 0.7:
            position = min(position, 400)
        match chance.randrange(5):
            case 0:
                del data[position : position + chance.randint(1, 8)]
            case 1:
                data[position:position] = chance.choice(tokens)
            case 2 if position < len(data):
                data[position] ^= 1 << chance.randrange(8)
            case 3:
                other = chance.choice(seeds)
                data[position:] = other[chance.randrange(len(other) + 1) :][: 1 << 12]
            case _:
                data[position:position] = bytes(chance.randrange(256) for _ in range(4))
    if chance.random() < 0.7 and len(data) > 8:
        # Mostly keep the length right, or nothing beyond the first check would be reached.
        brace = data.rfind(b"}", 8, 1 << 16)
        if brace > 0:
            data[:8] = (brace - 7).to_bytes(8, "little")
    return bytes(data)
