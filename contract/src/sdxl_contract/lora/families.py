"""Names the network that a LoRA's layers belong to, where it is none of the Stable Diffusion UNets.

Duty: layer names and input widths → "Flux.1", "Wan": the first thing that the owner of a wrong file
reads. One table, in the order in which it is asked.
Must not know: the loaded model, values.

Names are compared in one spelling: without the trainer's prefix, with `_` for `.`, so that
`lora_unet_double_blocks_0_img_attn_proj` and `diffusion_model.double_blocks.0.img_attn.proj` are
one. Where two networks share all names of a file, its layers' widths or numbers decide; where
those agree as well, both are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_PREFIX = re.compile(
    r"(base_model\.model\.(?!model\.)|lora_unet_+|lora_transformer_|lora_prior_|lycoris_"
    r"|model\.diffusion_model\.|diffusion_model\.|pipe\.dit\.|dit\.|net\.|unet\.|transformer\.)+"
)
# Flux has `img_attn.qkv` there; without dots the two look alike.
_HUNYUAN_DOTTED = re.compile(r"double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)")
_DEEP = 256  # no network has as many blocks; a bound for numbers in names


class Named(NamedTuple):
    """A file's layers, in one spelling: name → features that the layer takes, if they are known."""

    widths: Mapping[str, int | None]
    outputs: Mapping[str, int | None]
    together: str

    def has(self, pattern: str) -> bool:
        """Whether a name has `pattern`, a regular expression; `^` is a name's beginning."""
        return re.search(pattern, self.together, re.M) is not None

    def width(self, pattern: str) -> int | None:
        """The input width of the first layer whose name begins with `pattern`."""
        begins = re.compile(pattern)
        return next((w for name, w in self.widths.items() if w and begins.match(name)), None)

    def ratio(self, pattern: str) -> float | None:
        """Outputs per input of the first layer whose name begins with `pattern`."""
        begins = re.compile(pattern)
        for name, width in self.widths.items():
            out = self.outputs.get(name)
            if width and out and begins.match(name):
                return out / width
        return None

    def blocks(self, stem: str) -> int:
        """One more than the highest number behind `stem`; 0 where there is none."""
        found = re.findall(rf"^{stem}_(\d{{1,3}})_", self.together, re.M)
        return max((int(number) + 1 for number in found if int(number) < _DEEP), default=0)


def one_spelling(stem: str) -> str:
    """A layer's name without its trainer's prefix, with `_` for `.`."""
    found = _PREFIX.match(stem)
    bare = stem[found.end() :] if found else stem
    return bare.replace(".", "_").replace("-", "_")


def network_of(shapes: Mapping[str, tuple[int | None, int | None]]) -> str | None:
    """The network that these layers (name → inputs, outputs) belong to; None if it may be one of
    the Stable Diffusion UNets, or is not known.
    """
    widths = {one_spelling(stem): shape[0] for stem, shape in shapes.items()}
    outputs = {one_spelling(stem): shape[1] for stem, shape in shapes.items()}
    prefixes = "\n".join(stem[:40] for stem in shapes)
    named = Named(widths, outputs, "\n".join(widths))
    if re.search(r"^lora_prior_|^prior\.", prefixes, re.M):
        return "Stable Cascade"
    if any(_HUNYUAN_DOTTED.search(stem) for stem in shapes):
        return "HunyuanVideo"
    for pattern, name in _BY_NAME:
        if named.has(pattern):
            return name
    for decide in (_of_double_blocks, _of_transformer_blocks, _of_blocks, _of_layers):
        name_or_none = decide(named)
        if name_or_none is not None:
            return name_or_none
    if re.search(r"^lora_transformer_|^transformer\.", prefixes, re.M):
        return "SD 3, Flux or another transformer"
    if named.has(r"^(lora_)?te3_|^text_encoder_3|t5xxl"):
        return "SD 3 or Flux"
    return None


