"""One model, and two ways to swap a LoRA in it: this project's and diffusers'. For
`bench_lora_swap.py`.

Duty: the model at its real size with random weights, LoRA files for it, and each side's steps with
the seconds that they take. Must not know: which cases there are, what is printed.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.full_size import TEXT_ENCODER, TEXT_ENCODER_2, UNET, random_fill
from sdxl_worker.lora import LoraPatcher, ModelTargets, ParsedLora, parse_lora

TINY = UNET | {
    "block_out_channels": (32, 64, 64),
    "norm_num_groups": 8,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 4),
}
SCALE = 0.8

Seconds = dict[str, float]


# --- the model and its LoRAs ------------------------------------------------------------------


def build_model(tiny: bool) -> dict[str, nn.Module]:
    """UNet and both text encoders in BF16, without the float32 detour that takes twice the
    memory; `tiny` for a small one of the same topology."""
    text_classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    configs = {"text_encoder": TEXT_ENCODER, "text_encoder_2": TEXT_ENCODER_2}
    built: dict[str, nn.Module] = {}
    with torch.device("meta"):
        built["unet"] = UNet2DConditionModel(**(TINY if tiny else UNET))
        for name, cls in text_classes.items():
            fewer = {"num_hidden_layers": 2} if tiny else {}
            built[name] = cls(CLIPTextConfig(**(configs[name] | fewer)))
    for seed, (name, module) in enumerate(built.items()):
        built[name] = random_fill(module.to(torch.bfloat16).to_empty(device="cpu"), seed)
    return built


def kohya_lora(targets: ModelTargets, rank: int, seed: int, text: bool) -> dict[str, Tensor]:
    """A kohya file in F16 on all linear layers of transformer blocks, as trainers make them."""
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in targets.shapes.items():
        root, _, rest = name.partition(".")
        in_block = "attentions" in rest and not rest.endswith(("norm", "proj_in", "proj_out"))
        wanted = in_block if root == "unet" else text and "encoder.layers" in rest
        if len(shape) != 2 or not (
            wanted or (root == "unet" and rest.endswith(("proj_in", "proj_out")))
        ):
            continue
        stem = prefixes[root] + rest.replace(".", "_")
        down = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
        up = torch.randn(shape[0], rank, generator=generator) * 0.01
        tensors[f"{stem}.lora_down.weight"] = down.half()
        tensors[f"{stem}.lora_up.weight"] = up.half()
        tensors[f"{stem}.alpha"] = torch.tensor(float(rank // 2 or 1)).half()
    return tensors


def lora_file(
    folder: Path, targets: ModelTargets, rank: int, seed: int, *, text: bool = False
) -> Path:
    """Such a file in `folder`."""
    path = folder / f"lora-{rank}-{seed}{'-text' if text else ''}.safetensors"
    save_file(kohya_lora(targets, rank, seed, text), path)
    return path


# --- clocks and comparisons -------------------------------------------------------------------


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `action` took, and its result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def best(action: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest of `runs`."""
    return min(timed(action)[0] for _ in range(runs))


def best_run(action: Callable[[], Seconds], runs: int) -> Seconds:
    """The run with the smallest `total_s`."""
    return min((action() for _ in range(runs)), key=lambda run: run["total_s"])


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.detach().view(torch.uint8).numpy().data).hexdigest()
        for name, tensor in tensors.items()
    }


