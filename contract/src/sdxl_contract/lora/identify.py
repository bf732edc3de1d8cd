"""Says what a file is that is not a LoRA for the loaded model: the refusals by name.

Duty: tensor names and shapes → "a textual inversion", "a LoRA for SD 1". Only names: whether a
file fits is `lora_layout`'s question.
Must not know: the loaded model, torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice

from sdxl_contract.lora.families import network_of
from sdxl_contract.lora.modules import KeyMap
from sdxl_contract.lora.safetensors import TensorEntry
from sdxl_contract.lora.shapes import Misfit, Shape, plan_module
from sdxl_contract.lora.spelling import Slot, spell
from sdxl_contract.lora.topology import FAMILIES, family_modules

_PEFT_KINDS = tuple(
    f".{begins}"
    for begins in (
        "vera_lambda", "pvera_lambda", "lora_embedding_A", "lora_embedding_B", "fourierft_",
        "waveft_", "hra_", "hira_", "vblora_", "randlora_", "c3a_", "road_", "shira_", "miss_",
        "bone_", "delora_", "gralora_", "ln_tuning_", "unilora_", "tinylora_",
    )
)  # fmt: skip
# First match wins. Each pattern is searched in every tensor's name, where any name holds one of the
# texts before it, without which it cannot match: that is known in a hundredth of the time.
_ALGORITHMS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    ((".boft",), re.compile(r"\.boft_|\.boft[RS]?\b", re.M), "a BOFT adapter"),
    ((".oft_",), re.compile(r"\.oft_(blocks|diag|[rR])\b", re.M), "an OFT or BOFT adapter"),
    (
        (".glora_", ".a1", ".a2", ".b1", ".b2", ".bm"),
        re.compile(r"\.glora_|\.(a1|a2|b1|b2|bm)(\.weight)?$", re.M),
        "a GLoRA adapter",
    ),
    ((".ia3_l", ".on_input"), re.compile(r"\.ia3_l|\.on_input$", re.M), "an IA³ adapter"),
    (
        ("lora_controlnet", "controlnet_lora"),
        re.compile(r"^lora_controlnet|^controlnet_lora|\.lora_controlnet", re.M),
        "a ControlLoRA",
    ),
    (("lllite_",), re.compile(r"^lllite_", re.M), "a ControlNet-LLLite"),
    (
        (".lambda_layer", "_layer.weight"),
        re.compile(r"\.lambda_layer$|\.[qp]_layer\.weight$", re.M),
        "a T-LoRA adapter",
    ),
    (
        _PEFT_KINDS,
        re.compile(f"({'|'.join(map(re.escape, _PEFT_KINDS))})"),
        "a PEFT adapter of another kind",
    ),
    (
        ("image_proj.", "ip_adapter.", "_ip"),
        re.compile(r"^(image_proj|ip_adapter)\.|\.to_[kv]_ip\b", re.M),
        "an IP-Adapter",
    ),
    (
        ("control_model.", "controlnet_", "input_hint_block.", "zero_convs."),
        re.compile(r"^control_model\.|^controlnet_|^input_hint_block\.|^zero_convs\.", re.M),
        "a ControlNet or ControlLoRA",
    ),
    (("motion_module",), re.compile(r"motion_modules?\."), "an AnimateDiff motion module"),
)
_CHECKPOINT = re.compile(
    r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.|^conditioner\.embedders"
)
_VAE = re.compile(r"^(encoder|decoder)\.(down|up|mid|conv_in|conv_out)")
_UNET_WEIGHTS = re.compile(
    r"^(unet\.)?(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|conv_in"
    r"|time_embedding|double_blocks|single_blocks|joint_blocks|transformer_blocks)\."
    r".*\.(weight|bias)$"
)
_EMBEDDING_KEYS = frozenset({"clip_l", "clip_g", "emb_params", "<concept>"})


def foreign_kind(tensors: Mapping[str, TensorEntry]) -> str | None:
    """What a file is that no adapter reader here reads; None if it may be a LoRA."""
    names = list(tensors)
    # One search over many names together, so that a good file of thousands pays for little; not
    # over all, since nothing else runs during a search.
    together = ["\n".join(names[start : start + 1000]) for start in range(0, len(names), 1000)]
    for needed, pattern, what in _ALGORITHMS:
        for some in together:
            if any(text in some for text in needed) and pattern.search(some):
                return what
    if any(spell(name) for name in names):
        return None
    if _EMBEDDING_KEYS & tensors.keys() or any(
        "string_to_param" in name or name.startswith("bundle_emb.") for name in names
    ):
        return "a textual inversion (an embedding)"
    if any(_CHECKPOINT.match(name) for name in names):
        return "a full checkpoint"
    if any(_VAE.match(name) for name in names):
        return "a VAE"
    if any(_UNET_WEIGHTS.match(name) for name in names):
        return "a full UNet or transformer, or a ControlNet"
    if len(names) <= 2 and all(len(tensors[name].shape) in (1, 2) for name in names):
        return "perhaps a textual inversion (an embedding)"
    if all(name.endswith((".weight", ".bias")) for name in names):
        return "a set of plain weights"
    return None


_CONTEXT_WIDTHS = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL refiner"}
_CONTEXT = re.compile(r"attn2[._]to_[kv]$")
_TEXT_Q = re.compile(r"self_attn[._](q_proj|to_q)$")
_DEEP = re.compile(r"transformer_blocks[._]([2-9]|\d\d)[._]")
_SHALLOW = re.compile(
    r"(down_blocks[._]0|up_blocks[._]2|input_blocks[._][12])[._].*(attn[12]|attentions|proj_in)"
)


def input_width(slots: Mapping[Slot, Shape]) -> int | None:
    """Features that a linear layer's change takes, from its tensors' shapes alone."""
    for slot in (Slot.DOWN, Slot.HADA_W1_B, Slot.DIFF):
        shape = slots.get(slot)
        if shape is not None and len(shape) >= 2:
            return shape[1]
    left = slots.get(Slot.LOKR_W1, slots.get(Slot.LOKR_W1_B))
    right = slots.get(Slot.LOKR_W2, slots.get(Slot.LOKR_W2_B))
    if left is not None and right is not None and len(left) == 2 and len(right) >= 2:
        return left[1] * right[1]
    return None


def output_width(slots: Mapping[Slot, Shape]) -> int | None:
    """Features that a layer's change gives, likewise."""
    for slot in (Slot.UP, Slot.HADA_W1_A, Slot.DIFF):
        shape = slots.get(slot)
        if shape is not None and len(shape) >= 2:
            return shape[0]
    return None


