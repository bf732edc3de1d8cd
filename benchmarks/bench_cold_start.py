"""How long from the start of a process to a loaded SDXL, by the worker's loader and by diffusers?

Each run is a process of its own on the same folder, whose files are in the page cache; the runs of
the four kinds take turns, and each figure is the median of its kind:
  ours   as the worker starts: begin to read the weights, import torch and diffusers, load
  peer   import, then plain `StableDiffusionXLPipeline.from_pretrained`
  load   the worker's loader with nothing beside it: import first, then read and load
  read   the same files into fresh memory by one thread for each core, without torch: the floor
diffusers maps its files: it returns before it has copied a byte, and its weights are still pages
of the files. So two more ends of its run are taken: `peer_touched_s`, when each page has been
looked at, and `peer_own_s`, when each weight is in memory of its own, as it is on our side at
`ours_s`. `--cold` adds runs whose files are dropped from the page cache before each. The first
round also compares the weights of both sides; a difference is an error.

    python benchmarks/bench_cold_start.py [--small | --folder DIR] [--cold] [--runs N]
                                         [--json FILE]

The folder is one of SDXL's full size with random 16-bit weights, made once (7 GB) under
SDXL_BENCH_CACHE, by default ~/.cache/modal-sdxl-lora; `--small` takes demo_model/sdxl-demo and
`--folder` any other. The first needs 16 GB of memory, files in the page cache included. Last line:
JSON. Times are seconds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = REPOSITORY / "demo_model" / "sdxl-demo"
CACHED = "sdxl-full-1"  # another name when what is written changes
FULL_BYTES = 7 * 10**9
PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
CHUNK_BYTES = 32 * 2**20
PAGE_BYTES = mmap.PAGESIZE

# The configurations of stable-diffusion-xl-base-1.0, as far as they are not the classes' defaults.
UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
         "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
TEXT_ENCODER = _TEXT | {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT_ENCODER_2 = _TEXT | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


class Problem(Exception):
    """The benchmark cannot say anything; the text says why."""


# --- the folder -------------------------------------------------------------------------------


def full_size_folder() -> Path:
    """The cached folder; made if it is not there.

    Raises:
        Problem: the disk has no room for it, or it could not be made.
    """
    cache = Path(os.environ.get("SDXL_BENCH_CACHE", "~/.cache/modal-sdxl-lora")).expanduser()
    folder = cache / CACHED
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < 1.2 * FULL_BYTES:
        raise Problem(
            "SDXL_BENCH_CACHE names a disk with too little room: "
            f"{1.2 * FULL_BYTES / 1e9:.0f} GB must be free"
        )
    print("making a folder of SDXL's size, once ...", flush=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as made:
        # A process of its own, so that this one stays small while the others are measured.
        command = [sys.executable, str(Path(__file__)), "--child", "make", "--folder", made]
        if subprocess.run(command, check=False).returncode:
            raise Problem("the folder of SDXL's size could not be made")
        # Under its name only once it is whole.
        os.rename(made, folder)
    return folder


def make(folder: Path) -> None:
    """Write the full-size pipeline with random weights in half precision into `folder`."""
    import diffusers
    import torch
    import transformers
    from bench_lora_swap import random_fill

    torch.set_num_threads(1)
    text = transformers.CLIPTextConfig
    builders: dict[str, Callable[[], Any]] = {
        "unet": lambda: diffusers.UNet2DConditionModel(**UNET),
        "vae": lambda: diffusers.AutoencoderKL(**VAE),
        "text_encoder": lambda: transformers.CLIPTextModel(text(**TEXT_ENCODER)),
        "text_encoder_2": lambda: transformers.CLIPTextModelWithProjection(text(**TEXT_ENCODER_2)),
    }
    scheduler: Any = diffusers.EulerDiscreteScheduler
    classes = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    scheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    for seed, name in enumerate(PARTS):
        with torch.device("meta"):
            empty = builders[name]()
        module: Any = random_fill(empty.to(torch.float16).to_empty(device="cpu"), seed)
        # One file for each part, as the published half-precision files are.
        module.save_pretrained(folder / name, max_shard_size="100GB")
        library = "transformers" if name.startswith("text") else "diffusers"
        classes[name] = [library, type(module).__name__]
        del empty, module
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SMALL / name, folder / name)
        classes[name] = ["transformers", "CLIPTokenizer"]
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index | classes, indent=1) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the pipeline's parts.

    Raises:
        Problem: a part has none.
    """
    found = []
    for part in PARTS:
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise Problem(f"the folder has no weights for {part}: {part}/*.safetensors")
        found += files
    return found


