"""Malformed, hostile and foreign files: refused by the parser before any weight is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdxl_contract.errors import ErrorCode, LoraLoadFailed
from sdxl_contract.lora.layout import lay_out
from sdxl_contract.lora.safetensors import read_header
from sdxl_worker.lora import ParsedLora, parse_lora
from testkit.loras.making import Rig, lora_file, save
from testkit.loras.malformed import Case, bad_values, corpus
from testkit.loras.plain_bytes import raw


@pytest.fixture(scope="module")
def cases(rig: Rig) -> list[Case]:
    return [*corpus(rig.targets.shapes), *bad_values(rig.targets.shapes)]


def test_every_file_of_the_corpus_is_refused_and_no_weight_is_touched(
    rig: Rig, cases: list[Case]
) -> None:
    assert len(cases) >= 100
    wrong = []
    for case in cases:
        with pytest.raises(LoraLoadFailed) as caught:
            parse_lora(case.data, rig.targets)
        details = caught.value.details or {}
        if caught.value.code is not ErrorCode.LORA_LOAD_FAILED or (
            case.reason and details.get("reason") != case.reason
        ):
            wrong.append((case.name, case.reason, details, caught.value.message))
    assert not wrong
    assert rig.is_pristine()
    rig.patcher.verify_full()


def test_refusing_allocates_no_more_than_the_file(rig: Rig, cases: list[Case]) -> None:
    """Bombs included: megabytes of factors that would multiply to terabytes."""
    before = _resident()
    for case in cases:
        with pytest.raises(LoraLoadFailed):
            parse_lora(case.data, rig.targets)
    assert _resident() - before < 64 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_path_is_read_like_bytes(rig: Rig, tmp_path: Path) -> None:
    data = save(lora_file(rig.model, "lora", share=0.05))
    path = tmp_path / "mine.SAFETENSORS"
    path.write_bytes(data)
    from_path, from_bytes = parse_lora(path, rig.targets), parse_lora(data, rig.targets)
    assert from_path.sha256 == from_bytes.sha256
    named = parse_lora(path, rig.targets, sha256=from_bytes.sha256.upper())
    assert named.sha256 == from_bytes.sha256
    with rig.patcher.applied([(from_path, 1.0)]):
        assert rig.patcher.apply([(from_bytes, 1.0)]).tensors_written == 0
    # What was read is the file as it was: changing it afterwards changes nothing.
    lora = parse_lora(path, rig.targets)
    path.write_bytes(b"\xff" * len(data))
    assert all(
        torch.equal(lora.layers[name].tensors[slot], tensor)
        and torch.equal(named.layers[name].tensors[slot], tensor)
        for name, layer in from_bytes.layers.items()
        for slot, tensor in layer.tensors.items()
    )


def test_a_pickle_is_refused_whatever_its_name(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "innocent.safetensors"
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(LoraLoadFailed, match="PyTorch checkpoint"):
        parse_lora(path, rig.targets)


def test_changing_the_bytes_handed_in_does_not_change_the_lora(rig: Rig) -> None:
    data = bytearray(save(lora_file(rig.model, "lora", share=0.05)))
    lora = parse_lora(data, rig.targets)
    expected = parse_lora(bytes(data), rig.targets)
    data[-1000:] = bytes(1000)
    for name, layer in expected.layers.items():
        for slot, tensor in layer.tensors.items():
            assert torch.equal(lora.layers[name].tensors[slot], tensor)


def test_bytes_that_are_given_away_are_the_lora_s_own_memory(rig: Rig) -> None:
    made = lora_file(rig.model, "lora", share=0.05)
    data = bytearray(save(made))
    expected = parse_lora(bytes(data), rig.targets)
    lora = parse_lora(data, rig.targets, given_away=True)
    first = torch.frombuffer(data, dtype=torch.uint8).data_ptr()

    def is_within(one: ParsedLora) -> set[bool]:
        return {
            first <= tensor.data_ptr() < first + len(data)
            for layer in one.layers.values()
            for tensor in layer.tensors.values()
        }

    assert is_within(lora) == {True}
    # Control: else they are copied, also where they lie at odd addresses or may not be written.
    end = 8 + int.from_bytes(data[:8], "little")
    odd = bytearray(raw(bytes(data[8:end]) + b" ", bytes(data[end:])))
    assert is_within(parse_lora(data, rig.targets)) == {False}
    assert is_within(parse_lora(bytes(data), rig.targets, given_away=True)) == {False}
    first = torch.frombuffer(odd, dtype=torch.uint8).data_ptr()
    copied = parse_lora(odd, rig.targets, given_away=True)
    assert is_within(copied) == {False}
    for found in (lora, copied, lora.to("cpu", torch.clone), copied.to("cpu", torch.clone)):
        assert found.nbytes >= sum(tensor.nbytes for tensor in made.values() if tensor.ndim)
        for name, layer in expected.layers.items():
            for slot, tensor in layer.tensors.items():
                assert torch.equal(found.layers[name].tensors[slot], tensor)
                assert found.layers[name].tensors[slot].is_contiguous()
            assert found.layers[name].bound == layer.bound  # of the largest of all values


@pytest.mark.parametrize("given_away", [False, True])
def test_what_is_not_finite_is_refused_wherever_the_bytes_lie(rig: Rig, given_away: bool) -> None:
    made = lora_file(rig.model, "lora", share=0.05)
    name = next(name for name in made if name.endswith("lora_up.weight"))
    made[name] = made[name].clone()
    made[name].view(-1)[-1] = float("nan")
    with pytest.raises(LoraLoadFailed, match="NaN"):
        parse_lora(bytearray(save(made)), rig.targets, given_away=given_away)


def test_a_bias_that_the_model_lacks_is_refused(rig: Rig) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    with pytest.raises(LoraLoadFailed, match="bias"):
        parse_lora(save({f"{stem}.diff_b": torch.ones(64)}), rig.targets)


def test_tensors_at_odd_addresses_are_read(rig: Rig) -> None:
    """A one-byte stray first puts every following tensor between its natural addresses."""

    good = lora_file(rig.model, "lora", share=0.05, alpha=None)
    header, data = {"stray": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\x01"
    for name, tensor in good.items():
        body = tensor.numpy().tobytes()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(body)]}  # fmt: skip
        data += body
    odd = parse_lora(raw(json.dumps(header).encode(), data), rig.targets)
    plain = parse_lora(save(good), rig.targets)
    assert odd.strays == ("stray",)
    for name, layer in plain.layers.items():
        for slot, tensor in layer.tensors.items():
            assert torch.equal(odd.layers[name].tensors[slot], tensor)


def test_a_file_of_28_gigabytes_is_refused_by_its_header(rig: Rig, tmp_path: Path) -> None:
    """A sparse one: it takes no disk, and reading it would take all memory."""
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
    size = 2 * 7 * (2**31 - 1)
    entry = {"dtype": "F16", "shape": [2**31 - 1, 7], "data_offsets": [0, size]}
    header = json.dumps({name: entry}).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(raw(header))
        file.truncate(8 + len(header) + size)
    before = _resident()
    with pytest.raises(LoraLoadFailed, match="bytes long") as caught:
        parse_lora(path, rig.targets)
    assert (caught.value.details or {})["reason"] == "too_large"
    with path.open("rb") as file, pytest.raises(LoraLoadFailed, match="lacks lora_up"):
        lay_out(
            read_header(file, path.stat().st_size), rig.targets.shapes, rig.targets.key_map, "it"
        )
    assert _resident() - before < 64 << 20
