"""Which module of a model a LoRA's layer name means, in every spelling in use.

Duty: a table from spelled names to module names, built from the model's own module names; no
name is taken apart and guessed at.
Must not know: tensors, shapes, what an adapter computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"


class NamedModule(NamedTuple):
    """A module's full name, and the naming scheme that a file used for it."""

    module: str
    naming: str


class KeyMap:
    """Spelled layer names → module names such as `unet.mid_block.attentions.0.proj_in`.

    Args:
        modules: full names, starting with `unet.`, `text_encoder.` or `text_encoder_2.`.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        names = list(modules)
        self._stems: dict[str, NamedModule] = {}
        by_root: dict[str, list[str]] = {UNET: [], TEXT_ENCODER: [], TEXT_ENCODER_2: []}
        for name in names:
            root, _, rest = name.partition(".")
            by_root[root].append(rest)
        sgm = sgm_names(by_root[UNET])
        for rest in by_root[UNET]:
            for stem, naming in _unet_stems(rest, sgm.get(rest)):
                self._add(stem, f"{UNET}.{rest}", naming)
        for root in (TEXT_ENCODER, TEXT_ENCODER_2):
            for rest in by_root[root]:
                for stem, naming in _text_stems(root, rest):
                    self._add(stem, f"{root}.{rest}", naming)

    def _add(self, stem: str, module: str, naming: str) -> None:
        # First come, first kept: the spellings are listed from usual to rare.
        self._stems.setdefault(stem, NamedModule(module, naming))

    def resolve(self, stem: str) -> NamedModule | None:
        """The module that `stem` names, or None."""
        return self._stems.get(stem) or self._stems.get(_respelled(stem))

    def __len__(self) -> int:
        return len(self._stems)


# Prefixes that stand for another one: OneTrainer's OMI files (`clip_l.`), ComfyUI's own saves
# (`text_encoders.clip_l.transformer.`), old diffusers (`unet.unet.`).
_SAME_PREFIX = (
    ("text_encoders.", ""),
    ("clip_l.transformer.", f"{TEXT_ENCODER}."),
    ("clip_g.transformer.", f"{TEXT_ENCODER_2}."),
    ("clip_l.", f"{TEXT_ENCODER}."),
    ("clip_g.", f"{TEXT_ENCODER_2}."),
    ("unet.unet.", f"{UNET}."),
)


def _respelled(stem: str) -> str:
    """The usual spelling of a rare one; `stem` itself where it has none.

    Some trainers join kohya's names by dots or dashes, all of a name or its last part only.
    """
    if stem.startswith(("lora_", "lycoris_")):
        return stem.replace(".", "_").replace("-", "_")
    for prefix, usual in _SAME_PREFIX:
        if stem.startswith(prefix):
            stem = usual + stem.removeprefix(prefix)
    return stem


# The first text encoder's projection: SDXL takes its pooled text from the second one alone, so that
# the models that have this layer never use it, and the others do without.
_IDLE = frozenset({f"{TEXT_ENCODER}.text_projection", f"{TEXT_ENCODER}.text_model.text_projection"})
_IDLE_FLAT = frozenset({"lora_te1_text_projection", "lora_te1_text_model_text_projection"})


def is_idle(stem: str, key_map: KeyMap) -> bool:
    """Whether `stem` names a layer whose change no picture of this kind of model depends on."""
    usual = _respelled(stem)
    return usual in _IDLE | _IDLE_FLAT and key_map.resolve(usual) is None


_LAYER_PREFIX = re.compile(
    r"lora_unet[_.-]|lora_te[123]?[_.-]|lora_prior_|lora_transformer_|lycoris_|unet\.|text_encoder"
    r"(s|_[23])?\.|clip_[lg]\.|base_model\.model\.|diffusion_model\.|model\.diffusion_model\.|transformer\."
    r"|te[123]?\.|down_blocks\.|up_blocks\.|mid_block\.|double_blocks\.|single_blocks\."
    r"|text_model\."
)


def looks_like_layer(key: str) -> bool:
    """Whether `key` starts like a layer of some network: then it may not be skipped."""
    return _LAYER_PREFIX.match(key) is not None


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _unet_stems(rest: str, sgm: str | None) -> Iterator[tuple[str, str]]:
    # The attention processors of older diffusers files say `to_out` for `to_out.0`.
    dotted = [rest, rest.removesuffix(".0")] if rest.endswith(".to_out.0") else [rest]
    yield f"lora_unet_{_flat(rest)}", "kohya"
    for name in dotted:
        yield f"unet.{name}", "diffusers"
        yield f"base_model.model.{name}", "peft"
        yield f"unet.base_model.model.{name}", "peft"
        yield f"base_model.model.unet.{name}", "peft"
        yield name, "diffusers"
    yield f"lycoris_{_flat(rest)}", "lycoris"
    yield f"lycoris_unet_{_flat(rest)}", "lycoris"
    if sgm is not None:
        yield f"lora_unet_{_flat(sgm)}", "kohya-sgm"
        yield f"lycoris_{_flat(sgm)}", "lycoris"
        yield f"lycoris_unet_{_flat(sgm)}", "lycoris"
        yield f"unet.{sgm}", "sgm"
        yield f"diffusion_model.{sgm}", "sgm"
        yield f"model.diffusion_model.{sgm}", "sgm"
    yield f"diffusion_model.{rest}", "diffusers"


_TEXT_PREFIXES = {
    TEXT_ENCODER: ("lora_te1_", "lora_te_", "lycoris_te1_", "lycoris_te_", "lycoris_text_encoder_"),
    TEXT_ENCODER_2: ("lora_te2_", "lycoris_te2_", "lycoris_text_encoder_2_"),
}
_OLD_ATTENTION = {
    "self_attn.q_proj": "self_attn.to_q",
    "self_attn.k_proj": "self_attn.to_k",
    "self_attn.v_proj": "self_attn.to_v",
    "self_attn.out_proj": "self_attn.to_out",
}


def _text_stems(root: str, rest: str) -> Iterator[tuple[str, str]]:
    # transformers has the `text_model.` level in some versions and classes and not in others.
    bare = rest.removeprefix("text_model.")
    dotted = [f"text_model.{bare}", bare]
    for new, old in _OLD_ATTENTION.items():
        if bare.endswith(new):
            dotted.append(f"text_model.{bare.removesuffix(new)}{old}")
    for name in dotted:
        for prefix in _TEXT_PREFIXES[root]:
            yield prefix + _flat(name), "lycoris" if prefix.startswith("lyc") else "kohya"
        yield f"{root}.{name}", "diffusers"
        yield f"{root}.base_model.model.{name}", "peft"
        yield f"base_model.model.{root}.{name}", "peft"
    if root == TEXT_ENCODER:
        yield f"base_model.model.{dotted[0]}", "peft"
        yield dotted[0], "diffusers"
        yield f"lycoris_{_flat(dotted[0])}", "lycoris"


_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)"
    r"\.(\d+)\.(.+)"
)


def sgm_names(unet_modules: Iterable[str]) -> dict[str, str]:
    """diffusers name → name in the original (sgm) UNet, for each module that has one there.

    The original numbers all layers of the way down in one row, `input_blocks.N`: per block its
    resnets (each with its attention as `.1`), then the downsampler. Blocks may differ in length,
    so that numbers are counted off the model's own modules, not computed from a constant.
    """
    names = list(unet_modules)
    matches = {name: match for name in names if (match := _BLOCK.fullmatch(name))}
    resnets: dict[tuple[str, int], int] = {}
    with_attention: set[tuple[str, int]] = set()
    for match in matches.values():
        side, block, kind, index = _place(match)
        if kind == "resnets":
            resnets[side, block] = max(resnets.get((side, block), 0), index + 1)
        elif kind == "attentions":
            with_attention.add((side, block))

    first: dict[tuple[str, int], int] = {}
    for side, position, extra in (("down", 1, 1), ("up", 0, 0)):
        for block in sorted(number for where, number in resnets if where == side):
            first[side, block] = position
            position += resnets[side, block] + extra

    renamed = {name: new for name, new in _WHOLE.items() if name in set(names)}
    for name, match in matches.items():
        side, block, kind, index = _place(match)
        if (side, block) not in resnets:
            continue
        rest = match[5]
        part = _RESNET_PARTS.get(rest, rest) if kind == "resnets" else rest
        if side == "mid":
            renamed[name] = f"middle_block.{2 * index if kind == 'resnets' else 1}.{part}"
            continue
        row = "input_blocks" if side == "down" else "output_blocks"
        start = first[side, block]
        count = resnets[side, block]
        if kind == "resnets":
            renamed[name] = f"{row}.{start + index}.0.{part}"
        elif kind == "attentions":
            renamed[name] = f"{row}.{start + index}.1.{part}"
        elif kind == "downsamplers":
            renamed[name] = f"{row}.{start + count}.0.{'op' if part == 'conv' else part}"
        else:
            branch = 2 if (side, block) in with_attention else 1
            renamed[name] = f"{row}.{start + count - 1}.{branch}.{part}"
    return renamed


def _place(match: re.Match[str]) -> tuple[str, int, str, int]:
    side = match[1] or "mid"
    return side, int(match[2] or 0), match[3], int(match[4])
