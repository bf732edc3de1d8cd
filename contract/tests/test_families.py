"""A LoRA for another network is named after the network that it is for, in every spelling of it."""

from __future__ import annotations

import io
from typing import Any

import pytest

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.families import network_of
from sdxl_contract.lora.header import inspect_lora_file
from sdxl_contract.lora.topology import family_modules
from testkit.loras.malformed import plain
from testkit.loras.plain_bytes import build

SDXL = BaseModelSignature(
    name="stable-diffusion-xl-base-1.0",
    family="SDXL",
    cross_attention_dim=2048,
    text_encoder_hidden_sizes=(768, 1280),
    modules=family_modules("sdxl"),
)
W = 3072
# Layers of published files by trainer's spelling: name of the network, then stem → (out, in).
FILES: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    "flux, kohya": ("Flux.1", {
        "lora_unet_double_blocks_0_img_attn_proj": (W, W),
        "lora_unet_double_blocks_0_img_attn_qkv": (3 * W, W),
        "lora_unet_double_blocks_0_img_mlp_0": (4 * W, W),
        "lora_unet_double_blocks_0_img_mod_lin": (6 * W, W),
        "lora_unet_single_blocks_0_linear1": (7 * W, W),
        "lora_unet_single_blocks_37_modulation_lin": (3 * W, W)}),
    "flux, kohya, attention": ("Flux.1", {"lora_unet_double_blocks_0_img_attn_proj": (W, W)}),
    "flux, kohya, few": ("Flux.1", {"lora_unet_double_blocks_0_img_attn_proj": (W, W),
                                    "lora_unet_single_blocks_0_linear1": (7 * W, W)}),
    "flux, kohya, with te": ("Flux.1", {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768),
        "lora_unet_single_blocks_0_linear1": (7 * W, W),
        "lora_unet_single_blocks_0_modulation_lin": (3 * W, W)}),
    "flux, BFL": ("Flux.1", {"diffusion_model.double_blocks.0.img_attn.qkv": (3 * W, W),
                             "diffusion_model.double_blocks.0.txt_mod.lin": (6 * W, W)}),
    "flux, control": ("Flux.1", {"double_blocks.0.img_attn.proj": (W, W), "img_in": (W, 128),
                                 "guidance_in.in_layer": (W, 256)}),
    "flux, diffusers": ("Flux.1", {"transformer.transformer_blocks.0.attn.add_k_proj": (W, W),
                        "transformer.single_transformer_blocks.0.attn.to_q": (W, W)}),
    "flux, PEFT": ("Flux.1", {"base_model.model.transformer_blocks.0.attn.to_q": (W, W),
                   "base_model.model.transformer_blocks.0.ff_context.net.0.proj": (4 * W, W)}),
    "flux, OneTrainer": ("Flux.1", {
        "lora_transformer_transformer_blocks_0_attn_add_k_proj": (W, W),
        "lora_transformer_single_transformer_blocks_0_proj_mlp": (4 * W, W)}),
    "flux.2, BFL": ("Flux.2", {"diffusion_model.single_blocks.0.linear1": (9 * 6144, 6144),
                               "diffusion_model.double_blocks.0.img_attn.qkv": (3 * 6144, 6144)}),
    "flux.2 klein": ("Flux.2", {"diffusion_model.double_blocks.0.img_mlp.0": (6 * W, W)}),
    "flux.2, diffusers": ("Flux.2", {
        "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": (9 * W, W)}),
    "chroma": ("Chroma", {"diffusion_model.double_blocks.0.img_attn.proj": (W, W),
                          "diffusion_model.distilled_guidance_layer.in_proj": (5120, 64)}),
    "chroma, without its own layers": ("Flux.1 or Chroma", {
        "lora_unet_double_blocks_0_img_mlp_0": (4 * W, W),
        "lora_unet_single_blocks_0_linear1": (7 * W, W)}),
    "hunyuan video, kohya": ("HunyuanVideo", {
        "lora_unet_double_blocks_0_img_attn_qkv": (3 * W, W),
        "lora_unet_double_blocks_0_img_mlp_fc1": (4 * W, W)}),
    "hunyuan video": ("HunyuanVideo", {
        "diffusion_model.double_blocks.0.txt_attn_qkv": (3 * W, W)}),
    "hunyuan video, all": ("HunyuanVideo", {
        "lora_unet_double_blocks_19_img_attn_qkv": (3 * W, W)}),
    "hunyuan video, diffusers": ("HunyuanVideo", {
        "transformer.context_embedder.token_refiner.refiner_blocks.0.attn.to_q": (W, W),
        "transformer.single_transformer_blocks.39.attn.to_q": (W, W)}),
    "hunyuan video 1.5": ("HunyuanVideo 1.5", {"diffusion_model.vision_in.proj.1": (2048, 1152)}),
    "hunyuan dit": ("Hunyuan-DiT", {"lora_unet_blocks_0_attn1_Wqkv": (4224, 1408)}),
    "sd 3, kohya": ("SD 3", {"lora_unet_joint_blocks_0_context_block_attn_qkv": (4608, 1536)}),
    "sd 3, diffusers": ("SD 3", {"transformer.transformer_blocks.0.attn.add_k_proj": (1536, 1536)}),
    "sd 3.5": ("SD 3", {"transformer.transformer_blocks.37.attn.to_q": (2432, 2432)}),
    "qwen-image, diffusers": ("Qwen-Image", {"transformer_blocks.0.attn.to_k": (W, W),
                                             "transformer_blocks.0.attn.to_q": (W, W)}),
    "qwen-image, prefix": ("Qwen-Image", {"transformer.transformer_blocks.0.attn.to_k": (W, W)}),
    "qwen-image, kohya": ("Qwen-Image", {
        "lora_unet_transformer_blocks_0_img_mlp_net_0_proj": (4 * W, W)}),
    "wan": ("Wan", {"diffusion_model.blocks.0.cross_attn.k": (5120, 5120)}),
    "wan, kohya": ("Wan", {"lora_unet_blocks_0_self_attn_q": (5120, 5120)}),
    "wan, ffn": ("Wan", {"blocks.0.ffn.0": (13824, 5120)}),
    "wan, diffusers": ("Wan", {"transformer.blocks.0.attn1.to_q": (5120, 5120)}),
    "anima, kohya": ("Anima", {"lora_unet_blocks_0_cross_attn_k_proj": (2048, 1024),
                               "lora_te_layers_0_self_attn_q_proj": (1024, 1024)}),
    "anima, mlp": ("Anima", {"lora_unet_blocks_0_mlp_layer1": (8192, 2048)}),
    "anima, adapter": ("Anima", {"diffusion_model.llm_adapter.blocks.0.mlp.0": (4096, 1024)}),
    "cosmos": ("Cosmos-Predict2", {"diffusion_model.blocks.0.self_attn.q_proj": (5120, 5120)}),
    "krea 2, kohya": ("Krea 2", {"lora_unet_blocks_0_attn_wk": (1536, 6144)}),
    "krea 2, diffusers": ("Krea 2", {"transformer.transformer_blocks.0.attn.to_q": (6144, 6144)}),
    "krea 2, gate": ("Krea 2", {"transformer.transformer_blocks.0.ff.gate": (16384, 6144)}),
    "z-image": ("Z-Image", {"diffusion_model.layers.0.attention.to_q": (3840, 3840)}),
    "z-image, kohya": ("Z-Image", {"lora_unet__layers_0_attention_qkv": (11520, 3840)}),
    "lumina 2": ("Lumina 2", {"lora_unet_layers_0_attention_qkv": (4608, 2304)}),
    "lumina 2, refiner": ("Lumina 2", {"diffusion_model.noise_refiner.0.attention.out":
                                       (2304, 2304)}),
    "hidream": ("HiDream", {"diffusion_model.double_stream_blocks.0.block.attn1.to_q":
                            (2560, 2560)}),
    "ltx": ("LTX-Video", {"diffusion_model.transformer_blocks.0.attn2.to_k": (2048, 2048),
                          "diffusion_model.transformer_blocks.0.attn1.to_k": (2048, 2048)}),
    "ltx 2": ("LTX-Video", {"diffusion_model.transformer_blocks.0.audio_attn1.to_k":
                            (2048, 2048)}),
    "auraflow": ("AuraFlow", {"transformer.joint_transformer_blocks.0.attn.to_q": (3072, 3072)}),
    "pixart": ("PixArt", {"transformer.transformer_blocks.0.attn1.to_q": (1152, 1152)}),
    "sana": ("Sana", {"transformer.transformer_blocks.0.attn1.to_q": (2240, 2240)}),
    "cogvideo": ("CogVideoX", {"transformer.transformer_blocks.0.attn1.to_q": (3072, 3072)}),
    "kolors": ("Kolors", {"unet.encoder_hid_proj": (2048, 4096)}),
    "cascade": ("Stable Cascade", {"lora_prior_unet_down_blocks_0_0_channelwise_0": (64, 64)}),
    "video diffusion": ("Stable Video Diffusion", {
        "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q": (320, 320)}),
    "a language model": ("a language model", {
        "base_model.model.model.layers.0.self_attn.q_proj": (4096, 4096)}),
}  # fmt: skip


