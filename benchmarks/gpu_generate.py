"""What does one picture cost on a real GPU, and how far is it from plain diffusers' picture?

One run measures plain diffusers and the worker's own loader and drawer on the same device, with the
same prompt, seeds, steps and sampler, in these variants:
  fp16 / bf16     the precision; the worker's `auto` is bf16 where the GPU has it
  channels-last   the memory layout CHANNELS_LAST
  compiled        the UNet's repeated blocks through torch.compile
  without-sdpa    attention by plain products and a softmax: what PyTorch's own attention saves
  other-vae       the VAE that --vae names, VAE_MODEL, in the first precision
  n-at-once       n pictures of one request denoised together, IMAGES_PER_BATCH
  lora            a LoRA of rank 32 into the weights before every request and out of them after it:
                  diffusers by load, fuse, unfuse and unload; the worker by parse, apply, restore
On a CPU there is one precision, float32. Seconds are the median of the repeats, the device being
waited for before the clock is read; two runs before that are not counted. Dollars are those of the
contract's price table. diffusers is handed the LoRA's tensors, the worker the bytes of its file, so
that reading and hashing it count against the worker.

Differences are absolute, of 255, over every pixel and channel: against plain diffusers in the first
precision, and against it in the same precision. Some are no error of ours: another precision draws
other noise, and with a hub name the worker replaces SDXL's VAE in fp16 by one that needs no
float32.

    python -m benchmarks.gpu_generate [--model FOLDER|HUB NAME | --small] [--device cuda]
        [--size PX] [--steps N] [--repeats N] [--images N] [--gpu NAME] [--without-compile]
        [--vae FOLDER|HUB NAME] [--json FILE] [--pictures FOLDER]

Needs no network where --model and --vae are folders. Last line: JSON, with null for what could not
be measured. `--json` holds it too, and is written anew after each variant, so that a run that is
cut off leaves what it has. Status 1 if a variant could not be measured; its row says why.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# Before torch starts its threads, as in the other benchmarks.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffusers
import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_check.sides import CFG, RANK, SEED, Clock, Plain, Side, Task, Variant, Worker
from benchmarks.swap_sides import hardware
from sdxl_contract.limits import STEPS_DEFAULT, STEPS_MAX, ModelLimits
from sdxl_contract.prices import PRICES_AS_OF, USD_PER_SECOND
from sdxl_worker.answering.result import gpu_name
from sdxl_worker.loading.pipeline import LIMITS_FILE, choose_device, choose_dtype
from sdxl_worker.out_of_memory import let_go
from sdxl_worker.settings import Dtype, Settings

SMALL = Path(__file__).parents[1] / "demo_model" / "sdxl-demo"
# The second one, too: caches of the allocator and of compiled code settle only then.
WARM_UPS = 2
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass
class Measured:
    """What came of a variant: its pictures, and seconds per request; or why there is nothing."""

    variant: Variant
    pictures: list[Image.Image] = field(default_factory=list)
    load_s: float | None = None
    first_s: float | None = None
    request_s: float | None = None
    # Seconds of each part of the LoRA swap, medians.
    swap: dict[str, float] = field(default_factory=dict)
    # Largest difference of any repeat from the first picture.
    repeat_diff: float | None = None
    # The same of the picture without LoRA, after all swaps from before them.
    base_diff: float | None = None
    peak_gb: float | None = None
    error: str | None = None


def variants(
    dtypes: Sequence[Dtype], images: int, compiled: bool, vae: bool = False
) -> list[Variant]:
    """All variants, those that share a model in a row; the worker's own dtype is the last one.

    Args:
        compiled: those that go through torch.compile, too.
        vae: one with another VAE, too.
    """
    found: list[Variant] = []
    for dtype in dtypes:
        plain = Variant(ours=False, dtype=dtype)
        # The LoRA goes last: what unfusing leaves behind stays in the weights.
        found += [plain, Variant(False, dtype, at_once=images), Variant(False, dtype, lora=True)]
    found += [Variant(ours=True, dtype=dtype) for dtype in dtypes]
    found += [Variant(True, dtypes[0], vae=True)] * vae
    own = dtypes[-1]
    found += [Variant(True, own, sdpa=False)]
    found += [
        Variant(True, own, channels_last=True),
        Variant(True, own, channels_last=True, at_once=images),
        Variant(True, own, channels_last=True, lora=True),
    ]
    if compiled:
        found += [
            Variant(True, own, channels_last=True, compiled=True),
            Variant(True, own, channels_last=True, compiled=True, at_once=images),
        ]
    return found


def difference(ones: list[Image.Image], others: list[Image.Image]) -> tuple[float, float] | None:
    """(max, mean) absolute difference, of 255, of the pictures both have; None if there is none."""
    pairs = list(zip(ones, others, strict=False))
    if not pairs:
        return None
    gaps = [np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)) for a, b in pairs]
    return float(max(gap.max() for gap in gaps)), float(np.mean([gap.mean() for gap in gaps]))


def measure(
    task: Task,
    wanted: Sequence[Variant],
    keep: Callable[[Sequence[Measured]], None] = lambda _: None,
) -> list[Measured]:
    """Every variant in its order; a model is loaded anew only where the next needs another.

    `keep` is given all that was measured so far after each variant.
    """
    found: list[Measured] = []
    side: Side | None = None
    loaded: tuple[object, ...] | None = None
    load_s: float | None = None
    for variant in wanted:
        result = Measured(variant)
        found.append(result)
        try:
            if loaded != variant.loading:
                side = loaded = None
                _free(task.device)
                clock = Clock(task.device)
                make: Callable[[Task, Variant], Side] = Worker if variant.ours else Plain
                side = clock.time("load_s", partial(make, task, variant))
                loaded, load_s = variant.loading, clock.parts["load_s"]
            assert side is not None
            result.load_s = load_s
            _measure(task, side, result)
        except Exception as error:
            # Too little memory, code that does not compile, a model that is not there, a library
            # that is missing: the others go on, with a model of their own, as this one may be left
            # half changed.
            cause = error.__cause__ or error
            result.error = f"{type(cause).__name__}: {_first_line(cause)}"
            side = loaded = None
            let_go(error)
        says = result.error or f"{result.request_s:.3f} s per request"
        print(f"{variant.name}: {says}", flush=True)
        keep(found)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def _free(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(task: Task, side: Side, result: Measured) -> None:
    """Warm-ups and repeats of one variant, on its model."""
    variant = result.variant
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(task.device)
    # Drawn alone: it is compared with the same after the swaps.
    alone = Variant(variant.ours, variant.dtype, variant.channels_last, variant.compiled)
    base = side.draw(alone) if variant.lora else []
    clocks: list[Clock] = []
    pictures: list[list[Image.Image]] = []
    for _ in range(WARM_UPS + task.repeats):
        clock = Clock(task.device)
        draw = partial(side.draw_with_lora, clock=clock) if variant.lora else side.draw
        pictures.append(clock.time("request_s", partial(draw, variant)))
        clocks.append(clock)
    counted = [clock.parts for clock in clocks[WARM_UPS:]]
    medians = {part: statistics.median(one[part] for one in counted) for part in counted[0]}
    result.request_s = medians.pop("request_s")
    result.first_s = clocks[0].parts["request_s"]
    result.swap = medians
    result.pictures = pictures[0]
    result.repeat_diff = max((difference(pictures[0], p) or (0.0,))[0] for p in pictures)
    if variant.lora:
        result.base_diff = (difference(base, side.draw(alone)) or (0.0,))[0]
    if task.device.type == "cuda":
        result.peak_gb = torch.cuda.max_memory_allocated(task.device) / 1e9


def rows(task: Task, found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The variants as JSON, each beside plain diffusers; null is what could not be measured."""
    plain = {
        (one.variant.dtype, one.variant.lora): one
        for one in reversed(found)
        if not one.variant.ours and one.variant.at_once == 1
    }
    first = found[0].variant.dtype
    listed = []
    for one in found:
        variant = one.variant
        seconds = None if one.request_s is None else one.request_s / variant.at_once
        base = plain.get((first, variant.lora))
        same = plain.get((variant.dtype, variant.lora))
        row: dict[str, Any] = {
            "name": variant.name,
            "pictures": len(one.pictures),
            "seconds_per_image": seconds,
            "usd_per_image": None if seconds is None else task.usd(seconds),
            "times_as_fast": base.request_s / seconds
            if seconds and base is not None and base.request_s
            else None,
        }
        for key, peer in (("diff", base), ("diff_same_dtype", same)):
            gap = difference(one.pictures, peer.pictures) if peer is not None else None
            row |= {f"{key}_max": gap and gap[0], f"{key}_mean": gap and gap[1]}
        listed.append(row | {
            "repeat_diff_max": one.repeat_diff, "base_after_lora_diff_max": one.base_diff,
            "swap_s": sum(one.swap.values()) if variant.lora and one.swap else None,
            "swap": one.swap, "load_s": one.load_s, "first_s": one.first_s,
            "peak_gb": one.peak_gb, "error": one.error,
        })  # fmt: skip
    return listed


