"""Every number that the simulation is fed, with where it comes from.

Duty: one typed table. `MEASURED` was measured in this project and names the file that holds it,
`PUBLISHED` was published by others and names the place, `DERIVED` follows from such numbers by the
rule given, `ASSUMED` is a guess that nobody has measured here: change it first.
Must not know: queues, containers, plots. Seconds, bytes, bytes per second, USD.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sdxl_contract import prices
from sdxl_worker.deploying.settings import Snapshot

GIB = 2**30
MB = 1e6


class Origin(StrEnum):
    """How a number came to be known."""

    MEASURED = "measured here"
    PUBLISHED = "published"
    DERIVED = "derived"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class Figure:
    """A number and why it is believed."""

    value: float
    unit: str
    origin: Origin
    source: str


_TENSORRT = "huggingface.co/stabilityai/stable-diffusion-xl-1.0-tensorrt, 'Baseline' column"
_DATASHEET = "NVIDIA data sheets: dense 16-bit TFLOP/s and memory GB/s"
_SWAP = "benchmarks/results/lora_swap.json"
_H200 = "benchmarks/results/gpu_h200.json"
_PARTS = "benchmarks/results/gpu_h200_parts.json"


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[1] / name).read_text())
    return found


_MEASURED = _results(_SWAP)
_OURS: dict[str, float] = _MEASURED["cases"]["cold"]["ours"]
_LORA_BYTES = _MEASURED["lora_mb"] * MB
_EARLIER = "the deployment that this one replaces (docs/MODAL_SDXL_LORA_INTEGRATION.md)"

# Seconds of one 1024x1024 picture, 30 steps, plain diffusers in 16 bit; text and VAE included.
PICTURE_30_STEPS: dict[str, Figure] = {
    "A10": Figure(9.399, "s", Origin.PUBLISHED, _TENSORRT),
    "A100-40GB": Figure(3.704, "s", Origin.PUBLISHED, f"{_TENSORRT} (says A100)"),
    "H100": Figure(2.496, "s", Origin.PUBLISHED, _TENSORRT),
}
# (TFLOP/s, GB/s)
_SPEEDS: dict[str, tuple[float, float]] = {
    "L4": (121.0, 300.0),
    "A10": (125.0, 600.0),
    "L40S": (362.0, 864.0),
    "A100-40GB": (312.0, 1555.0),
    "H100": (989.0, 3350.0),
    "H200": (989.0, 4800.0),
}


def _scaled(gpu: str) -> Figure:
    """By the geometric mean of compute and bandwidth, calibrated on the A10 and the A100.

    That rule gives the A100 from the A10 within 1 %; it is too kind to GPUs so fast that launching
    kernels takes most of the time, so it is not used above the A100.
    """

    def speed(name: str) -> float:
        compute, bandwidth = _SPEEDS[name]
        return math.sqrt(compute * bandwidth)

    known = ("A10", "A100-40GB")
    work = sum(PICTURE_30_STEPS[name].value * speed(name) for name in known) / len(known)
    rule = "seconds x sqrt(TFLOP/s x GB/s) as on the A10 and A100; "
    return Figure(round(work / speed(gpu), 3), "s", Origin.DERIVED, rule + _DATASHEET)


for _gpu in ("L4", "L40S"):
    PICTURE_30_STEPS[_gpu] = _scaled(_gpu)

GPUS = ("L4", "A10", "L40S", "A100-40GB", "H100", "H200")

# --- measured on one H200 -------------------------------------------------------------------------
_ON_H200 = _results(_H200)
_PARTS_MS = _results(_PARTS)


def _middle(part: str, name: str, what: str) -> Figure:
    """A figure of that file; the middle where it has the least and the most."""
    found = _ON_H200[part][name]
    value = sum(found) / len(found) if isinstance(found, list) else found
    return Figure(round(value, 4), "s", Origin.MEASURED, f"{_H200}: {what}")


def _by_own_kernels(part: str, times: int, what: str) -> Figure:
    """The median of that file, so many times."""
    seconds = _PARTS_MS[part]["own_kernels"][1] * times / 1e3
    return Figure(round(seconds, 4), "s", Origin.MEASURED, f"{_PARTS}: {what}")


H200_STEPS = _by_own_kernels("step_in_a_graph_ms", 28, "28 steps replayed from a CUDA graph")
H200_TEXT = _middle("service_before", "text_s", "text encoders, before they were recorded")
H200_VAE = _by_own_kernels("vae_decode_ms", 1, "VAE")
H200_APPLY = _middle("service_before", "apply_s", "a LoRA applied, before that was grouped")
H200_RESTORE = _middle("service_before", "restore_and_compare_s", "before that was one block")

# --- a request ------------------------------------------------------------------------------------
STEPS = 28
PATCH_H800 = Figure(
    0.10, "s", Origin.PUBLISHED, "Katz (arxiv.org/abs/2407.02031): LoRA patched on an H800"
)
TOUCHED_BYTES = Figure(
    _OURS["bytes"], "B", Origin.MEASURED, f"{_SWAP}: weights a rank-32 LoRA touches"
)
RESTORE_OVER_MEMCPY = Figure(
    2.0,
    "x",
    Origin.DERIVED,
    "a GPU copies W0 back and then compares in a pass of its own, which moves as many bytes",
)
IMAGE_ENCODE = Figure(
    0.094, "s", Origin.MEASURED, "PNG of a photo-like 1024x1024, Pillow level 1, this machine"
)
NETWORK = Figure(0.15, "s", Origin.ASSUMED, "backend to the container and back, 2 MB answer")
PARSE_PER_BYTE = Figure(
    _OURS["parse_s"] / _LORA_BYTES, "s/B", Origin.MEASURED, f"{_SWAP}: parse, rank 32"
)
DOWNLOAD_LATENCY = Figure(0.2, "s", Origin.ASSUMED, "first byte from object storage")
DOWNLOAD_RATE = Figure(
    171e6 / 4.0, "B/s", Origin.PUBLISHED, f"{_EARLIER}: 3 to 5 s for a LoRA of about 171 MB"
)
VOLUME_LATENCY = Figure(0.05, "s", Origin.ASSUMED, "opening a file on a Volume")
VOLUME_RATE = Figure(1e9, "B/s", Origin.ASSUMED, "one reader of a Volume")

# Ranks in use and their shares; a rank-32 file is 170.6 MB and size goes with rank.
LORA_BYTES_PER_RANK = Figure(_LORA_BYTES / 32, "B", Origin.MEASURED, f"{_SWAP}: size at rank 32")
LORA_RANKS: tuple[tuple[int, float], ...] = (
    (8, 0.15),
    (16, 0.25),
    (32, 0.40),
    (64, 0.15),
    (128, 0.05),
)
ZIPF_S = Figure(
    0.9, "", Origin.ASSUMED, "skew of LoRA popularity; web requests lie between 0.6 and 1.0"
)

# --- a cold start ---------------------------------------------------------------------------------
BOOT = Figure(2.0, "s", Origin.ASSUMED, "a container with a GPU, image already near")
IMPORTS = Figure(
    round(_ON_H200["start"]["imports_s"] - _ON_H200["start"]["of_which_compiling_python_s"], 2),
    "s",
    Origin.MEASURED,
    f"{_H200}: imports, without compiling Python, which the image has done",
)
WEIGHT_BYTES = Figure(6.94e9, "B", Origin.PUBLISHED, "SDXL base in 16 bit: its files on the hub")
HASH_RATE = Figure(
    1.5e9, "B/s", Origin.ASSUMED, "SHA-256 of the weights at start on one core with SHA extensions"
)
TO_GPU_RATE = Figure(10e9, "B/s", Origin.ASSUMED, "host memory to GPU over PCIe 4")
WARM_UP = Figure(2.0, "s", Origin.ASSUMED, "CUDA context, first kernels, graphs, one small picture")
HUB_DOWNLOAD = Figure(27.5, "s", Origin.PUBLISHED, f"{_EARLIER}: 25 to 30 s of model download")
SNAPSHOT_SPEEDUP = Figure(
    3.0, "x", Origin.PUBLISHED, "modal.com/docs/guide/memory-snapshots: 3 to 10 times; the lower"
)
GPU_RESTORE_RATE = Figure(
    18e9 / 5.0,
    "B/s",
    Origin.DERIVED,
    "one author's FLUX of 18 GB from a GPU snapshot on an L40S: 7 s, of which 2 s are a boot",
)
GPU_CHECK = Figure(
    1.0, "s", Origin.ASSUMED, "after a GPU snapshot: secrets, volumes, one picture compared"
)
START_SPREAD = Figure(
    0.4,
    "",
    Origin.ASSUMED,
    "sigma of the starts' lognormal spread: one in twenty takes 1.9 times the median",
)

CPU_CORES = Figure(2, "cores", Origin.DERIVED, "worker/app.py: its default request")
MEMORY_GIB = Figure(16, "GiB", Origin.DERIVED, "worker/app.py: its default request")


class ColdStart(StrEnum):
    """Where the weights of a starting container come from."""

    HUB = "hub"
    VOLUME = "volume"
    IMPORTS = "volume, after a snapshot of imports"
    SNAPSHOT = "snapshot"
    GPU_SNAPSHOT = "GPU snapshot"


# What each of the deployment's settings (DEPLOY_SNAPSHOT) makes of it.
START_OF = {
    Snapshot.OFF: ColdStart.VOLUME,
    Snapshot.IMPORTS: ColdStart.IMPORTS,
    Snapshot.WEIGHTS: ColdStart.SNAPSHOT,
    Snapshot.GPU: ColdStart.GPU_SNAPSHOT,
}


@dataclass(frozen=True)
class Timings:
    """The seconds, bytes and prices of one kind of container."""

    gpu: str
    lane_s: float  # apply, text, denoise, decode, restore: what holds the model
    after_s: float  # encode and network: what holds the request but not the model
    cold_start_s: float  # the median
    usd_per_second: float
    download_latency_s: float = DOWNLOAD_LATENCY.value
    download_rate: float = DOWNLOAD_RATE.value
    volume_latency_s: float = VOLUME_LATENCY.value
    volume_rate: float = VOLUME_RATE.value
    parse_s_per_byte: float = PARSE_PER_BYTE.value
    cold_start_sigma: float = START_SPREAD.value  # of the logarithm

    def download_s(self, nbytes: float) -> float:
        """Seconds to fetch and parse a LoRA from object storage."""
        return (
            self.download_latency_s + nbytes / self.download_rate + nbytes * self.parse_s_per_byte
        )

    def volume_s(self, nbytes: float) -> float:
        """Seconds to read and parse a LoRA from the Volume."""
        return self.volume_latency_s + nbytes / self.volume_rate + nbytes * self.parse_s_per_byte


def cold_start_seconds(start: ColdStart) -> dict[str, float]:
    """Seconds of each part of a cold start, by name, in order."""
    to_gpu = WEIGHT_BYTES.value / TO_GPU_RATE.value
    read = WEIGHT_BYTES.value / VOLUME_RATE.value
    hashed = WEIGHT_BYTES.value / HASH_RATE.value
    if start is ColdStart.GPU_SNAPSHOT:
        restore = WEIGHT_BYTES.value / GPU_RESTORE_RATE.value
        return {"boot": BOOT.value, "restore": restore, "check": GPU_CHECK.value}
    if start is ColdStart.IMPORTS:
        return {
            "boot": BOOT.value,
            "restore": IMPORTS.value / SNAPSHOT_SPEEDUP.value,
            "weights": max(read, hashed),
            "to_gpu": to_gpu,
            "warm_up": WARM_UP.value,
        }
    if start is ColdStart.SNAPSHOT:
        restore = (IMPORTS.value + read) / SNAPSHOT_SPEEDUP.value
        return {"boot": BOOT.value, "restore": restore, "to_gpu": to_gpu, "warm_up": WARM_UP.value}
    return {
        "boot": BOOT.value,
        "hub": HUB_DOWNLOAD.value if start is ColdStart.HUB else 0.0,
        # Side by side: whichever takes longest.
        "imports_and_weights": max(IMPORTS.value, read, hashed),
        "to_gpu": to_gpu,
        "warm_up": WARM_UP.value,
    }


def lane_seconds(gpu: str, steps: int = STEPS) -> float:
    """Seconds that one picture holds the model: measured where that was done, else put together."""
    if gpu == "H200":
        swap = H200_APPLY.value + H200_RESTORE.value
        return H200_STEPS.value * steps / 28 + H200_TEXT.value + H200_VAE.value + swap
    bandwidth = _SPEEDS[gpu][1] * 1e9
    patch = PATCH_H800.value * _SPEEDS["H100"][1] * 1e9 / bandwidth
    restore = RESTORE_OVER_MEMCPY.value * 2 * TOUCHED_BYTES.value / bandwidth
    return patch + PICTURE_30_STEPS[gpu].value * steps / 30 + restore


def timings(
    gpu: str, start: ColdStart = ColdStart.VOLUME, steps: int = STEPS, region: str = ""
) -> Timings:
    """The table's numbers put together for one `gpu`; `region`: where containers must run, which
    Modal charges more for."""
    price = (
        prices.USD_PER_SECOND[gpu]
        + CPU_CORES.value * prices.CPU_CORE_USD_PER_SECOND
        + MEMORY_GIB.value * prices.MEMORY_GIB_USD_PER_SECOND
    )
    return Timings(
        gpu=gpu,
        lane_s=lane_seconds(gpu, steps),
        after_s=IMAGE_ENCODE.value + NETWORK.value,
        cold_start_s=sum(cold_start_seconds(start).values()),
        usd_per_second=price * (prices.region_factor(region) if region else 1.0),
    )


def table() -> list[tuple[str, Figure]]:
    """Every figure by name, for the documentation."""
    named = [(name, value) for name, value in globals().items() if isinstance(value, Figure)]
    pictures = [(f"PICTURE_30_STEPS[{gpu}]", one) for gpu, one in PICTURE_30_STEPS.items()]
    return pictures + named
