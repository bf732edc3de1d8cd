"""How long does one LoRA swap take at SDXL's real size, and is the model the same afterwards?

Builds SDXL's UNet (2.567 B parameters) and both text encoders in BF16 with random weights, on the
CPU, and kohya LoRAs of rank 32 on the UNet's 722 linear layers inside transformer blocks. Times, in
one process and on the same weights, ours against diffusers and against a memcpy of the bytes:
  cold       file → parse → apply → restore with its check of every byte
             diffusers: load_lora_weights + fuse_lora + unfuse_lora + unload_lora_weights
  cached     the same with the file parsed already; diffusers has no such thing: its cycle again
  switch     from one applied LoRA to another; diffusers: unfuse, unload, load, fuse
  three      three at once with scales of their own, and out again
  rank_…     cold, for ranks 8 to 128
  text       cold, with a LoRA on the UNet and both text encoders
and how many weights each side leaves changed. `--quick` leaves out all but the first; `--tiny` runs
all of it on a small model.

    python -m benchmarks.bench_lora_swap [--quick] [--tiny] [--runs N] [--threads N]
                                        [--json FILE] [--plot FILE]

Needs 20 GB of memory. Last line: JSON. Times are seconds; the best of some runs for ours and for
memcpy, as what else the machine does can only add to them; one run of diffusers where its case
takes long (`--peer-runs`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import tempfile
import warnings
from pathlib import Path
from typing import Any

# Before torch starts its threads: ones that spin while they wait make every step of both sides
# many times slower as soon as the machine has anything else to do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from benchmarks.swap_sides import (
    Ours,
    Peer,
    Seconds,
    best,
    best_run,
    build_model,
    changed_weights,
    digests,
    hardware,
    lora_file,
    memcpy_seconds,
)
from sdxl_worker.lora import ModelTargets, ParsedLora, lora_targets

RANKS = (8, 16, 64, 128)


class Cases:
    """Each case by name: what our side takes, what diffusers takes, what a memcpy takes."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, name: str, ours: Seconds, memcpy_s: float) -> None:
        """Our side of a case."""
        self.found[name] = {"ours_s": ours["total_s"], "memcpy_s": memcpy_s, "ours": ours}
        print(f"{name}: ours {ours['total_s']:.3f} s, memcpy {memcpy_s:.2f} s", flush=True)

    def add_peer(self, name: str, peer: Seconds) -> None:
        """The other side of it."""
        case = self.found[name]
        case |= {"peer_s": peer["total_s"], "ratio": peer["total_s"] / case["ours_s"], "peer": peer}
        print(f"{name}: diffusers {peer['total_s']:.2f} s, {case['ratio']:.1f} x", flush=True)


def resident_gb() -> float:
    """Memory of this process now, in GB (10⁹ bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything asked for; see the module's text."""
    roots = build_model(args.tiny)
    count = sum(p.numel() for p in roots["unet"].parameters())
    print(f"UNet of {count / 1e9:.3f} B parameters")
    targets = lora_targets(roots["unet"], roots["text_encoder"], roots["text_encoder_2"])
    path = lora_file(folder, targets, args.rank, 1)
    side = Ours(targets, args.runs)
    lora = side.parse(path)
    touched = list(lora.layers)
    read_s = best(path.read_bytes, args.runs)
    weights = {name: targets.modules[name].weight for name in touched}
    before = digests(weights)
    memcpy_s = memcpy_seconds(targets, touched, args.runs)
    cases = Cases()
    cases.add("cold", side.cold(path), memcpy_s)
    more = {} if args.quick else extended(args, side, lora, folder, cases, memcpy_s)
    side.patcher.verify_full()
    after = digests(weights)
    changed = sum(before[name] != after[name] for name in before)
    result: dict[str, Any] = {
        "modules": len(touched),
        "lora_mb": round(path.stat().st_size / 1e6, 1),
        "touched_weights": sum(weight.numel() for weight in weights.values()),
        "patcher_start_s": side.startup_s,
        "read_s": read_s,
        "memcpy_s": memcpy_s,
        "changed_weights": changed and changed_weights(
            weights, {name: side.patcher.pristine(name) for name in touched}
        )[0],
    }  # fmt: skip
    pristine = {name: side.patcher.pristine(name).clone() for name in touched[::40]}
    del lora, side
    gc.collect()
    # The peer goes last: what it leaves behind stays in the weights.
    result["peer_changed_fraction"] = peers(args, roots, targets, folder, cases, pristine)
    # Again, beside diffusers: how much slower the machine was by then.
    result["peer_memcpy_s"] = memcpy_seconds(targets, touched, args.runs)
    return result | more | {"cases": cases.found}