def summarise(task: Task, found: Sequence[Measured]) -> dict[str, Any]:
    """What was measured, with all that is needed to measure it again."""
    cuda = task.device.type == "cuda"
    return {
        "model": Path(task.model).name,
        "device": torch.cuda.get_device_name(task.device) if cuda else hardware(),
        "gpu": task.gpu if cuda else None,
        "usd_per_second": task.usd(1.0),
        "prices_as_of": PRICES_AS_OF,
        "size": task.size, "steps": task.steps, "repeats": task.repeats,
        "cfg": CFG, "seed": SEED, "lora_rank": RANK,
        "torch": torch.__version__, "diffusers": diffusers.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "load_average": os.getloadavg()[0],
        "variants": rows(task, found),
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """`value` with four digits in every number of it: more mean nothing here."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(summary: dict[str, Any]) -> str:
    """The variants, one a line; a dash is what does not apply or could not be measured."""
    columns = {
        "s/image": ("seconds_per_image", ".3f"), "$/image": ("usd_per_image", ".6f"),
        "x faster": ("times_as_fast", ".2f"), "swap s": ("swap_s", ".3f"),
        "first s": ("first_s", ".1f"),
        "max": ("diff_max", ".0f"), "mean": ("diff_mean", ".3f"),
        "max, same": ("diff_same_dtype_max", ".0f"), "mean, same": ("diff_same_dtype_mean", ".3f"),
        "repeat": ("repeat_diff_max", ".0f"), "after LoRA": ("base_after_lora_diff_max", ".0f"),
        "GB": ("peak_gb", ".1f"),
    }  # fmt: skip
    width = max(len(row["name"]) for row in summary["variants"])
    lines = [" ".join([" " * width, *(f"{title:>10}" for title in columns)])]
    for row in summary["variants"]:
        cells = (
            "-" if row[key] is None else format(row[key], form) for key, form in columns.values()
        )
        lines.append(" ".join([f"{row['name']:<{width}}", *(f"{cell:>10}" for cell in cells)]))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> tuple[Task, list[Variant], argparse.Namespace]:
    """The arguments as a task and its variants; a wrong one ends the program with a sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default=Settings.model_fields["base_model"].default)
    model.add_argument("--small", action="store_true", help="the project's own small model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", type=int, help="side in px; the model's own unless given")
    parser.add_argument("--steps", type=int, default=STEPS_DEFAULT)
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each variant")
    parser.add_argument("--images", type=int, default=4, help="pictures drawn at once")
    parser.add_argument("--gpu", choices=USD_PER_SECOND, help="row of the price table")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--vae", help="one variant with this VAE: a folder or a hub name")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--pictures", type=Path, help="folder for every variant's first picture")
    args = parser.parse_args(arguments)
    name = str(SMALL) if args.small else args.model
    limits_file = Path(name) / LIMITS_FILE
    limits = (
        ModelLimits.model_validate_json(limits_file.read_text())
        if limits_file.is_file()
        else ModelLimits()
    )
    size = limits.native_size if args.size is None else args.size
    problem = limits.side_problem("--size", size)
    for field_name, value, most in (
        ("--steps", args.steps, STEPS_MAX), ("--repeats", args.repeats, 1000),
        ("--images", args.images, limits.max_images),
    ):  # fmt: skip
        lowest = 2 if field_name == "--images" else 1
        if not lowest <= value <= most:
            problem = f"{field_name} is {value}: it must be from {lowest} to {most}"
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        problem = f"--model {name} is neither a folder nor a hub name such as owner/model"
    if args.vae and not Path(args.vae).is_dir() and not _HUB_NAME.fullmatch(args.vae):
        problem = f"--vae {args.vae} is neither a folder nor a hub name such as owner/vae"
    if args.json is not None and not args.json.parent.is_dir():
        problem = f"--json {args.json}: there is no folder {args.json.parent}"
    if problem is not None:
        parser.error(problem)
    try:
        device = choose_device(args.device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("it must be auto, cpu, cuda or cuda:N")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device} cannot be used: {_first_line(error)}")
    own = choose_dtype(Dtype.AUTO, device)
    dtypes = [Dtype(str(own).removeprefix("torch."))]
    if device.type == "cuda" and own is not torch.float16:
        dtypes.insert(0, Dtype.FLOAT16)
    gpu = args.gpu or gpu_name(device)
    task = Task(name, device, size, args.steps, args.repeats, gpu, args.vae)
    return task, variants(dtypes, args.images, not args.without_compile, bool(args.vae)), args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the arguments say; prints a table, and the JSON last."""
    task, wanted, args = parse(arguments)

    def keep(so_far: Sequence[Measured]) -> None:
        if args.json is not None:
            text = json.dumps(rounded(summarise(task, so_far)), indent=1)
            part = args.json.with_name(f".{args.json.name}.part")
            part.write_text(text + "\n")
            part.replace(args.json)

    found = measure(task, wanted, keep)
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
        for one in found:
            for picture in one.pictures[:1]:
                picture.save(args.pictures / f"{one.variant.name}.png")
    summary = rounded(summarise(task, found))
    print(
        f"{summary['model']} on {summary['device']}, {task.size} px, {task.steps} steps; max and "
        f"mean of 255 from {summary['variants'][0]['name']}, then from the same precision\n"
        f"{table(summary)}"
    )
    print(json.dumps(summary))
    return int(any(one.error is not None for one in found))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
