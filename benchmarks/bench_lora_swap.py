"""How long does one LoRA swap take at SDXL's real size, and is the model the same afterwards?

Builds the full SDXL UNet (2.567 B parameters, BF16, random) on the CPU and a kohya LoRA of rank 32
on its 722 linear layers inside transformer blocks. Times, in one process and on the same weights:
  peer   diffusers: load_lora_weights + fuse_lora + unfuse_lora + unload_lora_weights
  ours   file → parse → apply → restore, the restore with its check of every byte
  memcpy the tensors that the LoRA touches, copied once
and how many weights each leaves changed. `--full` adds: cached, A→B, same again, three at once,
ranks 8 to 128, with both text encoders at their real sizes. `--tiny` runs all of it small.

    python benchmarks/bench_lora_swap.py [--full] [--tiny] [--threads N] [--json FILE] [--plot FILE]

Needs about 14 GB. Last line: JSON. Times are seconds; the best of some runs, as what else the
machine does can only add to them.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Before torch starts its threads: ones that spin while they wait make every step of both sides
# many times slower as soon as the machine has anything else to do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from full_size import UNET, random_fill
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdxl_worker.lora import LoraPatcher, ModelTargets, ParsedLora, lora_targets, parse_lora

TINY = UNET | {
    "block_out_channels": (32, 64, 64),
    "norm_num_groups": 8,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 4),
}
TEXT_SIZES = {"text_encoder": (768, 12, 3072, 12), "text_encoder_2": (1280, 32, 5120, 20)}


def build_unet(config: dict[str, Any]) -> nn.Module:
    """The UNet in BF16, without the float32 detour that would need twice the memory."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)  # type: ignore[no-untyped-call]
    return random_fill(unet.to(torch.bfloat16).to_empty(device="cpu"), 0)