def changed_weights(tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many elements differ from `before`, and of how many."""
    different = sum(int((tensors[name] != old).sum()) for name, old in before.items())
    return different, sum(old.numel() for old in before.values())


def memcpy_seconds(targets: ModelTargets, names: Sequence[str], runs: int) -> float:
    """Copying the weights that a LoRA touches to memory that is there already, once."""
    weights = [targets.modules[name].weight.detach() for name in names]
    copies = [torch.empty_like(weight).copy_(weight) for weight in weights]

    def copy() -> None:
        for weight, target in zip(weights, copies, strict=True):
            target.copy_(weight)

    return best(copy, runs)


def hardware() -> str:
    """The CPU's name and what of it is used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


# --- the two sides ----------------------------------------------------------------------------


class Ours:
    """The worker's patcher on one model."""

    def __init__(self, targets: ModelTargets, runs: int) -> None:
        self.targets, self.runs = targets, runs
        self.startup_s, self.patcher = timed(lambda: LoraPatcher(targets))

    def parse(self, path: Path) -> ParsedLora:
        """The LoRA of a file, named by the file."""
        name = hashlib.sha256(path.name.encode()).hexdigest()
        return parse_lora(path, self.targets, sha256=name)

    def cold(self, path: Path) -> Seconds:
        """From the file to the model and back, by part."""

        def once() -> Seconds:
            parse_s, lora = timed(lambda: self.parse(path))
            return self._swap(lora, parse_s)

        return best_run(once, self.runs)

    def cached(self, lora: ParsedLora) -> Seconds:
        """The same with the file parsed already."""
        return best_run(lambda: self._swap(lora, 0.0), self.runs)

    def _swap(self, lora: ParsedLora, parse_s: float) -> Seconds:
        apply_s, _ = timed(lambda: self.patcher.apply([(lora, SCALE)]))
        restore_s, report = timed(self.patcher.restore)
        return {
            "total_s": parse_s + apply_s + restore_s, "parse_s": parse_s, "apply_s": apply_s,
            "restore_s": restore_s, "bytes": report.nbytes, "tensors": report.tensors,
        }  # fmt: skip

    def switch(self, first: ParsedLora, second: ParsedLora) -> Seconds:
        """From one applied LoRA to another."""
        self.patcher.apply([(first, SCALE)])
        seconds = []
        for number in range(2 * self.runs):
            to = second if number % 2 == 0 else first
            seconds.append(timed(partial(self.patcher.apply, [(to, SCALE)]))[0])
        self.patcher.restore()
        return {"total_s": min(seconds)}

    def same_again(self, lora: ParsedLora) -> Seconds:
        """The set that is applied already."""
        self.patcher.apply([(lora, SCALE)])
        seconds = best(lambda: self.patcher.apply([(lora, SCALE)]), 20)
        self.patcher.restore()
        return {"total_s": seconds}

    def together(self, loras: Sequence[ParsedLora]) -> Seconds:
        """Several at once, each with a scale of its own, parsed already; and out again."""
        pairs = [(lora, 0.5 + number / 10) for number, lora in enumerate(loras)]

        def once() -> Seconds:
            apply_s, _ = timed(lambda: self.patcher.apply(pairs))
            restore_s, _ = timed(self.patcher.restore)
            return {"total_s": apply_s + restore_s, "apply_s": apply_s, "restore_s": restore_s}

        return best_run(once, self.runs)


class Peer:
    """diffusers' own way on the same modules, as a service that resets would do it.

    It does not give the weights back as they were: to be measured last.
    """

    def __init__(self, roots: dict[str, nn.Module]) -> None:
        self._pipe: Any = StableDiffusionXLPipeline(
            vae=None, tokenizer=None, tokenizer_2=None, scheduler=None, **roots
        )

    def cycle(self, paths: Sequence[Path], *, text: bool = False) -> Seconds:
        """Load, fuse, unfuse, unload; one file, or several with scales of their own."""
        components = ["unet", "text_encoder", "text_encoder_2"] if text else ["unet"]
        load_s, _ = timed(lambda: self._load(paths))
        fuse_s, _ = timed(lambda: self._fuse(components, many=len(paths) > 1))
        unfuse_s, _ = timed(lambda: self._pipe.unfuse_lora(components=components))
        unload_s, _ = timed(self._pipe.unload_lora_weights)
        return {
            "total_s": load_s + fuse_s + unfuse_s + unload_s, "load_s": load_s,
            "fuse_s": fuse_s, "unfuse_s": unfuse_s, "unload_s": unload_s,
        }  # fmt: skip

    def switch(self, first: Path, second: Path) -> Seconds:
        """From one fused LoRA to another: unfuse, unload, load, fuse."""
        self._load([first])
        self._fuse(["unet"])

        def change() -> None:
            self._leave()
            self._load([second])
            self._fuse(["unet"])

        seconds, _ = timed(change)
        self._leave()
        return {"total_s": seconds}

    def _load(self, paths: Sequence[Path]) -> None:
        for number, path in enumerate(paths):
            self._pipe.load_lora_weights(str(path), adapter_name=f"number-{number}")

    def _fuse(self, components: list[str], *, many: bool = False) -> None:
        if not many:
            self._pipe.fuse_lora(components=components, lora_scale=SCALE)
            return
        names = sorted({name for got in self._pipe.get_list_adapters().values() for name in got})
        self._pipe.set_adapters(names, [0.5 + number / 10 for number in range(len(names))])
        self._pipe.fuse_lora(components=components, adapter_names=names)

    def _leave(self) -> None:
        self._pipe.unfuse_lora(components=["unet"])
        self._pipe.unload_lora_weights()
