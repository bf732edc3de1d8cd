"""What becomes of each LoRA format: in diffusers, and here. Prints a markdown table.

Every file is made from a seed for a small SDXL-shaped model with float32 weights, given to
diffusers (`load_lora_weights` + `fuse_lora`) and to this project's engine, and the merged weights
of each are compared with the formulas in float64. Nothing in the table is written by hand.

    python -m benchmarks.format_table [--write docs/lora-formats.md]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig

from sdxl_contract.errors import LoraLoadFailed
from sdxl_worker.lora import LoraPatcher, ModelTargets, parse_lora
from testkit.loras.making import Tensors, TinyModel, kohya_stem, lora_file, save, tiny_model
from testkit.loras.oracle import exact_change
from testkit.loras.spellings import PROCESSOR, SPELLINGS, attention_modules, respelled, text_modules

Weights = dict[str, torch.Tensor]

CONV = ["unet.down_blocks.1.resnets.0.conv1", "unet.down_blocks.1.resnets.0.conv_shortcut"]
NORM = "unet.down_blocks.1.attentions.0.norm"


class Row(NamedTuple):
    """One file, and the same change in kohya's spelling, by which it is checked."""

    label: str
    tensors: Tensors
    reference: Tensors
    metadata: dict[str, str] | None = None


def rows(model: TinyModel) -> Iterator[Row]:
    """The table's files."""
    attention = attention_modules(model)[:12]
    for spelling in (*SPELLINGS, PROCESSOR):
        reference = respelled(model, attention, "kohya")
        yield Row(f"plain · {spelling}", respelled(model, attention, spelling), reference)
    both = respelled(model, attention + text_modules(model), "kohya")
    yield Row("plain · kohya, with both text encoders", both, both)
    plain = respelled(model, attention, "kohya")
    yield Row("plain · kohya, with a stray `bundle_emb.` key",
              plain | {"bundle_emb.hero.clip_l": torch.ones(1, 8)}, plain)  # fmt: skip
    kinds = {
        "LoCon (3×3 and 1×1 convolutions)": "lora",
        "LoCon, Tucker core": "tucker",
        "LoHa": "loha",
        "LoHa, Tucker core": "loha-tucker",
        "LoKr, second factor decomposed": "lokr",
        "LoKr, both factors whole": "lokr-full",
        "LoKr, Tucker core": "lokr-tucker",
        "DoRA, per output": "dora-out",
        "DoRA, per input": "dora-in",
        "LoHa with DoRA": "loha-dora-out",
        "full differences (`diff`)": "full",
    }
    for label, kind in kinds.items():
        made = lora_file(model, kind, modules=attention[:4] + CONV, alpha=2.0)
        yield Row(label, made, made)
    yield peft_dora(model, attention[:4])
    yield peft_rslora(model, attention)
    norm = {f"{kohya_stem(NORM)}.w_norm": torch.full((64,), 0.5),
            f"{kohya_stem(NORM)}.b_norm": torch.full((64,), 0.25)}  # fmt: skip
    yield Row("norm layers (`w_norm`, `b_norm`) beside LoRA", plain | norm, plain | norm)
    bias = {f"{kohya_stem(CONV[0])}.diff_b": torch.full((64,), 0.5)}
    yield Row("bias differences (`diff_b`) beside LoRA", plain | bias, plain | bias)
    yield from what_tools_write(model, attention)