Layers = Mapping[str, Mapping[Slot, Shape]]
_LAYERS_JUDGED = 2000


def context_widths(layers: Layers) -> set[int]:
    """Input widths of the cross-attention's keys and values, by stem → slots → shape."""
    widths = (input_width(slots) for stem, slots in layers.items() if _CONTEXT.search(stem))
    return {width for width in widths if width is not None}


def text_widths(layers: Layers) -> set[int]:
    """Hidden sizes of the text encoders that the layers belong to."""
    widths = (input_width(slots) for stem, slots in layers.items() if _TEXT_Q.search(stem))
    return {width for width in widths if width is not None}


def name_base_model(layers: Layers) -> str | None:
    """The base model that a LoRA of these layers (stem → slots → shape) was made for.

    Judged by the first 2,000 of them, twice what a real file has: the work stays bounded.
    """
    layers = dict(islice(layers.items(), _LAYERS_JUDGED))
    network = network_of(
        {stem: (input_width(slots), output_width(slots)) for stem, slots in layers.items()}
    )
    if network is not None:
        return network
    for width in sorted(context_widths(layers)):
        if width in _CONTEXT_WIDTHS:
            return _CONTEXT_WIDTHS[width]
    hidden = text_widths(layers)
    if {768, 1280} <= hidden:
        return "SDXL"
    if any(_DEEP.search(stem) for stem in layers):
        return "SDXL"
    if any(_SHALLOW.search(stem) for stem in layers):
        return "SD 1 or SD 2"
    return _best_fit(layers)


@cache
def family_key_map(family: str) -> KeyMap:
    """The spellings of one of the built-in families."""
    return KeyMap(family_modules(family))


def _best_fit(layers: Layers) -> str | None:
    """The built-in family in which most layers exist and fit, if nearly all do."""
    scores = {family: _fitting(family, layers) for family in FAMILIES}
    best = max(scores, key=lambda family: scores[family])
    return FAMILIES[best].name if scores[best] >= 0.9 * len(layers) else None


def _fitting(family: str, layers: Layers) -> int:
    keys, modules = family_key_map(family), family_modules(family)
    count = 0
    for stem, slots in layers.items():
        found = keys.resolve(stem)
        if found is None:
            continue
        try:
            plan_module(slots, modules[found.module])
        except Misfit:
            continue
        count += 1
    return count


def group_by_stem(tensors: Mapping[str, TensorEntry]) -> dict[str, dict[Slot, Shape]]:
    """The adapter tensors of a file by the layer they name, without knowing any model."""
    layers: dict[str, dict[Slot, Shape]] = {}
    for key, entry in tensors.items():
        spelled = spell(key)
        if spelled is not None:
            layers.setdefault(spelled.stem, {})[spelled.slot] = entry.shape
    return layers


def listed(names: Iterable[str], limit: int = 3, *, total: int | None = None) -> str:
    """A few of `names` for a sentence; `total` is how many there are, where some are left out."""
    some = list(names)
    count = len(some) if total is None else total
    more = f" and {count - limit} more" if count > limit else ""
    return ", ".join(some[:limit]) + more