def seems(spec: dict[str, Any]) -> str:
    data = build(spec)
    with pytest.raises(LoraLoadFailed) as caught:
        inspect_lora_file(io.BytesIO(data), len(data), SDXL)
    assert caught.value.details is not None
    return str(caught.value.details["seems"])


@pytest.mark.parametrize(("name", "layers"), FILES.values(), ids=FILES)
def test_a_file_for_another_network_is_called_what_it_is(
    name: str, layers: dict[str, tuple[int, int]]
) -> None:
    spec: dict[str, Any] = {}
    for stem, shape in layers.items():
        spec |= plain(stem, shape)
    found = seems(spec)
    assert found == name or found.startswith(f"{name} or ")


def test_flux_in_the_spelling_of_processors_is_called_flux() -> None:
    stem = "double_blocks.0.processor"
    spec = {
        f"{stem}.{part}.{side}.weight": ("F16", shape)
        for part in ("qkv_lora1", "qkv_lora2", "proj_lora1")
        for side, shape in (("down", (16, W)), ("up", (W, 16)))
    }
    assert seems(spec) == "Flux.1"


@pytest.mark.parametrize("family", ["sdxl", "sd1", "sd2", "sdxl-refiner"])
def test_no_layer_of_a_stable_diffusion_unet_belongs_to_another_network(family: str) -> None:
    for module, shape in family_modules(family).items():
        rest = module.partition(".")[2]
        for stem in (f"lora_unet_{rest.replace('.', '_')}", module, rest, f"lycoris_{rest}"):
            assert network_of({stem: (shape[-1], shape[0])}) is None, stem