# --- what one process does --------------------------------------------------------------------


def run_ours(folder: Path) -> tuple[dict[str, float], Any]:
    """The worker's start, in the order of `sdxl_worker.serve`."""
    from sdxl_worker.reading import start_reading

    reading = start_reading(folder, half=True)
    imported = _import_loader()
    pipe = _load(folder, reading)
    marks = {"imported": imported, "ready": time.monotonic()}
    # The rest of the worker, which a real start imports before it loads.
    from sdxl_worker import api, engine

    del api, engine
    marks["rest"] = time.monotonic()
    return marks, pipe


def run_load(folder: Path) -> tuple[dict[str, float], Any]:
    """The worker's loader after all imports."""
    from sdxl_worker.reading import start_reading

    imported = _import_loader()
    pipe = _load(folder, start_reading(folder, half=True))
    return {"imported": imported, "ready": time.monotonic()}, pipe


def _import_loader() -> float:
    import diffusers
    import transformers

    import sdxl_worker.pipeline  # noqa: F401

    # These two import their modules on first use.
    _ = (diffusers.StableDiffusionXLPipeline, transformers.CLIPTextModelWithProjection)
    return time.monotonic()


def _load(folder: Path, reading: Any) -> Any:
    from structlog.testing import capture_logs

    from sdxl_worker.pipeline import load_model
    from sdxl_worker.settings import Dtype, Settings

    if reading is None:
        raise Problem("the folder is not one that the worker's own loader reads")
    settings = Settings(
        base_model=str(folder), device="cpu", dtype=Dtype.FLOAT16, vae_model=None,
        channels_last=None, compile_unet=False,
    )  # fmt: skip
    with capture_logs() as lines:
        pipe = load_model(settings, reading).pipe
    if any(line["event"] == "folder_needs_the_slow_loader" for line in lines):
        raise Problem("the worker went back to the loader of diffusers: nothing to compare")
    return pipe


def run_peer(folder: Path) -> tuple[dict[str, float], Any]:
    """diffusers as its documentation shows it."""
    import diffusers
    import torch
    import transformers

    _ = transformers.CLIPTextModelWithProjection
    cls: Any = diffusers.StableDiffusionXLPipeline
    imported = time.monotonic()
    pipe = cls.from_pretrained(
        str(folder), dtype=torch.float16, use_safetensors=True, add_watermarker=False
    )
    marks = {"imported": imported, "ready": time.monotonic()}
    for _, tensor in _weights(pipe):
        tensor[::PAGE_BYTES].sum()
    marks["touched"] = time.monotonic()
    for part in PARTS:
        for parameter in getattr(pipe, part).parameters():
            parameter.data = parameter.data.clone()
    return marks | {"own": time.monotonic()}, pipe


