"""Makes the corpus of malformed, hostile and foreign LoRA files, with the refusal each must get.

`python -m testkit.loras.malformed FOLDER` writes them. Files are made for a module table, so that
the same corpus tests the inspection by SDXL's table and the worker's parser by a small model's.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from testkit.loras.plain_bytes import Shape, Spec, build, raw

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
NORM = "unet.down_blocks.1.attentions.0.norm"
STEM = "lora_unet_" + LINEAR[5:].replace(".", "_")
CONV_STEM = "lora_unet_" + CONV[5:].replace(".", "_")
NORM_STEM = "lora_unet_" + NORM[5:].replace(".", "_")


class Case(NamedTuple):
    """One file. `reason` is `details["reason"]` of the refusal; `says` stands in the message."""

    name: str
    data: bytes
    reason: str
    says: str = ""


def entry(text: str, data: bytes = b"\0" * 8) -> bytes:
    """A file whose only entry is `text`, JSON or not."""
    return raw(b'{"a": ' + text.encode() + b"}", data)


def plain(stem: str, shape: Shape, rank: int = 4, dtype: str = "F16") -> dict[str, Any]:
    """A LoRA on one linear layer."""
    return {
        f"{stem}.lora_down.weight": (dtype, (rank, shape[1])),
        f"{stem}.lora_up.weight": (dtype, (shape[0], rank)),
    }


def not_safetensors() -> Iterator[Case]:
    """Files that are something else, whatever their name says."""
    kinds: list[tuple[str, bytes, str]] = [
        ("empty", b"", "empty"),
        ("one_byte", b"\x01", ""),
        ("seven_bytes", b"\x10\0\0\0\0\0\0", ""),
        ("zeros", bytes(64), ""),
        ("ones", b"\xff" * 64, ""),
        ("pickle_2", b"\x80\x02}q\x00." + bytes(40), "pickle"),
        ("pickle_3", b"\x80\x03}q\x00." + bytes(40), "pickle"),
        ("pickle_4", b"\x80\x04\x95\x10" + bytes(40), "pickle"),
        ("pickle_5", b"\x80\x05\x95\x10" + bytes(40), "pickle"),
        ("torch_zip", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(40), "PyTorch"),
        ("zip", b"PK\x03\x04" + bytes(60), "zip"),
        ("gguf", b"GGUF\x03\0\0\0" + bytes(40), "GGUF"),
        ("html", b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        ("html_indented", b"\n\n  <html><head></head></html>", "HTML"),
        ("xml_error", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        ("json_error", b'{"error": "not found", "code": 404}', "JSON"),
        ("git_lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG"),
        ("jpeg", b"\xff\xd8\xff\xe0" + bytes(40), "JPEG"),
        ("webp", b"RIFF\x10\0\0\0WEBP" + bytes(40), "RIFF"),
        ("gzip", b"\x1f\x8b\x08" + bytes(40), "gzip"),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        ("seven_zip", b"7z\xbc\xaf\x27\x1c" + bytes(40), "7z"),
        ("rar", b"Rar!\x1a\x07\x01\0" + bytes(40), "RAR"),
        ("tar", b"lora".ljust(257, b"\0") + b"ustar" + bytes(250), "tar"),
        ("numpy", b"\x93NUMPY\x01\0" + bytes(40), "NumPy"),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        ("elf", b"\x7fELF\x02\x01\x01" + bytes(40), "program"),
        ("script", b"#!/bin/sh\nrm -rf ~\n" + bytes(8), "script"),
        ("text", b"This LoRA was removed by its author.", "text"),
    ]
    for name, data, says in kinds:
        yield Case(name, data, "not_safetensors", says)


def broken_headers() -> Iterator[Case]:
    """Headers that are no header, or name impossible tensors."""
    good = b'{"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}'
    yield Case("header_past_the_end", raw(b"{}")[:8] + b"{", "truncated")
    yield Case("header_length_huge", b"\xff" * 7 + b"\x7f" + b"{" + bytes(40), "header_too_large")
    too_long = struct.pack("<Q", 100_000_001) + b"{" + bytes(40)
    yield Case("header_above_the_format_s_bound", too_long, "header_too_large")
    yield Case("header_of_blanks", raw(b"{" + b" " * (9 << 20) + b"}"), "empty")
    yield Case("header_cut", raw(b'{"a": ' + good + b"}", bytes(8))[:30], "truncated")
    yield Case("not_json", raw(b"{not json at all}"), "header")
    yield Case("list", raw(b"{" + b"]"), "header")
    yield Case("garbage_after_json", raw(b'{"a": ' + good + b"} x", bytes(8)), "header")
    yield Case("two_objects", raw(b"{}{}"), "header")
    yield Case("not_utf8", raw(b'{"\xff\xfe": ' + good + b"}", bytes(8)), "header")
    yield Case("deep", raw(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header")
    yield Case("many_lists", entry("[" + "[]," * 1_000_000 + "[]]"), "header")
    yield Case("many_strings", entry("[" + '"a",' * 1_500_000 + '"a"]'), "header")
    yield Case("number_of_5000_digits", entry("9" * 5000), "header")
    yield Case("nan_constant", entry('{"dtype": "F16", "shape": [NaN], "data_offsets": [0, 8]}'),
               "header")  # fmt: skip
    yield Case("duplicate_tensor", raw(b'{"a": ' + good + b', "a": ' + good + b"}", bytes(8)),
               "duplicate_key")  # fmt: skip
    written = good.decode()
    yield Case("duplicate_by_escape", raw(f'{{"a": {written}, "\\u0061": {written}}}'.encode(),
               bytes(8)), "duplicate_key")  # fmt: skip
    yield Case("metadata_twice", raw(f'{{"__metadata__": {{}}, "a": {written}, "__metadata__": {{}}'
               "}".encode(), bytes(8)), "duplicate_key")  # fmt: skip
    yield Case("metadata_key_twice", raw(f'{{"__metadata__": {{"x": "1", "x": "2"}}, "a": {written}'
               "}".encode(), bytes(8)), "duplicate_key")  # fmt: skip
    yield Case("metadata_null", raw(f'{{"__metadata__": null, "a": {written}}}'.encode(), bytes(8)),
               "metadata")  # fmt: skip
    for name, text, reason in (
        (
            "raw_newline_in_metadata",
            f'{{"__metadata__": {{"x": "a\nb"}}, "a": {written}}}',
            "header",
        ),
        ("bad_escape_in_metadata", f'{{"__metadata__": {{"x": "\\q"}}, "a": {written}}}', "header"),
        ("bad_unicode_escape", f'{{"__metadata__": {{"x": "\\u12g4"}}, "a": {written}}}', "header"),
        (
            "metadata_never_ends",
            f'{{"a": {written}, "__metadata__": {{"x": "' + "y" * 5000,
            "header",
        ),
        (
            "metadata_comma_missing",
            f'{{"__metadata__": {{"x": "1" "y": "2"}}, "a": {written}}}',
            "header",
        ),
        ("comma_at_the_end", f'{{"a": {written},}}', "header"),
        ("comma_missing", f'{{"a": {written} "b": {written}}}', "header"),
        ("colon_missing", f'{{"a" {written}}}', "header"),
        ("key_without_quotes", f"{{a: {written}}}", "header"),
        ("name_of_a_megabyte", '{"' + "a" * 2**20 + f'": {written}}}', "tensor_name"),
        ("entry_of_a_megabyte", '{"a": {' + " " * 2**20 + written[1:] + "}", "header"),
        (
            "pairs_without_end",
            '{"__metadata__": {'
            + ",".join(f'"{n}": ""' for n in range(100_001))
            + f'}}, "a": {written}}}',
            "header",
        ),
        (
            "alphas_too_long_to_read",
            '{"__metadata__": {"lora_adapter_metadata": "'
            + "x" * (17 << 20)
            + f'"}}, "a": {written}}}',
            "metadata",
        ),
        ("byte_order_mark", f'\ufeff{{"a": {written}}}', "not_safetensors"),
        ("blanks_before", f'  {{"a": {written}}}', "not_safetensors"),
        ("nul_padding", f'{{"a": {written}}}\0\0\0', "header"),
        ("half_a_surrogate_in_metadata", '{"__metadata__": {"x": "\\ud800"}}', "empty"),
    ):
        yield Case(name, raw(text.encode(), bytes(8)), reason)
    for length in (0, 1):
        yield Case(f"header_of_{length}_bytes", struct.pack("<Q", length) + b"{}", "truncated")
    yield Case("header_length_all_ones", b"\xff" * 8 + b"{}" + bytes(40), "header_too_large")
    yield Case("deep_objects", raw(b'{"a": ' * 50_000 + b"1" + b"}" * 50_000), "header")
    yield Case("name_zero_width", build({"lora\u200bunet": ("F16", (4,))}), "tensor_name")
    yield Case("duplicate_field", entry('{"dtype": "F16", "shape": [4], "shape": [2, 2], '
               '"data_offsets": [0, 8]}'), "duplicate_key")  # fmt: skip
    yield Case("no_tensors", raw(b"{}"), "empty")
    yield Case("metadata_only", raw(b'{"__metadata__": {"format": "pt"}}'), "empty")
    one = {"a": ("F16", (4,))}
    yield Case("metadata_number", build(one, {"rank": 4}), "metadata")
    yield Case("metadata_list", build(one, ["a"]), "metadata")
    yield Case("metadata_nested", build(one, {"a": {"b": "c"}}), "metadata")
    many = {f"lora_unet_{number}.alpha": ("F16", ()) for number in range(20_001)}
    yield Case("too_many_tensors", build(many), "too_many_tensors")
    for name, key in (
        ("name_empty", ""),
        ("name_long", "a" * 2000),
        ("name_newline", "lora_unet\nx"),
        ("name_escape", "lora\x1b[31m"),
        ("name_lone_surrogate", "\ud800"),
        ("name_right_to_left", "lora\u202egpj.weight"),
        ("name_nul", "a\0b"),
    ):
        yield Case(name, build({key: ("F16", (4,))}), "tensor_name")
    # name: dtype, shape and offsets as JSON, and the reason.
    fields = {
        "dtype_unknown": ('"Q4_K"', "[4]", "[0, 8]", "dtype"),
        "dtype_number": ("16", "[4]", "[0, 8]", "dtype"),
        "shape_negative": ('"F16"', "[-4]", "[0, 8]", "shape"),
        "shape_two_negative": ('"F16"', "[-2, -2]", "[0, 8]", "shape"),
        "shape_zero": ('"F16"', "[0]", "[0, 0]", "shape"),
        "shape_exponent": ('"F16"', "[4e0]", "[0, 8]", "shape"),
        "shape_leading_zero": ('"F16"', "[04]", "[0, 8]", "header"),
        "shape_zero_and_huge": ('"F16"', f"[0, {2**62}]", "[0, 0]", "shape"),
        "shape_wraps_to_its_span": ('"F16"', f"[{2**31}, {2**31}, 4, 2]", "[0, 8]", "offsets"),
        "dtype_lower_case": ('"f16"', "[4]", "[0, 8]", "dtype"),
        "dtype_null": ("null", "[4]", "[0, 8]", "dtype"),
        "dtype_four_bits": ('"F4"', "[16]", "[0, 8]", "dtype"),
        "shape_float": ('"F16"', "[4.0]", "[0, 8]", "shape"),
        "shape_bool": ('"F16"', "[true, 4]", "[0, 8]", "shape"),
        "shape_text": ('"F16"', '"4"', "[0, 8]", "shape"),
        "shape_nine": ('"F16"', "[1, 1, 1, 1, 1, 1, 1, 1, 4]", "[0, 8]", "shape"),
        "shape_huge": ('"F16"', f"[{2**40}]", "[0, 8]", "shape"),
        "shape_wraps": ('"F16"', f"[{2**31}, {2**31}, 4]", "[0, 8]", "offsets"),
        "offsets_negative": ('"F16"', "[4]", "[-8, 0]", "offsets"),
        "offsets_reversed": ('"F16"', "[4]", "[8, 0]", "offsets"),
        "offsets_one": ('"F16"', "[4]", "[8]", "offsets"),
        "offsets_float": ('"F16"', "[4]", "[0, 8.0]", "offsets"),
        "offsets_huge": ('"F16"', "[4]", f"[{2**70}, {2**70 + 8}]", "offsets"),
        "span_too_short": ('"F16"', "[4]", "[0, 6]", "offsets"),
        "gap_at_start": ('"F16"', "[2]", "[4, 8]", "offsets"),
    }
    for name, (dtype, shape, offsets, reason) in fields.items():
        text = f'{{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}}}'
        yield Case(name, entry(text), reason)
    no_entries = {
        "entry_number": "5",
        "entry_list": "[1, 2]",
        "entry_null": "null",
        "dtype_missing": '{"shape": [4], "data_offsets": [0, 8]}',
        "field_extra": '{"dtype": "F16", "shape": [4], "data_offsets": [0, 8], "x": 1}',
    }
    for name, text in no_entries.items():
        yield Case(name, entry(text), "header")
    first = '{{"a": {{"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, '
    two = first + '"b": {{"dtype": "F16", "shape": [4], "data_offsets": [{}, {}]}}}}'
    yield Case("overlap", raw(two.format(4, 12).encode(), bytes(12)), "offsets")
    yield Case("alias", raw(two.format(0, 8).encode(), bytes(8)), "offsets")
    yield Case("gap", raw(two.format(12, 20).encode(), bytes(20)), "offsets")
    yield Case("data_truncated", raw(two.format(8, 16).encode(), bytes(15)), "truncated")
    yield Case("data_missing", raw(two.format(8, 16).encode()), "truncated")
    yield Case("bytes_at_end", raw(two.format(8, 16).encode(), bytes(17)), "trailing_bytes")


def foreign_files() -> Iterator[Case]:
    """Good files of another kind, or LoRAs for another model."""
    w = ("F16", (8, 8))
    kinds: dict[str, tuple[Spec, str]] = {
        "oft": ({f"{STEM}.oft_blocks": ("F16", (4, 8, 8)), f"{STEM}.alpha": ("F16", ())}, "OFT"),
        "oft_peft": ({"base_model.model.down_blocks.0.to_q.oft_R.default.weight": w}, "OFT"),
        "boft": ({f"{STEM}.boft_R": ("F16", (2, 4, 8, 8))}, "BOFT"),
        "glora": ({f"{STEM}.{part}.weight": w for part in ("a1", "a2", "b1", "b2")}, "GLoRA"),
        "t_lora": ({f"{STEM}.q_layer.weight": w, f"{STEM}.p_layer.weight": w,
                    f"{STEM}.lambda_layer": ("F16", (1, 8))}, "T-LoRA"),
        "fourier_peft": ({"base_model.model.x.fourierft_spectrum": ("F16", (8,))}, "PEFT adapter"),
        "ia3": ({f"{STEM}.weight": ("F16", (8,)), f"{STEM}.on_input": ("BF16", ())}, "IA³"),
        "ia3_peft": ({"base_model.model.x.ia3_l": ("F16", (8, 1))}, "IA³"),
        "control_lora": ({"lora_controlnet": ("F32", ()), "input_blocks.0.0.weight": w},
                         "ControlLoRA"),
        "controlnet": ({"controlnet_cond_embedding.conv_in.weight": w}, "ControlNet"),
        "lllite": ({"lllite_unet_input_blocks_4_1.conditioning1.0.weight": w}, "LLLite"),
        "ip_adapter": ({"image_proj.proj.weight": w, "ip_adapter.1.to_k_ip.weight": w},
                       "IP-Adapter"),
        "textual_inversion_sdxl": ({"clip_l": ("F16", (2, 768)), "clip_g": ("F16", (2, 1280))},
                                   "textual inversion"),
        "textual_inversion": ({"emb_params": ("F16", (2, 768))}, "textual inversion"),
        "bundle_alone": ({"bundle_emb.x.clip_l": ("F16", (2, 768))}, "textual inversion"),
        "checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": w,
                        "first_stage_model.decoder.conv_in.weight": w}, "full checkpoint"),
        "unet": ({"down_blocks.0.resnets.0.conv1.weight": w}, "full UNet"),
        "vae": ({"encoder.conv_in.weight": w, "decoder.conv_in.weight": w}, "VAE"),
        "motion_module": ({"down_blocks.0.motion_modules.0.lora_down.weight": w}, "AnimateDiff"),
    }  # fmt: skip
    for name, (spec, says) in kinds.items():
        yield Case(name, build(spec), "unsupported_kind", says)

    def lora(*stems: str, inner: int = 64, out: int = 64) -> bytes:
        spec: dict[str, Any] = {}
        for stem in stems:
            spec |= plain(stem, (out, inner))
        return build(spec)

    sd1 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    others: dict[str, tuple[bytes, str]] = {
        "flux_kohya": (lora("lora_unet_double_blocks_0_img_attn_proj"), "Flux"),
        "flux_diffusers": (lora("transformer.single_transformer_blocks.0.attn.to_q"), "Flux"),
        "sd3": (lora("lora_unet_joint_blocks_0_context_block_attn_qkv"), "SD 3"),
        "sd3_diffusers": (lora("transformer.transformer_blocks.0.attn.to_q"), "SD 3"),
        "text_encoder_3": (lora("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), "SD 3"),
        "sd15": (lora(sd1, inner=768, out=320), "SD 1"),
        "sd2": (lora(sd1, inner=1024, out=320), "SD 2"),
        "refiner": (lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", inner=1280,
                         out=768), "SDXL refiner"),
        "wan": (lora("diffusion_model.blocks.0.cross_attn.q"), "Wan"),
        "hunyuan": (lora("diffusion_model.double_blocks.0.txt_attn_qkv"), "HunyuanVideo"),
        "cascade": (lora("lora_prior_unet_down_blocks_0_0_attn"), "Cascade"),
        "language_model": (lora("base_model.model.model.layers.0.self_attn.q_proj"), "language"),
    }  # fmt: skip
    for name, (data, says) in others.items():
        yield Case(name, data, "", says)


def misfits(modules: Mapping[str, Shape]) -> Iterator[Case]:
    """LoRAs for the right model that do not fit it."""
    out, inner = modules[LINEAR]
    conv_out, conv_in = modules[CONV][:2]
    linear = (out, inner)
    down, up = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"
    good = plain(STEM, linear)

    def case(name: str, spec: Spec, says: str = "", reason: str = "misfit") -> Case:
        return Case(name, build(spec), reason, says)

    for dtype in ("I8", "U8", "F8_E8M0", "BOOL", "I64"):
        yield case(f"factors_{dtype}", plain(STEM, linear, dtype=dtype), "must be", "dtype")
    yield case("rank_4097", plain(STEM, linear, rank=4097), "rank 4097")
    yield case("ranks_differ", good | {up: ("F16", (out, 8))}, "lora_up")
    yield case("too_wide", plain(STEM, (out, inner + 1)), "lora_down")
    yield case("transposed", {down: ("F16", (inner, 4)), up: ("F16", (4, out))}, "lora_up")
    yield case("one_dimension", {down: ("F16", (4,)), up: ("F16", (out, 4))}, "lora_down")
    yield case("scalar_factor", {down: ("F16", ()), up: ("F16", (out, 4))}, "lora_up")
    yield case("up_missing", {down: good[down]}, "lacks lora_up")
    yield case("down_missing", {up: good[up]}, "lacks lora_down")
    yield case("alpha_alone", {f"{STEM}.alpha": ("F16", ())}, "no layer", "no_layers")
    yield case("alpha_vector", good | {f"{STEM}.alpha": ("F16", (4,))}, "alpha")
    yield case("outer_product_bomb", {down: ("F16", (1, 10**6)), up: ("F16", (10**6, 1))}, "layer")
    yield case("kron_bomb", {f"{STEM}.lokr_w1": ("F16", (2000, 2000)),
                             f"{STEM}.lokr_w2": ("F16", (2000, 2000))}, "divide")  # fmt: skip
    yield case("lokr_uneven", {f"{STEM}.lokr_w1": ("F16", (3, 7)),
                               f"{STEM}.lokr_w2": ("F16", (8, 8))}, "divide")  # fmt: skip
    w2 = {f"{STEM}.lokr_w2": ("F16", (out // 2, inner // 2))}
    yield case("lokr_twice", w2 | {f"{STEM}.lokr_w1": ("F16", (2, 2)),
                                   f"{STEM}.lokr_w1_a": ("F16", (2, 2))}, "both")  # fmt: skip
    yield case("lokr_half", {f"{STEM}.lokr_w1": ("F16", (2, 2))}, "lacks")
    yield case("loha_half", {f"{STEM}.hada_w1_a": ("F16", (out, 4)),
                             f"{STEM}.hada_w1_b": ("F16", (4, inner))}, "lacks")  # fmt: skip
    yield case("loha_and_lora", good | {f"{STEM}.hada_w1_a": ("F16", (out, 4))}, "mixes")
    yield case("loha_core_on_linear", {
        f"{STEM}.hada_{part}": ("F16", shape) for part, shape in (
            ("w1_a", (4, out)), ("w1_b", (4, inner)), ("w2_a", (4, out)), ("w2_b", (4, inner)),
            ("t1", (4, 4, 3, 3)), ("t2", (4, 4, 3, 3)))
    }, "Tucker")  # fmt: skip
    yield case("tucker_on_linear", good | {f"{STEM}.lora_mid.weight": ("F16", (4, 4))}, "Tucker")
    yield case("kernel_wrong", {f"{CONV_STEM}.lora_down.weight": ("F16", (4, conv_in, 5, 5)),
                                f"{CONV_STEM}.lora_up.weight": ("F16", (conv_out, 4, 1, 1))},
               "lora_down")  # fmt: skip
    yield case("kernel_missing", plain(CONV_STEM, (conv_out, conv_in)), "lora_down")
    yield case("dora_of_neither_side", good | {f"{STEM}.dora_scale": ("F16", (out + 1, 1))}, "dora")
    yield case("dora_twice", good | {f"{STEM}.dora_scale": ("F16", (out, 1)),
                                     f"{STEM}.lora_magnitude_vector": ("F16", (out,))},
               "two magnitudes")  # fmt: skip
    yield case("dora_alone", {f"{STEM}.dora_scale": ("F16", (out, 1))}, "nothing to apply")
    yield case("diff_wrong", {f"{STEM}.diff": ("F16", (out, inner + 1))}, "diff")
    yield case("bias_wrong", {f"{CONV_STEM}.diff_b": ("F16", (conv_out + 1,))}, "diff_b")
    yield case("lora_on_a_norm", plain(NORM_STEM, (64, 64)), "norm")
    yield case("same_layer_twice", good | plain(
        f"unet.{LINEAR[5:]}", linear), "same part", "duplicate_key")  # fmt: skip
    gone = "lora_unet_down_blocks_1_attentions_7_proj_in"
    yield case("one_layer_unknown", good | plain(gone, (64, 64)), "no layer", "unknown_layers")
    for name, part in (
        ("unknown_part", "lora_other.weight"),
        ("unknown_number", "scale"),
        ("dora_of_the_change", "wd_for_diff"),
        ("weights_beside", "weight"),
    ):
        yield case(name, good | {f"{STEM}.{part}": ("F16", (4, 4))}, "known algorithm",
                   "unknown_parts")  # fmt: skip
    yield case("weights_saved_beside", good | {
        f"{LINEAR}.modules_to_save.default.weight": ("F16", linear)
    }, "known algorithm", "unknown_parts")  # fmt: skip
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    yield case("text_encoder_unknown_layer", plain(text.replace("layers.0", "layers.77"), (64, 64)),
               "77", "no_layers")  # fmt: skip
    yield case("unprefixed_unknown", good | plain("something.else", (64, 64)), "no layer",
               "unknown_layers")  # fmt: skip


def bad_values(modules: Mapping[str, Shape]) -> Iterator[Case]:
    """Well-formed headers over values that must not reach a model. Only a parser sees these."""
    shape = modules[LINEAR]
    spec = plain(STEM, shape) | {f"{STEM}.alpha": ("F32", ())}
    size = len(build(spec)) - len(build(spec, data=b""))
    patterns = {"nan": b"\x00\x7e", "infinity": b"\x00\x7c", "minus_infinity": b"\x00\xfc"}
    for name, pattern in patterns.items():
        for place, start in (("first", 0), ("last", size - 6)):
            values = bytearray(size)
            values[start : start + 2] = pattern
            yield Case(f"{name}_{place}", build(spec, data=bytes(values)), "not_finite", "NaN")
    for name, alpha in (("nan", math.nan), ("infinity", math.inf), ("huge", 1e30)):
        data = bytes(size - 4) + struct.pack("<f", alpha)
        yield Case(f"alpha_{name}", build(spec, data=data), "alpha", "α")


def corpus(modules: Mapping[str, Shape]) -> list[Case]:
    """Every case that a header alone gives away."""
    return [*not_safetensors(), *broken_headers(), *foreign_files(), *misfits(modules)]


def _write(folder: Path) -> None:
    from sdxl_contract.lora.topology import family_modules

    folder.mkdir(parents=True, exist_ok=True)
    modules = family_modules("sdxl")
    for case in (*corpus(modules), *bad_values(modules)):
        (folder / f"{case.name}.safetensors").write_bytes(case.data)


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