def build_text_encoders(tiny: bool) -> dict[str, nn.Module]:
    """Both text encoders at their real sizes, or with two layers."""
    built: dict[str, nn.Module] = {}
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for seed, (name, (hidden, layers, wide, heads)) in enumerate(TEXT_SIZES.items()):
        config = CLIPTextConfig(
            hidden_size=hidden,
            num_hidden_layers=2 if tiny else layers,
            intermediate_size=wide,
            num_attention_heads=heads,
            projection_dim=hidden,
        )
        with torch.device("meta"):
            encoder: Any = classes[name](config)
        built[name] = random_fill(encoder.to(torch.bfloat16).to_empty(device="cpu"), seed)
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


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `action` took, and its result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def best(action: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest of `runs`."""
    return min(timed(action)[0] for _ in range(runs))


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes."""
    return {
        name: hashlib.sha256(tensor.detach().view(torch.uint8).numpy().data).hexdigest()
        for name, tensor in tensors.items()
    }


def changed_weights(tensors: dict[str, Tensor], before: dict[str, Tensor]) -> tuple[int, int]:
    """How many elements differ from `before`, and of how many."""
    different = sum(int((tensors[name] != old).sum()) for name, old in before.items())
    return different, sum(old.numel() for old in before.values())


class Swap:
    """One model, one patcher, one file: the measurements of our side."""

    def __init__(self, targets: ModelTargets, runs: int) -> None:
        self.targets, self.runs = targets, runs
        self.startup_s, self.patcher = timed(lambda: LoraPatcher(targets))

    def cold(self, path: Path) -> dict[str, float]:
        """From the file to the model and back; the fastest of the runs, and its parts."""
        found: list[dict[str, float]] = []
        for _ in range(self.runs):
            parse_s, lora = timed(lambda: parse_lora(path, self.targets, sha256="0" * 64))
            apply_s, _ = timed(partial(self.patcher.apply, [(lora, 0.8)]))
            restore_s, report = timed(self.patcher.restore)
            # Its memory is given back before the next run asks for as much again.
            lora = None
            total = parse_s + apply_s + restore_s
            found.append({
                "total_s": total, "parse_s": parse_s, "apply_s": apply_s, "restore_s": restore_s,
                "copy_back_s": report.copy_seconds, "verify_s": report.verify_seconds,
                "bytes": report.nbytes, "tensors": report.tensors,
            })  # fmt: skip
        fastest = min(found, key=lambda run: run["total_s"])
        fastest["median_s"] = statistics.median(run["total_s"] for run in found)
        fastest["restore_s"] = min(run["restore_s"] for run in found)
        fastest["copy_back_s"] = min(run["copy_back_s"] for run in found)
        return fastest

    def cached(self, lora: ParsedLora) -> dict[str, float]:
        """Parsed already: apply and restore."""
        apply_s = restore_s = float("inf")
        for _ in range(self.runs):
            apply_s = min(apply_s, timed(lambda: self.patcher.apply([(lora, 0.8)]))[0])
            restore_s = min(restore_s, timed(self.patcher.restore)[0])
        return {"apply_s": apply_s, "restore_s": restore_s, "total_s": apply_s + restore_s}

    def switch(self, first: ParsedLora, second: ParsedLora) -> float:
        """A→B and back, per switch."""
        self.patcher.apply([(first, 0.8)])
        seconds = []
        for number in range(2 * self.runs):
            to = second if number % 2 == 0 else first
            seconds.append(timed(partial(self.patcher.apply, [(to, 0.8)]))[0])
        self.patcher.restore()
        return min(seconds)

    def same_again(self, lora: ParsedLora) -> float:
        """The set that is applied already."""
        self.patcher.apply([(lora, 0.8)])
        seconds = best(lambda: self.patcher.apply([(lora, 0.8)]), 20)
        self.patcher.restore()
        return seconds

    def together(self, loras: list[ParsedLora]) -> float:
        """Several at once with different scales."""
        pairs = [(lora, 0.5 + number / 10) for number, lora in enumerate(loras)]
        seconds = []
        for _ in range(self.runs):
            seconds.append(timed(lambda: self.patcher.apply(pairs))[0])
            self.patcher.restore()
        return min(seconds)


def memcpy_seconds(targets: ModelTargets, names: list[str], runs: int) -> float:
    """Copying the weights that the LoRA touches to memory that is there already, once."""
    weights = [targets.modules[name].weight.detach() for name in names]
    copies = [torch.empty_like(weight).copy_(weight) for weight in weights]

    def copy() -> None:
        for weight, target in zip(weights, copies, strict=True):
            target.copy_(weight)

    return best(copy, runs)


def peer_cycle(roots: dict[str, nn.Module], path: Path) -> dict[str, float]:
    """One load, fuse, unfuse and unload by diffusers, as a service that resets would do it."""
    pipeline: Any = StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=None, tokenizer=None, tokenizer_2=None, scheduler=None,
        unet=roots["unet"],
        text_encoder=roots.get("text_encoder"),
        text_encoder_2=roots.get("text_encoder_2"),
    )  # fmt: skip
    components = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in roots]
    load_s, _ = timed(lambda: pipeline.load_lora_weights(str(path)))
    fuse_s, _ = timed(lambda: pipeline.fuse_lora(components=components, lora_scale=0.8))
    unfuse_s, _ = timed(lambda: pipeline.unfuse_lora(components=components))
    unload_s, _ = timed(pipeline.unload_lora_weights)
    total = load_s + fuse_s + unfuse_s + unload_s
    return {"total_s": total, "load_s": load_s, "fuse_s": fuse_s, "unfuse_s": unfuse_s,
            "unload_s": unload_s}  # fmt: skip