def run_read(folder: Path) -> dict[str, float]:
    """All bytes of the weight files, copied once out of the page cache."""
    files = weight_files(folder)
    begun = time.monotonic()
    memories, jobs = [], []
    with ThreadPoolExecutor(cores()) as pool:
        for path in files:
            size = path.stat().st_size
            memory = mmap.mmap(-1, size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            memories.append(memory)
            for place in range(0, size, CHUNK_BYTES):
                part = memoryview(memory)[place : place + CHUNK_BYTES]
                jobs.append(pool.submit(_read_part, path, part, place))
    for job in jobs:
        job.result()
    return {"begun": begun, "ready": time.monotonic()}


def _read_part(path: Path, part: memoryview, place: int) -> None:
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(part):
            done += os.preadv(file.fileno(), [part[done:]], place + done)


def _weights(pipe: Any) -> list[tuple[str, Any]]:
    """Every parameter as a flat array of its bytes, by name."""
    import torch

    return [
        (f"{part}.{name}", tensor.detach().contiguous().view(-1).view(torch.uint8))
        for part in PARTS
        for name, tensor in getattr(pipe, part).named_parameters()
    ]


def _checksum(pipe: Any) -> str:
    total = 0
    for name, tensor in sorted(_weights(pipe)):
        total = zlib.crc32(tensor.numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def child(kind: str, folder: Path, check: bool) -> dict[str, Any]:
    """One measured process: points in time of the clock that all processes share."""
    if kind == "read":
        return run_read(folder)
    marks, pipe = {"ours": run_ours, "peer": run_peer, "load": run_load}[kind](folder)
    return marks | ({"checksum": _checksum(pipe)} if check else {})


# --- the comparison ---------------------------------------------------------------------------


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(kind: str, folder: Path, check: bool = False) -> dict[str, Any]:
    """Run one process; its points in time, counted from just before its start.

    Raises:
        Problem: it failed.
    """
    command = [sys.executable, str(Path(__file__)), "--child", kind, "--folder", str(folder)]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, *(["--check"] if check else [])],
        check=False,
        capture_output=True,
        text=True,
        # Threads that spin while they wait make a busy machine slower for both sides.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Problem(f"{kind}: {last}")
    marks: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {
        name: value - begun if isinstance(value, float) else value for name, value in marks.items()
    }


def drop_from_page_cache(folder: Path) -> None:
    """So that the next to read the weights has to go to the disk.

    Raises:
        Problem: the system offers no way to do that.
    """
    if not hasattr(os, "posix_fadvise"):
        raise Problem("--cold needs Linux: files cannot be dropped from the page cache here")
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, runs: int, cold: bool) -> dict[str, Any]:
    """All runs, and their medians."""
    nbytes = sum(path.stat().st_size for path in weight_files(folder))
    # Weights and libraries into the page cache: else the first measured one pays for all.
    start("load", folder)
    kinds = ["ours", "peer", "load", "read"]
    if cold:
        kinds += ["ours_cold", "peer_cold", "read_cold"]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    loads = [os.getloadavg()[0]]
    for number in range(runs):
        for kind, results in found.items():
            if kind.endswith("_cold"):
                drop_from_page_cache(folder)
            check = number == 0 and kind in ("ours", "peer")
            results.append(start(kind.removesuffix("_cold"), folder, check))
        loads.append(os.getloadavg()[0])
        seconds = ", ".join(f"{kind} {got[-1]['ready']:.2f}" for kind, got in found.items())
        print(f"round {number + 1} of {runs}: {seconds}", flush=True)
    if found["ours"][0]["checksum"] != found["peer"][0]["checksum"]:
        raise Problem("the weights differ from those that diffusers loads")

    def median(kind: str, until: str, since: str | None = None) -> float:
        seconds: list[float] = [
            run[until] - (run[since] if since is not None else 0.0) for run in found[kind]
        ]
        return statistics.median(seconds)

    ours, peer = median("ours", "ready"), median("peer", "ready")
    load, read = median("load", "ready", "imported"), median("read", "ready", "begun")
    result = {
        "ours_s": ours,
        "peer_s": peer,
        "import_s": median("load", "imported"),
        "peer_import_s": median("peer", "imported"),
        "load_s": load,
        "read_s": read,
        "ours_over_peer": ours / peer,
        "load_over_read": load / read,
        "ours_imported_s": median("ours", "imported"),
        "peer_load_s": median("peer", "ready", "imported"),
        "peer_touched_s": median("peer", "touched"),
        "peer_own_s": median("peer", "own"),
        "ours_over_peer_own": ours / median("peer", "own"),
        "rest_import_s": median("ours", "rest", "ready"),
        "same_weights": True,
        "gb": nbytes / 1e9,
        "runs": runs,
        "ours_runs_s": [run["ready"] for run in found["ours"]],
        "peer_runs_s": [run["ready"] for run in found["peer"]],
        "load_runs_s": [run["ready"] - run["imported"] for run in found["load"]],
        "read_runs_s": [run["ready"] - run["begun"] for run in found["read"]],
        "load_average": max(loads),
        "cores": cores(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "hardware": _cpu(),
    }
    if cold:
        result |= {
            "ours_cold_s": median("ours_cold", "ready"),
            "peer_cold_s": median("peer_cold", "ready"),
            "peer_cold_touched_s": median("peer_cold", "touched"),
            "peer_cold_own_s": median("peer_cold", "own"),
            "read_cold_s": median("read_cold", "ready", "begun"),
        }
    return {name: _rounded(value) for name, value in result.items()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "unknown"
    )


def _rounded(value: Any) -> Any:
    """Four digits are all that a time here means."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> int:
    """Run as the arguments say; 1 and one line on stderr where nothing can be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the small model of demo_model")
    parser.add_argument("--folder", type=Path, help="a diffusers SDXL folder of one's own")
    parser.add_argument("--cold", action="store_true", help="also with the files on disk only")
    parser.add_argument("--runs", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be 1 or more")
    if args.child:
        os.environ |= {
            "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        warnings.filterwarnings("ignore")
    if args.child == "make":
        make(args.folder)
        return 0
    try:
        if args.child:
            print(json.dumps(child(args.child, args.folder, args.check)))
            return 0
        folder = args.folder or (SMALL if args.small else full_size_folder())
        result = measure(folder, args.runs, args.cold)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