# What only one network has. The first match counts.
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"motion_modules?", "AnimateDiff"),
    (r"^(down|up|mid)_blocks?_.*temporal_transformer_blocks|time_stack", "Stable Video Diffusion"),
    (r"encoder_hid_proj", "Kolors"),
    (r"^distilled_guidance_layer|^nerf_(blocks|image_embedder)", "Chroma"),
    (r"(double|single)_stream_modulation|attn_to_qkv_mlp_proj|^transformer_blocks_\d+_ff(_context)?_"
     r"linear_(in|out)", "Flux.2"),
    (r"^double_stream_blocks_|^single_stream_blocks_|_shared_experts_", "HiDream"),
    (r"^(vision_in|cond_type_embedding)", "HunyuanVideo 1.5"),
    (r"individual_token_refiner|token_refiner_refiner_blocks|^context_embedder_token_refiner",
     "HunyuanVideo"),
    (r"^(byt5_in|time_r_in)", "HunyuanImage"),
    (r"^(txtfusion|text_fusion|txtmlp_|tproj_)|attn_to_gate\b|^blocks_\d+_attn_w[qkvo]\b"
     r"|^(transformer_)?blocks_\d+_(mlp|ff)_(gate|up|down)\b", "Krea 2"),
    (r"llm_adapter", "Anima"),
    (r"^joint_blocks_", "SD 3"),
    (r"^joint_transformer_blocks_|^double_layers_\d+_(attn|mlp)|^single_layers_\d+_", "AuraFlow"),
    (r"^(visual|text)_transformer_blocks_", "Kandinsky 5"),
    (r"audio_attn|audio_to_video_attn|video_to_audio_attn", "LTX-Video"),
    (r"^blocks_block\d+_blocks_", "Cosmos"),
    (r"^vace_blocks_|^blocks_\d+_(self|cross)_attn_(q|k|v|o|k_img|v_img)\b|^blocks_\d+_ffn_"
     r"|^condition_embedder_|^blocks_\d+_attn2_add_[kv]_proj", "Wan"),
    (r"^transformer_blocks_\d+_(img|txt)_(mlp|mod)_", "Qwen-Image"),
    (r"^(kv_mapper|clip_mapper|clip_txt_mapper)|^(down|up)_blocks_\d+_\d+_(channelwise|kv_mapper"
     r"|attention_attn|mapper)", "Stable Cascade"),
)  # fmt: skip


def _of_double_blocks(named: Named) -> str | None:
    """Flux and what was built like it."""
    if named.has(r"^single_transformer_blocks_"):
        width = named.width(r"(single_)?transformer_blocks_\d+_attn_to_")
        if width in (4096, 6144):
            return "Flux.2"
        deep = named.blocks("single_transformer_blocks") > 38
        return "HunyuanVideo" if deep or named.blocks("transformer_blocks") == 20 else "Flux.1"
    if not named.has(r"^(double|single)_blocks_"):
        return None
    if named.has(r"_(img|txt)_mlp_fc[12]|_mod_linear\b|_modulation_linear\b"):
        return "HunyuanVideo"
    # Flux has 19 and 38 blocks of them.
    if named.blocks("double_blocks") > 19 or named.blocks("single_blocks") > 38:
        image = named.width(r"double_blocks_\d+_img_attn") == 3584
        return "HunyuanImage" if image else "HunyuanVideo"
    joined = named.ratio(r"single_blocks_\d+_linear1"), named.ratio(r"double_blocks_\d+_img_mlp_0")
    width = named.width(r"double_blocks_\d+_(img|txt)_attn_(qkv|proj)|single_blocks_\d+_linear1")
    if joined[0] == 9 or joined[1] == 6 or width in (4096, 6144):
        return "Flux.2"
    if named.has(r"_mod_lin\b|modulation_lin\b|_processor_|norm_(key|query)_norm|guidance_in"):
        return "Flux.1"
    # Chroma is Flux without modulation layers: a file that has all others may be for either.
    return "Flux.1 or Chroma" if named.has(r"_mlp_[02]\b|_linear[12]\b") else "Flux.1"