def what_tools_write(model: TinyModel, attention: list[str]) -> Iterator[Row]:
    """Other numbers, joined files, leftovers, and a tool's extraction of everything."""
    made = lora_file(model, "lora", modules=attention[:4], alpha=2.0)
    for label, dtype in (
        ("FP8, E4M3", torch.float8_e4m3fn),
        ("FP8, E5M2", torch.float8_e5m2),
        ("F64", torch.float64),
    ):
        stored = {k: v if k.endswith("alpha") else v.to(dtype) for k, v in made.items()}
        yield Row(f"factors in {label}", stored, {k: v.float() for k, v in stored.items()})
    wide = lora_file(model, "lora", modules=attention[:4], rank=100, alpha=2.0)
    yield Row("rank above the layer's width (joined files)", wide, wide)
    left = {f"{kohya_stem(attention[5])}.alpha": torch.tensor(4.0)}
    yield Row("an `alpha` without its factors", made | left, made)
    root = "text_encoder.text_model"
    clip = lora_file(model, "lora", alpha=None, modules=[
        f"{root}.encoder.layers.0.mlp.fc1", f"{root}.embeddings.token_embedding",
    ])  # fmt: skip
    stem = "text_encoders.clip_l.transformer"
    spelled = {
        f"{stem}.{name.partition('.')[2]}.{part}": clip[f"{kohya_stem(name)}.{part}"]
        for name in (f"{root}.encoder.layers.0.mlp.fc1", f"{root}.embeddings.token_embedding")
        for part in ("lora_up.weight", "lora_down.weight")
    }
    idle = {f"{stem}.text_projection.lora_up.weight": torch.zeros(32, 4),
            f"{stem}.text_projection.lora_down.weight": torch.ones(4, 32)}  # fmt: skip
    yield Row("ComfyUI's extraction, with CLIP and its embeddings", spelled | idle, clip)


def peft_dora(model: TinyModel, modules: list[str]) -> Row:
    """A DoRA as PEFT saves it, against the same in kohya's spelling."""
    reference = lora_file(model, "dora-out", modules=modules, alpha=None)
    renamed = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    spelled: Tensors = {}
    for module in modules:
        stem = kohya_stem(module)
        for old, new in renamed.items():
            spelled[f"{module}.{new}"] = reference[f"{stem}.{old}"]
        magnitude = reference[f"{stem}.dora_scale"].flatten()
        spelled[f"{module}.lora_magnitude_vector"] = magnitude
    return Row("DoRA, per output · peft", spelled, reference)


def peft_rslora(model: TinyModel, modules: list[str]) -> Row:
    """rsLoRA as diffusers saves it: α / √rank, with α in the file's metadata only."""
    alpha = {f"{kohya_stem(name)}.alpha": torch.tensor(2.0) for name in modules}
    targets = sorted({name.removeprefix("unet.") for name in modules})
    config = LoraConfig(r=4, lora_alpha=1, use_rslora=True, target_modules=targets).to_dict()
    stated = json.dumps({f"unet.{key}": value for key, value in config.items()}, default=list)
    return Row(
        "rsLoRA, α in the metadata · peft",
        respelled(model, modules, "peft"),
        respelled(model, modules, "kohya") | alpha,
        {"lora_adapter_metadata": stated},
    )


def weights(targets: ModelTargets) -> Weights:
    """All weights and biases, copied."""
    return {name: tensor.detach().clone() for name, tensor in targets.patchable()}


def expected(targets: ModelTargets, base: Weights, reference: Tensors) -> Weights:
    """Base + change in float64, for the tensors that the file changes."""
    found: Weights = {}
    for name in targets.modules:
        stem = kohya_stem(name)
        parts = {key.removeprefix(f"{stem}."): tensor for key, tensor in reference.items()
                 if key.startswith(f"{stem}.")}  # fmt: skip
        for part, tensor in (("diff_b", "bias"), ("b_norm", "bias"), ("w_norm", "weight")):
            if part in parts:
                key = f"{name}.{tensor}"
                found[key] = base[key].double() + parts.pop(part).double()
        if parts:
            key = f"{name}.weight"
            found[key] = base[key].double() + exact_change(parts, base[key])
    return found


def is_close(found: torch.Tensor, exact: torch.Tensor) -> bool:
    """Equal but for float32's rounding."""
    return torch.allclose(found.double(), exact, rtol=1e-4, atol=1e-5)


