"""Fits a file's tensors to a model's modules: every layer resolved, every shape exact.

Duty: header + module table → which tensor is which part of which layer, or a refusal that says
what the file seems to be. The worker parses by this layout, the backend inspects by it: so both
accept the same files.
Must not know: values, torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sdxl_contract.errors import LoraLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.lora.identify import (
    foreign_kind,
    group_by_stem,
    listed,
    name_base_model,
)
from sdxl_contract.lora.modules import UNET, KeyMap, NamedModule, is_idle, looks_like_layer
from sdxl_contract.lora.safetensors import FACTOR_DTYPES, SafetensorsHeader, load_failed, shown
from sdxl_contract.lora.shapes import Algorithm, Misfit, ModulePlan, Shape, plan_module
from sdxl_contract.lora.spelling import Slot, SpelledKey, spell

# α beyond this is no training setting; it bounds α / rank, too.
MAX_ALPHA = 65536.0
_NAMED_IN_ERRORS = 5
# Numbers that a change is multiplied by: alone they change nothing.
_FACTORS = frozenset({Slot.ALPHA, Slot.SCALAR})
# Module name, or the end of one → its place among the patterns, and its α.
_Patterns = dict[str, tuple[int, Any]]
_PLAIN_PATTERN = re.compile(r"\^?[\w.-]+")


@dataclass
class LayerTensors:
    """One layer's part of a file: the tensors' keys by slot, and how they combine.

    `file_alpha` is α where the file states it outside the tensors (diffusers' metadata); already
    adjusted so that the change's factor is α / rank.
    """

    keys: dict[Slot, str]
    plan: ModulePlan
    file_alpha: float | None = None


@dataclass
class LoraLayout:
    """What a file changes: full module name → its tensors. `strays` are keys of no layer."""

    header: SafetensorsHeader
    layers: dict[str, LayerTensors]
    strays: list[str]
    format: str
    algorithm: str
    rank: int

    @property
    def text_encoder(self) -> bool:
        """Whether a text encoder is changed, so that embeddings depend on the LoRA."""
        return any(not name.startswith(f"{UNET}.") for name in self.layers)


@dataclass
class _Gathered:
    keys: dict[Slot, str] = field(default_factory=dict)
    stem: str = ""


def lay_out(
    header: SafetensorsHeader,
    modules: Mapping[str, Shape],
    key_map: KeyMap,
    model_name: str,
) -> LoraLayout:
    """Every tensor of `header` in its place in a model.

    Args:
        modules: full module name → weight shape.
        key_map: spellings of those modules.
        model_name: for messages.

    Raises:
        LoraLoadFailed: the file is no LoRA, one for another model, or misfits in any layer.
    """
    layers: dict[str, _Gathered] = {}
    styles: set[str] = set()
    namings: set[str] = set()
    strays: list[str] = []
    unresolved: list[str] = []
    spelling = {key: spell(key) for key in header.tensors}
    # Each stem once: it has several tensors.
    named = {one.stem: key_map.resolve(one.stem) for one in spelling.values() if one is not None}
    if None in spelling.values() or None in named.values():
        # Not all of it is a change of this model's layers.
        refuse_foreign(header)
    passed_over = _passed_over(spelling.values(), named, key_map)
    for key, entry in header.tensors.items():
        spelled = spelling[key]
        if spelled is not None and spelled.stem in passed_over:
            strays.append(key)
            continue
        found = None if spelled is None else named[spelled.stem]
        if spelled is None or found is None:
            # A key that looks like a layer's is a part of the change that would be lost.
            lost = looks_like_layer(key) or (spelled is not None and spelled.slot is not Slot.ALPHA)
            (unresolved if lost else strays).append(key)
            continue
        if spelled.slot is not Slot.ALPHA and entry.dtype not in FACTOR_DTYPES:
            raise load_failed(
                f"'{shown(key)}' is {entry.dtype}; LoRA tensors must be one of "
                f"{', '.join(sorted(FACTOR_DTYPES))}.",
                "dtype",
            )
        gathered = layers.setdefault(found.module, _Gathered(stem=spelled.stem))
        if spelled.slot in gathered.keys:
            raise load_failed(
                f"'{shown(gathered.keys[spelled.slot])}' and '{shown(key)}' are the same part of "
                "one layer.",
                "duplicate_key",
            )
        gathered.keys[spelled.slot] = key
        styles.add(spelled.style)
        namings.add(found.naming)
    if unresolved or not layers:
        raise _no_such_layers(header, unresolved, len(layers), key_map, model_name)
    planned = _plan(header, layers, modules, model_name)
    _read_file_alphas(header, planned)
    return LoraLayout(
        header=header,
        layers=planned,
        strays=[shown(key) for key in strays],
        format=_format(styles, namings, header.metadata),
        algorithm=_algorithm(planned, modules),
        rank=max(layer.plan.rank for layer in planned.values()),
    )


def _passed_over(
    spelled: Iterable[SpelledKey | None], named: Mapping[str, NamedModule | None], key_map: KeyMap
) -> set[str]:
    """The stems of which only a factor was left behind, where a tool took the rest out, and those
    of a part that this model never asks.

    Args:
        named: each stem's module.
    """

    def name(stem: str) -> str:
        found = named[stem]
        return stem if found is None else found.module

    changed = {name(one.stem) for one in spelled if one is not None and one.slot not in _FACTORS}
    return {stem for stem in named if name(stem) not in changed or is_idle(stem, key_map)}


def refuse_foreign(header: SafetensorsHeader) -> None:
    """Refuses by name what is no adapter of a kind that is read here."""
    kind = foreign_kind(header.tensors)
    if kind is not None:
        raise load_failed(
            f"The file is {kind}, which is not supported as a LoRA.",
            "unsupported_kind",
            seems=kind,
        )


def _plan(
    header: SafetensorsHeader,
    layers: Mapping[str, _Gathered],
    modules: Mapping[str, Shape],
    model_name: str,
) -> dict[str, LayerTensors]:
    planned: dict[str, LayerTensors] = {}
    misfits: list[str] = []
    # Hundreds of layers have the same shapes.
    alike: dict[object, ModulePlan] = {}
    for name, gathered in layers.items():
        shapes = {slot: header.tensors[key].shape for slot, key in gathered.keys.items()}
        kind = (*shapes.items(), modules[name])
        plan = alike.get(kind)
        if plan is None:
            try:
                plan = alike[kind] = plan_module(shapes, modules[name])
            except Misfit as misfit:
                misfits.append(f"{name}: {misfit}")
                continue
        planned[name] = LayerTensors(gathered.keys, plan)
    if misfits:
        seems = name_base_model(group_by_stem(header.tensors))
        raise load_failed(
            f"The LoRA does not fit {model_name}{_seems(seems, model_name)}: {len(misfits)} of "
            f"{len(layers)} layers misfit, first {misfits[0]}.",
            "misfit",
            seems=seems,
            misfits=misfits[:_NAMED_IN_ERRORS],
        )
    return planned


def _seems(seems: str | None, model_name: str) -> str:
    return f"; it seems to be for {seems}" if seems and seems.lower() != model_name.lower() else ""


def _no_such_layers(
    header: SafetensorsHeader,
    unresolved: list[str],
    matched: int,
    key_map: KeyMap,
    model_name: str,
) -> LoraLoadFailed:
    parts = [key for key in unresolved if _names_a_layer(key, key_map)]
    names = [shown(key) for key in unresolved[:_NAMED_IN_ERRORS]]
    if parts and len(parts) == len(unresolved):
        return load_failed(
            f"The LoRA changes layers in a way that is not supported: {len(parts)} of its "
            f"{len(header.tensors)} tensors are no part of a known algorithm, such as "
            f"{listed(names, total=len(parts))}.",
            "unknown_parts",
            unmatched=names,
        )
    layers = group_by_stem(header.tensors)
    seems = name_base_model(layers) if layers else None
    if not names:
        return load_failed(
            "The file holds no layer that a LoRA could change.", "no_layers", seems=seems
        )
    return load_failed(
        f"The LoRA does not fit {model_name}{_seems(seems, model_name)}: {len(unresolved)} of its "
        f"{len(header.tensors)} tensors name no layer of it, such as "
        f"{listed(names, total=len(unresolved))}.",
        "unknown_layers" if matched else "no_layers",
        seems=seems,
        unmatched=names,
    )


def _names_a_layer(key: str, key_map: KeyMap) -> bool:
    """Whether `key` begins with a layer's name, whatever part of a change it then names."""
    stem = key
    for _ in range(4):
        stem = stem.rpartition(".")[0]
        if stem and key_map.resolve(stem) is not None:
            return True
    return False


def _format(styles: set[str], namings: set[str], metadata: Mapping[str, str]) -> str:
    """One word for the spelling; several joined by `+` where a file mixes them."""
    if "ot_branch" in metadata or "onetrainer" in metadata.get("modelspec.author", "").lower():
        return "onetrainer"
    styles = styles - {""}
    found: set[str] = set()
    if namings & {"kohya", "kohya-sgm"}:
        sgm = "kohya-sgm" in namings
        found.add("lycoris" if styles == {"lycoris"} else "kohya-sgm" if sgm else "kohya")
    if "lycoris" in namings:
        found.add("lycoris")
    if "sgm" in namings:
        found.add("sgm")
    if "peft" in namings:
        found.add("peft")
    if "diffusers" in namings:
        found.add("peft" if "peft" in styles else "diffusers")
    return "+".join(sorted(found))


def _algorithm(planned: Mapping[str, LayerTensors], modules: Mapping[str, Shape]) -> str:
    """`lora`, `locon`, `loha+dora`, …: what occurs, in a fixed order."""
    found = {layer.plan.algorithm.value for layer in planned.values()}
    if any(
        layer.plan.algorithm is Algorithm.LORA and len(modules[name]) == 4
        for name, layer in planned.items()
    ):
        found = found - {"lora"} | {"locon"}
    if len(found) > 1:
        found.discard("bias")
    if any(layer.plan.dora for layer in planned.values()):
        found = {"dora"} if found == {"lora"} else found | {"dora"}
    order = ["lora", "locon", "tucker", "loha", "lokr", "full", "bias", "dora"]
    return "+".join(name for name in order if name in found)


def _read_file_alphas(header: SafetensorsHeader, planned: Mapping[str, LayerTensors]) -> None:
    """α from `lora_adapter_metadata`, where diffusers keeps PEFT's configuration.

    Keys are `<component>.<PEFT field>`; `alpha_pattern` maps a module's name, or the end of one,
    to its own α, as in PEFT. PEFT takes regular expressions there, too: a file that has one is
    refused, because an untrusted one may run for ever and passing it over would give wrong weights.
    """
    text = header.metadata.get("lora_adapter_metadata")
    if text is None:
        return
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise load_failed("lora_adapter_metadata is not valid JSON.", "metadata") from error
    if not isinstance(config, dict):
        raise load_failed("lora_adapter_metadata is not a JSON object.", "metadata")
    patterns: dict[str, _Patterns] = {}
    for name, layer in planned.items():
        if Slot.ALPHA in layer.keys or layer.plan.algorithm is not Algorithm.LORA:
            continue
        root, _, rest = name.partition(".")
        if root not in patterns:
            patterns[root] = _plain_patterns(config.get(f"{root}.alpha_pattern"))
        alpha = _own_alpha(patterns[root], rest)
        alpha = config.get(f"{root}.lora_alpha") if alpha is None else alpha
        if alpha is None:
            continue
        # NaN compares false, so that it is refused as well.
        if type(alpha) not in (int, float) or not -MAX_ALPHA <= alpha <= MAX_ALPHA:
            raise load_failed("lora_adapter_metadata holds an α that is no number.", "metadata")
        rslora = config.get(f"{root}.use_rslora")
        if rslora not in (None, True, False):
            raise load_failed(
                "lora_adapter_metadata holds a use_rslora that is neither true nor false.",
                "metadata",
            )
        # rsLoRA divides by √rank; layers are computed with α / rank.
        layer.file_alpha = alpha * layer.plan.rank**0.5 if rslora else float(alpha)


def _plain_patterns(pattern: Any) -> _Patterns:
    """`alpha_pattern` with its keys as plain text, a leading `^` kept; the first match counts."""
    if not isinstance(pattern, dict):
        return {}
    plain: _Patterns = {}
    for key, alpha in pattern.items():
        text = key.removesuffix("$").replace("\\.", ".")
        if not _PLAIN_PATTERN.fullmatch(text):
            raise load_failed(
                f"lora_adapter_metadata gives an α by the pattern '{shown(key, 60)}': only module "
                "names, or ends of them, are read.",
                "metadata",
            )
        plain.setdefault(text, (len(plain), alpha))
    return plain


def _own_alpha(patterns: _Patterns, rest: str) -> Any:
    # Looked up, not tried one by one: a hostile file has a million of them.
    parts = rest.split(".")
    ends = [f"^{rest}", *(".".join(parts[start:]) for start in range(len(parts)))]
    found = [patterns[end] for end in ends if end in patterns]
    return min(found, key=lambda one: one[0])[1] if found else None


@lru_cache(maxsize=8)
def _key_map_of(names: tuple[str, ...]) -> KeyMap:
    return KeyMap(names)


def signature_key_map(signature: BaseModelSignature) -> KeyMap:
    """The spellings of a signature's modules, built once."""
    return _key_map_of(tuple(signature.modules))