_SD3_WIDTHS = {1536, 2432}
# Input width of `attn1` in networks that are one row of `transformer_blocks`.
_ONE_ROW = {1152: "PixArt", 2240: "Sana", 1920: "CogVideoX", 3072: "CogVideoX", 5120: "Cosmos"}


def _of_transformer_blocks(named: Named) -> str | None:
    """Networks that are one row of `transformer_blocks`, as diffusers names them."""
    if not named.has(r"^transformer_blocks_\d+_"):
        return None
    width = named.width(r"transformer_blocks_\d+_attn1?_(to_[qkv]|add_[qkv])")
    if named.has(r"^transformer_blocks_\d+_attn1_"):
        if named.has(r"ff_conv_(inverted|point|depth)|attn1_norm_[qk].*linear"):
            return "Sana"
        if named.has(r"^transformer_blocks_\d+_attn1_(add_|to_add_out)"):
            return "Mochi"
        if width in (2048, 4096):
            # Cosmos' text is 1024 wide, LTX' as wide as its pictures.
            cosmos = named.has(r"_norm[123]_linear_[12]\b") or (
                named.width(r"transformer_blocks_\d+_attn2_to_[kv]") == 1024
            )
            return "Anima or Cosmos-Predict2" if cosmos else "LTX-Video"
        return _ONE_ROW.get(width or 0, "PixArt, LTX-Video or another transformer")
    if width in _SD3_WIDTHS:
        return "SD 3"
    context = named.has(r"_ff_context_|_norm1_context_")
    if width == 3072:
        # Flux has feed-forward layers of this name, and 19 blocks; Qwen-Image has 60.
        return "Flux.1" if context else "Qwen-Image"
    if width == 6144 and not named.has(r"attn_(add_|to_add_out)"):
        return "Krea 2"
    if width in (4096, 6144):
        return "Flux.2"
    return "SD 3, Flux or another transformer"


def _of_blocks(named: Named) -> str | None:
    """Networks that are one row of `blocks`."""
    if named.has(r"^blocks_\d+_((self|cross)_attn_(q_proj|k_proj|v_proj|output_proj)"
                 r"|mlp_layer[12]\b|adaln_modulation_)"):  # fmt: skip
        # Anima is built on the smaller Cosmos-Predict2; only its text adapter tells them apart.
        large = named.width(r"blocks_\d+_(self_attn|cross_attn)_q_proj") == 5120
        return "Cosmos-Predict2" if large else "Anima or Cosmos-Predict2"
    if named.has(r"^blocks_\d+_attn1_(to_[qkv]|Wqkv|out_proj|q_proj)|^blocks_\d+_attn2_"):
        width = named.width(r"blocks_\d+_attn1_")
        return "Hunyuan-DiT" if width == 1408 else "Wan"
    if named.has(
        r"^blocks_\d+_(attn_(qkv|proj)|cross_attn_(q_linear|kv_linear|proj)|mlp_fc[12])\b"
    ):
        return "PixArt"
    return None


def _of_layers(named: Named) -> str | None:
    """Networks that are one row of `layers`, with refiners before it."""
    if named.has(r"^(context|noise)_refiner_|^layers_\d+_(attention|feed_forward|adaLN_modulation"
                 r"|attn)_"):  # fmt: skip
        width = named.width(r"(layers|(context|noise)_refiner)_\d+_(attention|attn|feed_forward)_")
        if width == 3840 or named.has(r"^layers_\d+_attention_to_[qkv]"):
            return "Z-Image"
        return "OmniGen2" if width == 2520 else "Lumina 2"
    if named.has(r"^(base_model_model_)?(model_)?layers_\d+_(self_attn|mlp)_"):
        return "a language model"
    return None