def extended(
    args: argparse.Namespace,
    side: Ours,
    lora: ParsedLora,
    folder: Path,
    cases: Cases,
    memcpy_s: float,
) -> dict[str, Any]:
    """Our side of the cases beside the plain one."""
    second, third = (
        side.parse(lora_file(folder, side.targets, args.rank, seed)) for seed in (2, 3)
    )
    cases.add("cached", side.cached(lora), memcpy_s)
    cases.add("switch", side.switch(lora, second), memcpy_s)
    cases.add("three", side.together([lora, second, third]), memcpy_s)
    same_again = side.same_again(lora)["total_s"]
    flat = flat_memory(side, [lora, second], 100 if args.tiny else 10)
    del second, third
    for rank in RANKS:
        path = lora_file(folder, side.targets, _fitting(rank, args), 4)
        cases.add(f"rank_{rank}", side.cold(path), memcpy_s)
        cases.found[f"rank_{rank}"]["read_s"] = best(path.read_bytes, 2)
    path = lora_file(folder, side.targets, args.rank, 5, text=True)
    names = list(side.parse(path).layers)
    cases.add("text", side.cold(path), memcpy_seconds(side.targets, names, args.runs))
    cases.found["text"] |= {"modules": len(names), "lora_mb": path.stat().st_size / 1e6}
    return {"same_again_s": same_again, "flat_memory": flat}


def peers(
    args: argparse.Namespace,
    roots: dict[str, nn.Module],
    targets: ModelTargets,
    folder: Path,
    cases: Cases,
    pristine: dict[str, torch.Tensor],
) -> float:
    """diffusers' side of each case that was measured; the part of the weights that its first
    cycle leaves changed."""
    peer = Peer(roots)

    def file(rank: int, seed: int, text: bool = False) -> Path:
        return lora_file(folder, targets, rank, seed, text=text)

    first = file(args.rank, 1)
    cases.add_peer("cold", peer.cycle([first]))
    weights = {name: targets.modules[name].weight for name in pristine}
    different, of = changed_weights(weights, pristine)
    again = best_run(lambda: peer.cycle([first]), args.peer_runs)
    if again["total_s"] < cases.found["cold"]["peer_s"]:
        cases.add_peer("cold", again)
    if "cached" in cases.found:
        cases.add_peer("cached", cases.found["cold"]["peer"])
        switch = best_run(lambda: peer.switch(first, file(args.rank, 2)), args.peer_runs)
        cases.add_peer("switch", switch)
        cases.add_peer("three", peer.cycle([file(args.rank, seed) for seed in (1, 2, 3)]))
        for rank in RANKS:
            cases.add_peer(f"rank_{rank}", peer.cycle([file(_fitting(rank, args), 4)]))
        cases.add_peer("text", peer.cycle([file(args.rank, 5, text=True)], text=True))
    return different / of


def _fitting(rank: int, args: argparse.Namespace) -> int:
    """The tiny model's narrowest layer has 32 inputs."""
    return min(rank, 32) if args.tiny else rank


def flat_memory(side: Ours, loras: list[ParsedLora], swaps: int) -> dict[str, float]:
    """Resident memory before and after some swaps; the tests do five hundred, on a small model."""
    before = resident_gb()
    for number in range(swaps):
        with side.patcher.applied([(loras[number % len(loras)], 0.7)]):
            pass
    return {"swaps": swaps, "before_gb": before, "after_gb": resident_gb()}


def summarise(result: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The result with the figures that the project promises in front."""
    cold = result["cases"]["cold"]
    promised = {
        "peer_s": cold["peer_s"],
        "ours_s": cold["ours_s"],
        "ratio": cold["ratio"],
        "restore_over_memcpy": cold["ours"]["restore_s"] / result["memcpy_s"],
        "changed_weights": result["changed_weights"],
        "peer_changed_fraction": result["peer_changed_fraction"],
        "parse_over_read": cold["ours"]["parse_s"] / result["read_s"],
    }
    if "switch" in result["cases"]:
        switch = result["cases"]["switch"]
        promised |= {
            "switch_s": switch["ours_s"],
            "peer_cycle_over_switch": cold["peer_s"] / switch["ours_s"],
            "same_again_s": result["same_again_s"],
        }
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
    """Bars, case by case: diffusers, ours, a memcpy of the same bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = {
        "cold": "from a file",
        "cached": "cached",
        "switch": "A → B",
        "three": "three at once",
        **{f"rank_{rank}": f"rank {rank}, from a file" for rank in RANKS},
        "text": "with both text encoders",
    }
    cases = [(label, result["cases"][n]) for n, label in names.items() if n in result["cases"]]
    bars = {"diffusers": "peer_s", "ours": "ours_s", "memcpy of the same bytes": "memcpy_s"}
    colours = ("#d1495b", "#30638e", "#b8bec6")
    figure, axes = plt.subplots(figsize=(8.5, 1.2 + 0.62 * len(cases)), layout="constrained")
    for place, ((label, key), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        rows = [number + (place - 1) * 0.27 for number in range(len(cases))]
        axes.barh(rows, [case[key] for _, case in cases], 0.25, color=colour, label=label)
    for number, (_, case) in enumerate(cases):
        axes.text(case["peer_s"], number - 0.27, f" {case['ratio']:.1f} ×", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [label for label, _ in cases])
    axes.invert_yaxis()
    context = f"{result['hardware']}, load average {result['load_average']}"
    axes.set_xlabel(f"seconds for one swap on SDXL at its real size; {context}", fontsize=8)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the benchmark as the arguments say; prints the JSON last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first case only")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-runs", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of torch; on a busy machine 1 is fairer")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--plot", type=Path, help="draw it there (PNG or SVG)")
    args = parser.parse_args()
    if min(args.runs, args.peer_runs, args.rank) < 1:
        parser.error("--runs, --peer-runs and --rank must be 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
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
