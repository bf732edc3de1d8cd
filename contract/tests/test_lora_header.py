"""What the header's inspection says of a file, without torch and without the weights."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from sdxl_contract.errors import ErrorCode, LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.header import LoraInspection, inspect_lora_file
from sdxl_contract.lora.safetensors import read_header, shown
from sdxl_contract.lora.topology import FAMILIES, family_modules
from sdxl_contract.lora.trigger_words import MAX_TRIGGER_WORDS, trigger_words
from testkit.growth import grows_in_line, seconds
from testkit.loras.malformed import LINEAR, STEM, Case, corpus, plain
from testkit.loras.plain_bytes import build, raw

SDXL = BaseModelSignature(
    name="stable-diffusion-xl-base-1.0",
    family="SDXL",
    cross_attention_dim=2048,
    text_encoder_hidden_sizes=(768, 1280),
)
EXACT = SDXL.model_copy(update={"modules": family_modules("sdxl")})
CASES = corpus(family_modules("sdxl"))


def inspect(data: bytes, signature: BaseModelSignature = SDXL) -> LoraInspection:
    return inspect_lora_file(io.BytesIO(data), len(data), signature)


def kohya(
    family: str, rank: int = 8, endings: tuple[str, ...] = ("to_k", "to_v")
) -> dict[str, Any]:
    """A LoRA for a built-in family, in its diffusers names."""
    spec: dict[str, Any] = {}
    for name, shape in family_modules(family).items():
        if name.startswith("unet.") and name.endswith(endings):
            spec |= plain("lora_unet_" + name[5:].replace(".", "_"), shape, rank)
    return spec


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("signature", [SDXL, EXACT], ids=["widths", "modules"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_malformed_file_is_refused_for_its_reason(
    case: Case, signature: BaseModelSignature
) -> None:
    with pytest.raises(LoraLoadFailed) as caught:
        inspect(case.data, signature)
    error = caught.value
    assert error.code is ErrorCode.LORA_LOAD_FAILED
    assert error.details is not None
    if case.reason:
        assert error.details["reason"] == case.reason, error.message
    assert case.says in error.message
    # The message goes into JSON and onto a page: short, valid and printable.
    assert len(error.message) < 600
    assert error.message.isprintable()
    json.dumps(error.body().model_dump(mode="json"), ensure_ascii=False).encode()


@pytest.mark.long
def test_refusing_needs_little_memory() -> None:
    tracemalloc.start()
    for case in CASES:
        with pytest.raises(LoraLoadFailed):
            inspect(case.data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20


@pytest.mark.parametrize("signature", [SDXL, EXACT], ids=["widths", "modules"])
def test_a_lora_that_fits_is_described(signature: BaseModelSignature) -> None:
    metadata = {
        "ss_output_name": "hero",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_tag_frequency": json.dumps({"10_hero": {"hero woman": 40, "smiling": 12}}),
        "ss_network_module": "networks.lora",
        "private_path": "/home/someone",
    }
    found = inspect(build(kohya("sdxl"), metadata), signature)
    assert (found.base_model, found.algorithm, found.format) == ("SDXL", "lora", "kohya")
    assert (found.rank, found.modules, found.text_encoder) == (8, 280, False)
    assert found.trigger_words == ["hero woman"]
    assert found.metadata["ss_output_name"] == "hero"
    assert "private_path" not in found.metadata
    assert found.dtype == "F16"
    assert found.parameters == sum(
        8 * sum(shape) for name, shape in family_modules("sdxl").items()
        if name.endswith(("to_k", "to_v"))
    )  # fmt: skip


def test_a_text_encoder_lora_says_so() -> None:
    spec = plain("lora_te2_text_model_encoder_layers_31_self_attn_q_proj", (1280, 1280))
    assert inspect(build(spec)).text_encoder


def test_strays_are_listed_and_do_not_refuse_a_file() -> None:
    spec = kohya("sdxl") | {"bundle_emb.hero.clip_l": ("F16", (2, 768)), "step": ("I64", ())}
    assert inspect(build(spec)).strays == ["bundle_emb.hero.clip_l", "step"]


@pytest.mark.parametrize(("family", "name"), [(key, f.name) for key, f in FAMILIES.items()])
def test_a_lora_of_another_family_is_named(family: str, name: str) -> None:
    data = build(kohya(family))
    if family == "sdxl":
        assert inspect(data).base_model == name
        return
    with pytest.raises(LoraLoadFailed) as caught:
        inspect(data)
    assert caught.value.details is not None
    assert caught.value.details["seems"] == name
    assert f"seems to be for {name}" in caught.value.message


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl-refiner"])
def test_without_any_cross_attention_the_family_is_still_named(family: str) -> None:
    data = build(kohya(family, endings=("ff.net.2", "attn1.to_q")))
    with pytest.raises(LoraLoadFailed, match=r"SD 1|SD 2|SDXL refiner|SDXL"):
        inspect(data)


def test_text_encoder_widths_alone_tell_sdxl() -> None:
    spec = plain("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", (768, 768))
    spec |= plain("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (1280, 1280))
    other = SDXL.model_copy(
        update={"cross_attention_dim": 96, "text_encoder_hidden_sizes": (32, 64)}
    )
    with pytest.raises(LoraLoadFailed, match="seems to be for SDXL"):
        inspect(build(spec), other)


def test_the_loaded_model_s_own_modules_decide() -> None:
    """A model with other widths, such as a small demo one, works by the same rule."""
    small = BaseModelSignature(
        name="demo",
        family="SDXL",
        cross_attention_dim=96,
        text_encoder_hidden_sizes=(32, 64),
        modules={LINEAR: (48, 48)},
    )
    assert inspect(build(plain(STEM, (48, 48))), small).modules == 1
    with pytest.raises(LoraLoadFailed, match="does not fit demo"):
        inspect(build(kohya("sdxl")), small)
    # Its modules unknown: the widths must do.
    by_widths = small.model_copy(update={"modules": {}})
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert inspect(build(plain(key, (48, 96))), by_widths).rank == 4
    with pytest.raises(LoraLoadFailed, match="does not fit demo"):
        inspect(build(plain(key, (48, 2048))), by_widths)


@pytest.mark.parametrize(
    ("tensors", "algorithm"),
    [
        ({"hada_w1_a": (640, 4), "hada_w1_b": (4, 640), "hada_w2_a": (640, 4),
          "hada_w2_b": (4, 640)}, "loha"),
        ({"lokr_w1": (8, 8), "lokr_w2": (80, 80)}, "lokr"),
        ({"lora_down.weight": (4, 640), "lora_up.weight": (640, 4), "dora_scale": (1, 640)},
         "dora"),
        ({"diff": (640, 640)}, "full"),
    ],
)  # fmt: skip
def test_the_algorithm_is_named(tensors: dict[str, tuple[int, ...]], algorithm: str) -> None:
    spec = {f"{STEM}.{part}": ("BF16", shape) for part, shape in tensors.items()}
    assert inspect(build(spec)).algorithm == algorithm


def test_original_block_names_are_read() -> None:
    spec = plain("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", (640, 640))
    assert inspect(build(spec)).format == "kohya-sgm"


def test_only_the_header_is_read() -> None:
    class Refuses(io.BytesIO):
        limit = 0

        def read(self, count: int | None = -1, /) -> bytes:
            assert count is not None
            assert self.tell() + count <= self.limit
            return super().read(count)

    data = build(kohya("sdxl"))
    file = Refuses(data)
    file.limit = 8 + int.from_bytes(data[:8], "little")
    inspect_lora_file(file, len(data), SDXL)


def test_a_file_that_yields_few_bytes_at_a_time_is_read_whole() -> None:
    class Slow(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            return super().read(min(3, count or 0))

    data = build(plain(STEM, (640, 640)))
    assert read_header(Slow(data), len(data)).size == len(data)


def test_trigger_words_come_from_the_phrase_first_and_survive_nonsense() -> None:
    tags = json.dumps({"a": {"hero": 10, "red hair": 9, "tree": 1}, "b": {"hero": 3}, "c": 7})
    metadata = {"modelspec.trigger_phrase": "Hero, in armour", "ss_tag_frequency": tags}
    assert trigger_words(metadata) == ["Hero", "in armour", "red hair"]
    many = metadata | {"ss_dataset_dirs": json.dumps({"a": {"img_count": 40}, "b": 7})}
    assert trigger_words(many) == ["Hero", "in armour"]
    for nonsense in ("", "[]", "{", "[" * 100_000, '{"a": {"b": "c"}}', '{"a": {"b": -1}}', "7"):
        assert trigger_words({"ss_tag_frequency": nonsense}) == []
        assert trigger_words({"ss_dataset_dirs": nonsense}) == []
    assert trigger_words({"modelspec.trigger_phrase": "\x1b[31m" + "x" * 500})[0].startswith("?")


def test_shown_names_are_safe_to_print() -> None:
    assert shown("a\nb\x1b\ud800") == "a?b??"
    assert len(shown("x" * 500)) == 120


def test_inspecting_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, sdxl_contract.lora.header;"
        "assert not {'torch', 'numpy', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_text_encoder_s_layers_are_not_taken_for_a_language_model_s() -> None:
    stem = "text_encoder.text_model.encoder.layers.77.self_attn.q_proj"
    with pytest.raises(LoraLoadFailed) as caught:
        inspect(build(plain(stem, (768, 768))))
    assert "language" not in caught.value.message
    with pytest.raises(LoraLoadFailed, match="a language model"):
        inspect(build(plain("base_model.model.model.layers.0.mlp.up_proj", (64, 64))))


@pytest.mark.slow
def test_a_hundred_thousand_alpha_patterns_cost_no_time_per_layer() -> None:
    layers = kohya("sdxl", endings=("to_q", "to_k", "to_v", "to_out.0"))

    def seconds_of(layers: dict[str, Any]) -> float:
        patterns = {"unet.alpha_pattern": {f"layer_{number}": 1 for number in range(100_000)}}
        stated = {"lora_adapter_metadata": json.dumps(patterns | {"unet.lora_alpha": 4})}
        data = build(layers, stated)
        return min(seconds(lambda: inspect(data)) for _ in range(2))

    # The patterns are read once: hundreds of layers cost little more than two of them.
    few = dict(list(layers.items())[:6])
    assert len(layers) > 100 * len(few)
    assert seconds_of(layers) < 10 * seconds_of(few)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        (lambda n: {"modelspec.trigger_phrase": ",".join(f"word{i}" for i in range(n))}, 800_000),
        (
            lambda n: {"ss_tag_frequency": json.dumps({"a": {f"tag {i}": 1 for i in range(n)}})},
            100_000,
        ),
        (
            lambda n: {"ss_tag_frequency": json.dumps({f"f{i}": {"t": i} for i in range(n)})},
            90_000,
        ),
        (lambda n: {"ss_dataset_dirs": "[" * n}, 4_000_000),
        (lambda n: {"ss_tag_frequency": '{"a":' * n}, 900_000),
    ],
    ids=["phrase", "tags", "folders", "lists", "depth"],
)
def test_trigger_words_take_time_in_line_with_the_metadata(
    metadata: Callable[[int], dict[str, str]], size: int
) -> None:
    def prepare(n: int) -> Callable[[], object]:
        made = metadata(n)
        return lambda: trigger_words(made)

    assert len(trigger_words(metadata(size))) <= MAX_TRIGGER_WORDS
    assert grows_in_line(prepare, size // 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_{}_" + "down_blocks_0_" * 20 + ".lora_down.weight",
        "{}." + "blocks_1_" * 30 + ".alpha",
        "down_blocks.{}" + ".a" * 130 + ".weigh",
    ],
)
def test_thousands_of_odd_names_are_refused_in_time_in_line_with_their_number(name: str) -> None:
    def prepare(names: int) -> Callable[[], None]:
        data = build({name.format(n): ("F16", (1,)) for n in range(names)})

        def refused() -> None:
            with pytest.raises(LoraLoadFailed):
                inspect(data, EXACT)

        return refused

    inspect(build(kohya("sdxl")), EXACT)  # tables that are built once
    assert grows_in_line(prepare, 10_000 // 8)


def test_a_dtype_that_is_no_text_is_refused_however_deep_it_is() -> None:
    for dtype in (["F16"] * 9, {"a": 1}, None, 7):
        header = {STEM: {"dtype": dtype, "shape": [1], "data_offsets": [0, 2]}}
        with pytest.raises(LoraLoadFailed, match="dtype"):
            inspect(raw(json.dumps(header).encode(), bytes(2)))


@pytest.mark.slow
def test_a_header_of_the_format_s_bound_takes_little_more_memory_than_itself() -> None:
    # One value that nobody reads, beyond ASCII: as text it would take four times its bytes.
    value = "\U0001f600" * (15 << 20)
    header: dict[str, Any] = {"__metadata__": {"ss_tag_frequency": value, "ss_output_name": "hero"}}
    header |= json.loads(build(kohya("sdxl"))[8:].partition(b"}}")[0] + b"}}")
    data = raw(json.dumps(header, ensure_ascii=False).encode())
    size = len(data) + max(entry["data_offsets"][1] for n, entry in header.items() if "." in n)
    del header, value
    tracemalloc.start()
    found = read_header(io.BytesIO(data), size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(data) > 60 << 20
    assert found.metadata == {"ss_output_name": "hero"}
    assert peak < 1.5 * len(data)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"{STEM}.boft_blocks", "BOFT"),
        (f"{STEM}.boftR.weight", "BOFT"),
        (f"{STEM}.oft_diag", "OFT"),
        (f"{STEM}.oft_r", "OFT"),
        (f"{STEM}.oft_R.weight", "OFT"),
        (f"{STEM}.glora_A", "GLoRA"),
        (f"{STEM}.bm.weight", "GLoRA"),
        (f"{STEM}.b2", "GLoRA"),
        (f"{STEM}.on_input", "IA³"),
        ("x.lora_controlnet", "ControlLoRA"),
        ("controlnet_lora.x", "ControlLoRA"),
        (f"{STEM}.p_layer.weight", "T-LoRA"),
        (f"{STEM}.lambda_layer", "T-LoRA"),
        ("base_model.model.x.vera_lambda_b", "PEFT"),
        ("base_model.model.x.pvera_lambda_b", "PEFT"),
        ("base_model.model.x.lora_embedding_B.default", "PEFT"),
        ("base_model.model.x.tinylora_v", "PEFT"),
        ("ip_adapter.1.x", "IP-Adapter"),
        ("x.to_v_ip.weight", "IP-Adapter"),
        ("zero_convs.0.weight", "ControlNet"),
        ("control_model.x", "ControlNet"),
        ("input_hint_block.0.weight", "ControlNet"),
        ("x.motion_module.y", "AnimateDiff"),
    ],
)
def test_an_adapter_of_another_kind_is_known_by_any_of_its_names(key: str, says: str) -> None:
    """Also by one alone among a good LoRA's."""
    spec = kohya("sdxl") | {key: ("F16", (8, 8))}
    with pytest.raises(LoraLoadFailed, match=says) as caught:
        inspect(build(spec))
    assert caught.value.details is not None
    assert caught.value.details["reason"] == "unsupported_kind"