def resident_gb() -> float:
    """Memory of this process now, in GB (10⁹ bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def hardware() -> str:
    """The CPU's name and what of it is used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything asked for; see the module's text."""
    unet = build_unet(TINY if args.tiny else UNET)
    roots: dict[str, nn.Module] = {"unet": unet}
    print(f"UNet of {sum(p.numel() for p in unet.parameters()) / 1e9:.3f} B parameters")
    targets = lora_targets(unet)
    files = {}
    for name, rank, seed in (("a", args.rank, 1), ("b", args.rank, 2)):
        files[name] = folder / f"{name}.safetensors"
        save_file(kohya_lora(targets, rank, seed, text=False), files[name])
    swap = Swap(targets, args.runs)
    lora = parse_lora(files["a"], targets, sha256="a" * 64)
    touched = list(lora.layers)
    read_s = best(lambda: files["a"].read_bytes(), args.runs)
    before = digests({name: targets.modules[name].weight for name in touched})
    memcpy_s = memcpy_seconds(targets, touched, args.runs)
    ours = swap.cold(files["a"])
    swap.patcher.verify_full()
    after = digests({name: targets.modules[name].weight for name in touched})
    changed = sum(before[name] != after[name] for name in before)
    print(f"ours {ours['total_s']:.2f} s, memcpy {memcpy_s:.2f} s")

    result: dict[str, Any] = {
        "modules": len(touched),
        "lora_mb": round(files["a"].stat().st_size / 1e6, 1),
        "touched_weights": sum(targets.modules[name].weight.numel() for name in touched),
        "patcher_start_s": swap.startup_s,
        "read_s": read_s,
        "memcpy_s": memcpy_s,
        "ours": ours,
        "changed_weights": changed and changed_weights(
            {n: targets.modules[n].weight for n in touched},
            {n: swap.patcher.pristine(n) for n in touched},
        )[0],
    }  # fmt: skip
    if args.full:
        result |= extended(args, swap, lora, files, folder)
    pristine = {name: swap.patcher.pristine(name).clone() for name in touched[::40]}
    del lora, swap
    gc.collect()
    # The peer goes last: what it leaves behind stays in the weights.
    peers = [peer_cycle(roots, files["a"]) for _ in range(args.peer_runs)]
    different, of = changed_weights({n: targets.modules[n].weight for n in pristine}, pristine)
    peer = min(peers, key=lambda run: run["total_s"])
    return result | {
        "peer": peer,
        "peer_cycles": len(peers),
        "peer_changed_fraction": different / of,
    }


def extended(
    args: argparse.Namespace, swap: Swap, lora: ParsedLora, files: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """The cases beside the plain one."""
    second = parse_lora(files["b"], swap.targets, sha256="b" * 64)
    found: dict[str, Any] = {
        "cached": swap.cached(lora),
        "switch_s": swap.switch(lora, second),
        "same_again_s": swap.same_again(lora),
    }
    third_file = folder / "c.safetensors"
    save_file(kohya_lora(swap.targets, args.rank, 3, text=False), third_file)
    third = parse_lora(third_file, swap.targets, sha256="c" * 64)
    found["three_at_once_s"] = swap.together([lora, second, third])
    del second, third
    ranks = {}
    for rank in (4, 8, 16) if args.tiny else (8, 16, 32, 64, 128):
        path = folder / "rank.safetensors"
        save_file(kohya_lora(swap.targets, rank, 4, text=False), path)
        ranks[rank] = swap.cold(path) | {"read_s": best(path.read_bytes, 2)}
        print(f"rank {rank}: {ranks[rank]['total_s']:.2f} s")
    found["ranks"] = ranks
    found["flat_memory"] = flat_memory(swap, lora, 4 if not args.tiny else 100)
    found["with_text_encoders"] = with_text_encoders(args, swap, folder)
    return found


def flat_memory(swap: Swap, lora: ParsedLora, swaps: int) -> dict[str, float]:
    """Resident memory before and after some swaps; the tests do five hundred, on a small model."""
    swap.cached(lora)
    before = resident_gb()
    for _ in range(swaps):
        with swap.patcher.applied([(lora, 0.7)]):
            pass
    return {"swaps": swaps, "before_gb": before, "after_gb": resident_gb()}


def with_text_encoders(args: argparse.Namespace, swap: Swap, folder: Path) -> dict[str, Any]:
    """A LoRA on the UNet and both text encoders, ours against the peer on fresh text encoders.

    The UNet's part is measured above; here only the encoders are added, so that no second
    pristine copy of the UNet is needed.
    """
    roots = build_text_encoders(args.tiny)
    targets = ModelTargets(dict(roots))
    path = folder / "text.safetensors"
    save_file(kohya_lora(targets, args.rank, 5, text=True), path)
    text_swap = Swap(targets, args.runs)
    ours = text_swap.cold(path)
    total = ours["total_s"]
    names = list(parse_lora(path, targets, sha256="d" * 64).layers)
    return {
        "text_encoders_s": total,
        "modules": len(names),
        "memcpy_s": memcpy_seconds(targets, names, args.runs),
        "restore_s": ours["restore_s"],
        "text_mb": round(path.stat().st_size / 1e6, 1),
    }


def summarise(result: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The result with the figures that the project promises in front."""
    ours, peer = result["ours"], result["peer"]
    promised = {
        "peer_s": peer["total_s"],
        "ours_s": ours["total_s"],
        "ratio": peer["total_s"] / ours["total_s"],
        "restore_over_memcpy": ours["copy_back_s"] / result["memcpy_s"],
        "restore_verified_over_memcpy": ours["restore_s"] / result["memcpy_s"],
        "changed_weights": result["changed_weights"],
        "peer_changed_fraction": result["peer_changed_fraction"],
        "parse_over_read": ours["parse_s"] / result["read_s"],
    }
    if "switch_s" in result:
        promised["peer_over_switch"] = peer["total_s"] / result["switch_s"]
        promised["same_again_s"] = result["same_again_s"]
    context = {
        "hardware": hardware(),
        "torch": torch.__version__,
        "rank": args.rank,
        "runs": args.runs,
        "load_average": os.getloadavg()[0],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    return _rounded(promised | context | result)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Four digits are all that a time here means."""
    rounded: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            rounded[key] = _rounded(value)
        else:
            rounded[key] = float(f"{value:.4g}") if isinstance(value, float) else value
    return rounded


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars: where the seconds of one swap go."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    peer, ours = result["peer"], result["ours"]
    rows: dict[str, list[tuple[str, float]]] = {
        "diffusers": [(k, peer[f"{k}_s"]) for k in ("load", "fuse", "unfuse", "unload")],
        "ours, cold file": [("parse", ours["parse_s"]), ("apply", ours["apply_s"]),
                            ("restore + check", ours["restore_s"])],
    }  # fmt: skip
    if "cached" in result:
        rows["ours, cached"] = [("apply", result["cached"]["apply_s"]),
                                ("restore + check", result["cached"]["restore_s"])]  # fmt: skip
        rows["ours, A → B"] = [("apply", result["switch_s"])]
        rows["ours, three at once"] = [("apply", result["three_at_once_s"])]
    rows["memcpy of the same bytes"] = [("copy", result["memcpy_s"])]
    meanings = {
        "#9aa5b1": ("read the file", ("load", "parse")),
        "#d1495b": ("into the weights", ("fuse", "apply")),
        "#30638e": ("out again, ours with a check of every byte", ("unfuse", "restore + check")),
        "#edae49": ("unload", ("unload",)),
        "#555555": ("memcpy", ("copy",)),
    }
    colours = {part: colour for colour, (_, parts) in meanings.items() for part in parts}
    figure, axes = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
    for number, parts in enumerate(rows.values()):
        left = 0.0
        for label, seconds in parts:
            axes.barh(number, seconds, left=left, color=colours[label])
            left += seconds
        axes.text(left, number, f" {left:.2f} s", va="center")
    for colour, (meaning, _) in meanings.items():
        axes.bar(0, 0, color=colour, label=meaning)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    context = f"{result['hardware']}, load average {result['load_average']}"
    axes.set_xlabel(
        f"seconds for one swap of a rank-{result['rank']} LoRA on SDXL's UNet; {context}",
        fontsize=8,
    )
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the benchmark as the arguments say; prints the JSON last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the extended cases, too")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-runs", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch; on a busy machine 1 is fairer")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--plot", type=Path, help="draw it there (PNG or SVG)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.tiny:
        args.rank = min(args.rank, 16)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        result = summarise(measure(args, Path(folder)), args)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot is not None:
        plot(result, args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