def verdict(base: Weights, after: Weights, right: Weights) -> str:
    """What the merged weights amount to."""
    untouched = [name for name in right if torch.equal(after[name], base[name])]
    close = [name for name, exact in right.items() if is_close(after[name], exact)]
    stray = [
        name for name in base if name not in right and not torch.equal(after[name], base[name])
    ]
    if len(close) == len(right) and not stray:
        return "right"
    if len(untouched) == len(right):
        return "loads nothing, raises nothing"
    if len(close) + len(untouched) == len(right):
        return f"leaves out {len(untouched)} of {len(right)} tensors, raises nothing"
    return f"wrong in {len(right) - len(close)} of {len(right)} tensors"


def attempt(load: Callable[[], str]) -> str:
    """The verdict, or the error in a few words."""
    try:
        return load()
    except LoraLoadFailed as error:
        return f"refused: {error.message}"
    except Exception as error:  # whatever diffusers raises is the answer
        text = " ".join(str(error).split()).replace("|", "/")
        return f"raises {type(error).__name__}: {text[:70]}{'…' if len(text) > 70 else ''}"


def by_diffusers(model: TinyModel, row: Row, base: Weights, right: Weights) -> str:
    """diffusers' own way from the file to fused weights."""
    pipeline: Any = StableDiffusionXLPipeline(
        vae=None, tokenizer=None, tokenizer_2=None, scheduler=None, unet=model.unet,
        text_encoder=model.text_encoder, text_encoder_2=model.text_encoder_2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        path.write_bytes(save(row.tensors, row.metadata))
        pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return verdict(base, weights(model.targets()), right)


def by_engine(model: TinyModel, row: Row, base: Weights, right: Weights) -> str:
    """This project's way."""
    targets = model.targets()
    lora = parse_lora(save(row.tensors, row.metadata), targets)
    patcher = LoraPatcher(targets)
    with patcher.applied([(lora, 1.0)]):
        return verdict(base, weights(targets), right)


def table() -> str:
    """The whole document."""
    first = tiny_model(torch.float32)
    targets = first.targets()
    base = weights(targets)
    lines = ["| file | diffusers | this engine |", "|---|---|---|"]
    score, files = [0, 0], list(rows(first))
    for row in files:
        right = expected(targets, base, row.reference)
        theirs = attempt(lambda: by_diffusers(deepcopy(first), row, base, right))  # noqa: B023
        ours = attempt(lambda: by_engine(deepcopy(first), row, base, right))  # noqa: B023
        score[0] += theirs == "right"
        score[1] += ours == "right"
        lines.append(f"| {row.label} | {theirs} | {ours} |")
        print(lines[-1], file=sys.stderr, flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "peft", "torch"))
    return "\n".join([
        "# LoRA formats: what becomes of each",
        "",
        "Made by `python -m benchmarks.format_table --write docs/lora-formats.md`; not edited by",
        "hand. Each file is merged into a small SDXL-shaped float32 model by diffusers",
        "(`load_lora_weights`, `fuse_lora`) and by this project's engine, and compared with the",
        "formulas in float64.",
        f"Versions: {versions}. Right of {len(files)} files: diffusers {score[0]}, this engine "
        f"{score[1]}.",
        "",
        *lines,
        "",
        "Refused by name, with what the file is: OFT and BOFT, GLoRA, T-LoRA, IA³ and PEFT's other",
        "adapters, ControlLoRA, ControlNet and LLLite, IP-Adapter, AnimateDiff modules, textual",
        "inversions, full checkpoints, VAEs, an α given by a regular expression, and LoRAs for",
        "SD 1, SD 2, the SDXL refiner, SD 3, Flux and other networks",
        "(`testkit/loras/malformed.py` makes one of each).",
        "",
    ])  # fmt: skip


def main() -> None:
    """Prints the table, or writes it to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    text = table()
    if args.write is None:
        print(text)
    else:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
