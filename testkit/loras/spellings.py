"""One plain LoRA in every spelling that is in use, by rules written down from the formats.

The rules for the original (sgm) names are SDXL's own numbers, where the code under test counts
them off the model: two ways to the same names.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from testkit.loras.making import Tensors, TinyModel, kohya_stem, lora_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLAIN = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_name(name: str) -> str:
    """SDXL's original name of a diffusers UNet module, by SDXL's fixed numbers."""
    if name in _PLAIN:
        return _PLAIN[name]
    if name.startswith("mid_block."):
        _, kind, index, rest = name.split(".", 3)
        part = _RESNET[rest] if kind == "resnets" else rest
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{part}"
    side, block, kind, index, rest = name.split(".", 4)
    i, j = int(block), int(index)
    row = "input_blocks" if side == "down_blocks" else "output_blocks"
    number = 3 * i + j + (1 if side == "down_blocks" else 0)
    if kind == "resnets":
        return f"{row}.{number}.0.{_RESNET[rest]}"
    if kind == "attentions":
        return f"{row}.{number}.1.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * i + 3}.0.op"
    # Upsamplers end the blocks 0 and 1, after an attention in both.
    return f"output_blocks.{3 * i + 2}.2.conv"


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _kohya_sgm(module: str) -> str:
    root, _, rest = module.partition(".")
    return f"lora_unet_{_flat(sgm_name(rest))}" if root == "unet" else kohya_stem(module)


def _mixed(module: str) -> str:
    return _kohya_sgm(module) if len(module) % 2 else kohya_stem(module)


def _lycoris(module: str) -> str:
    return "lycoris_" + _flat(module.removeprefix("unet."))


def _bare(module: str) -> str:
    return module.removeprefix("unet.")


def _base_model(module: str) -> str:
    return "base_model.model." + _bare(module)


def _sgm_dotted(module: str) -> str:
    return "diffusion_model." + sgm_name(_bare(module))


def _same(module: str) -> str:
    return module


def _omi(module: str) -> str:
    root, _, rest = module.partition(".")
    return {"unet": f"unet.{sgm_name(rest)}" if root == "unet" else "", "text_encoder":
            f"clip_l.{rest}", "text_encoder_2": f"clip_g.{rest}"}[root]  # fmt: skip


def _kohya_dotted(module: str) -> str:
    root, _, rest = module.partition(".")
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[root]
    return f"{prefix}.{rest}"


def _kohya_last_dotted(module: str) -> str:
    # What OneTrainer's conversion makes of keys that end in one part, such as `hada_w1_a`.
    head, _, last = module.rpartition(".")
    return f"{kohya_stem(head)}.{last}"


def _comfy(module: str) -> str:
    if module.startswith("unet."):
        return _sgm_dotted(module)
    return "text_encoders." + _omi(module).replace(".", ".transformer.", 1)


def _dashed(module: str) -> str:
    return "lora_unet-" + _bare(module).replace(".", "-")


def _unet_twice(module: str) -> str:
    return f"unet.{module}"


_KOHYA = ("lora_down.weight", "lora_up.weight")
_PEFT = ("lora_A.weight", "lora_B.weight")
# Spelling → (stem of a module, endings of down and up, whether text encoders can be spelled).
SPELLINGS: dict[str, tuple[Callable[[str], str], tuple[str, str], bool]] = {
    "kohya": (kohya_stem, _KOHYA, True),
    "kohya-sgm": (_kohya_sgm, _KOHYA, True),
    "kohya, both block names": (_mixed, _KOHYA, True),
    "lycoris prefix": (_lycoris, _KOHYA, False),
    "diffusers": (_same, ("lora.down.weight", "lora.up.weight"), True),
    "diffusers, linear layer": (
        _same,
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        True,
    ),
    "peft": (_same, _PEFT, True),
    "peft, adapter named": (_same, ("lora_A.default.weight", "lora_B.default.weight"), True),
    "peft, no prefix": (_bare, _PEFT, False),
    "peft, base_model.model": (_base_model, _PEFT, False),
    "original names, dotted": (_sgm_dotted, _KOHYA, False),
    "OneTrainer, OMI": (_omi, _KOHYA, True),
    "OneTrainer, dotted": (_kohya_dotted, _KOHYA, True),
    "OneTrainer, last part dotted": (_kohya_last_dotted, _KOHYA, True),
    "ComfyUI's own saves": (_comfy, _KOHYA, True),
    "sliders, dashes": (_dashed, _KOHYA, False),
    "diffusers, unet twice": (_unet_twice, _PEFT, False),
}
PROCESSOR = "diffusers, processor"
_ATTENTION = re.compile(r"(.*attn[12])\.(to_[qkv]|to_out)(\.0)?$")


def attention_modules(model: TinyModel) -> list[str]:
    """The linear layers of the UNet's attentions: what every spelling can name."""
    return [name for name in model.shapes if _ATTENTION.match(name)]


def text_modules(model: TinyModel) -> list[str]:
    """The attention projections of both text encoders."""
    return [name for name in model.shapes if "self_attn" in name]


def respelled(model: TinyModel, modules: list[str], spelling: str, *, seed: int = 0) -> Tensors:
    """The LoRA of `seed` on `modules`, spelled so. Its numbers do not depend on the spelling."""
    spelled: Tensors = {}
    for number, module in enumerate(modules):
        made = lora_file(model, "lora", modules=[module], seed=seed + number, alpha=None)
        down, up = (made[f"{kohya_stem(module)}.{ending}"] for ending in _KOHYA)
        if spelling == PROCESSOR:
            match = _ATTENTION.match(module)
            assert match is not None
            for side, tensor in (("down", down), ("up", up)):
                spelled[f"{match[1]}.processor.{match[2]}_lora.{side}.weight"] = tensor
            continue
        stem, endings, _ = SPELLINGS[spelling]
        for ending, tensor in zip(endings, (down, up), strict=True):
            spelled[f"{stem(module)}.{ending}"] = tensor
    return spelled
