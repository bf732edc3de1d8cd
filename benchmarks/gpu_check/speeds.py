"""The worker's parts and diffusers', timed in one process: a row each.

Must not know: HTTP.
"""

from __future__ import annotations

import gc
import hashlib
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

from benchmarks.gpu_check.inputs import PROMPT, LoraFiles
from sdxl_contract.request import GenerateRequest
from sdxl_worker.assembly import Assembly, assemble
from sdxl_worker.drawing.prompts import encode_prompts
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.graphs.calls import StaticCalls
from sdxl_worker.graphs.uploads import Uploads, parsed_onto
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.lora import LoraPatcher, ParsedLora, lora_targets, parse_lora
from sdxl_worker.run import Run
from sdxl_worker.settings import Settings
from testkit.doubles.graphs import FakeRecorder

Rows = dict[str, Any]
SCALE, CFG, SEED = 0.8, 5.5, 7


def _waits(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(device: str, action: Callable[[], Any], runs: int, warm: int = 1) -> float:
    """Milliseconds of `action`, the device's work included."""
    seconds = []
    for number in range(warm + runs):
        _waits(device)
        started = time.perf_counter()
        action()
        _waits(device)
        if number >= warm:
            seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds) * 1e3, 3)


class Ours:
    """The worker without its HTTP face."""

    def __init__(self, folder: Path, device: str, side: int, steps: int) -> None:
        self.device, self.side, self.steps = device, side, steps
        settings = Settings(base_model=str(folder), device=device)
        self.ready: Assembly = assemble(
            settings, load_model(settings), Fetcher(FetchPolicy(max_bytes=1))
        )
        self._files: dict[Path, tuple[bytearray, str]] = {}
        self._uploads = Uploads(self.ready.model.device) if device == "cuda" else None
        self.static: StaticCalls = self.ready.drawer._calls.static
        if device != "cuda":
            # A recorder in the graph's place, so that every line here runs anywhere.
            self.static._recorder, self.static._budget = FakeRecorder(), 1 << 30

    def parse(self, path: Path) -> ParsedLora:
        """The LoRA in `path`, where the patcher wants it; as in the service its bytes are there and
        were hashed as they came, but for the first time."""
        if path not in self._files:
            data = bytearray(path.read_bytes())
            self._files[path] = data, hashlib.sha256(data).hexdigest()
        data, sha256 = self._files[path]
        targets, uploads = self.ready.patcher._targets, self._uploads
        if uploads is None:
            return parse_lora(data, targets, sha256=sha256)
        return parsed_onto(
            self.ready.model.device,
            uploads,
            data,
            lambda there: parse_lora(
                data, targets, sha256=sha256, given_away=True, elsewhere=there
            ),
        )

    def draw_with(self, path: Path) -> bytes:
        """The pixels of the picture with the LoRA in `path`."""
        with self.ready.patcher.applied([(self.parse(path), SCALE)]):
            return self.draw()

    def draw(self) -> bytes:
        """The pixels of one picture on the model as it stands."""
        return self.ready.drawer.draw(self._run())[0].image.tobytes()

    def drawn_without_recordings(self) -> bytes:
        """The same, launched kernel by kernel."""
        recorder, self.static._recorder = self.static._recorder, None
        try:
            return self.draw()
        finally:
            self.static._recorder = recorder

    def _run(self) -> Run:
        size = {"width": self.side, "height": self.side}
        request = GenerateRequest(prompt=PROMPT, steps=self.steps, cfg=CFG, seed=SEED, **size)
        return Run(request, device=self.ready.model.device, timeout_s=600)

    def exact(self, loras: list[ParsedLora], found: Rows) -> None:
        """Into `found`: whether recordings give the eager bytes, for base and LoRAs, and would be
        found out. In a few steps: each is recorded and compared alike."""
        patcher, unet, steps = self.ready.patcher, self.ready.model.pipe.unet, self.steps
        held = unet.conv_in.weight.data
        patcher.restore()
        self.steps = max(steps // 7, 2)
        try:
            base = self.drawn_without_recordings()
            equal = self.draw() == self.draw() == base
            pictures = [base]
            for lora in (*loras, loras[0]):
                with patcher.applied([(lora, SCALE)]):
                    eager = self.drawn_without_recordings()
                    equal &= self.draw() == eager
                    pictures.append(eager)
            found["graph_equals_eager"] = equal
            found["graph_sees_every_lora"] = len(set(pictures)) == 1 + len(loras)
            found["base_again"] = self.draw() == base
            # The controls: a weight that moved is one that a recording no longer sees; and a
            # recording of a LoRA's factors that are another one's by now.
            unet.conv_in.weight.data = held * 0.5
            stale, right = self.draw(), self.drawn_without_recordings()
            unet.conv_in.weight.data = held
            found["moved_weight_is_found"] = stale != right
            if self.device == "cuda":
                stale = self._drawn_of_stale_factors(loras[0])
                found["stale_factor_is_found"] = stale != pictures[1]
            patcher.verify_full()
        finally:
            unet.conv_in.weight.data = held
            self.steps = steps

    def _drawn_of_stale_factors(self, lora: ParsedLora) -> bytes:
        """The picture with `lora` by the recording of its swap, whose operands hold other numbers
        by now, as if the memory were another LoRA's."""
        patcher = self.ready.patcher
        patcher.drop_operands()
        for _ in range(3):
            with patcher.applied([(lora, SCALE)]):
                right = self.draw()
        (recorded,) = patcher._grouped._recorded.values()
        with patcher.applied([(lora, SCALE)]):
            if self.draw() != right:
                raise RuntimeError("the recorded swap gives another picture by itself")
        for group in recorded.groups:
            group.left.mul_(0.5)
        with patcher.applied([(lora, SCALE)]):
            drawn = self.draw()
        patcher.drop_operands()
        return drawn

    def rows(self, paths: list[Path], runs: int, found: Rows) -> None:
        """The parts of a request, in milliseconds, into `found`."""
        device, patcher = self.device, self.ready.patcher
        pipe = self.ready.model.pipe
        found["parse_ms"] = median_ms(device, lambda: self.parse(paths[0]), runs)
        loras = [self.parse(path) for path in paths[:2]]
        turn = iter(range(10**6))

        def first(path: Path) -> float:
            # As if it were new, in a worker that has drawn with others.
            patcher._grouped._kept.clear()
            return median_ms(device, lambda: patcher.apply([(self.parse(path), SCALE)]), 1, 0)

        firsts = [first(paths[number % 2]) for number in range(runs)]
        found["parse_to_applied_ms"] = statistics.median(firsts)
        found["parse_to_applied_ms_all"] = firsts
        found["switch_to_a_new_one_ms"] = self._switches_to_new_ones(loras, runs)
        found["switch_ms"] = median_ms(
            device, lambda: patcher.apply([(loras[next(turn) % 2], SCALE)]), 2 * runs, warm=6
        )
        patcher.apply([(loras[0], SCALE)])
        found["same_again_ms"] = median_ms(
            device, lambda: patcher.apply([(loras[0], SCALE)]), 2 * runs
        )
        restores, applies = [], []
        for _ in range(runs):
            applies.append(median_ms(device, lambda: patcher.apply([(loras[0], SCALE)]), 1, 0))
            restores.append(median_ms(device, patcher.restore, 1, 0))
        found["apply_ms"] = statistics.median(applies)
        found["restore_with_proof_ms"] = statistics.median(restores)
        encode = self.ready.drawer._calls.encode_text
        with torch.no_grad():
            found["text_ms"] = median_ms(
                device, lambda: encode_prompts(pipe, PROMPT, "", encode), runs, warm=3
            )
        found["picture_eager_ms"] = median_ms(device, self.drawn_without_recordings, 1, 0)
        pictures: list[Run] = []

        def draw() -> None:
            pictures.append(self._run())
            self.ready.drawer.draw(pictures[-1])

        found["picture_ms"] = median_ms(device, draw, min(runs, 3))
        timings = [run.timings() for run in pictures[1:]]
        denoise = statistics.median(one.denoise for one in timings)
        found["denoise_ms"] = round(denoise * 1e3, 3)
        found["step_ms"] = round(denoise * 1e3 / self.steps, 3)
        found["vae_ms"] = round(statistics.median(one.decode for one in timings) * 1e3, 3)
        run = pictures[-1]
        found["drawing"] = run.drawing.model_dump() if run.drawing else None
        found["graph_bytes"] = self.static.nbytes
        if device == "cuda":
            found["memory_bytes"] = torch.cuda.max_memory_allocated()

    def _switches_to_new_ones(self, loras: list[ParsedLora], runs: int) -> float:
        """A LoRA that is parsed and was not applied before, in the place of another."""
        patcher, seconds = self.ready.patcher, []
        for number in range(runs):
            patcher._grouped._kept.clear()
            one, other = loras[number % 2], loras[(number + 1) % 2]
            patcher.apply([(one, SCALE)])
            apply = partial(patcher.apply, [(other, SCALE)])
            seconds.append(median_ms(self.device, apply, 1, 0))
        return statistics.median(seconds)


class Theirs:
    """diffusers as its documentation shows it, in the same process afterwards."""

    def __init__(self, folder: Path, device: str, side: int, steps: int) -> None:
        self.device, self.side, self.steps = device, side, steps
        cls: Any = diffusers.StableDiffusionXLPipeline
        options = {
            "dtype": torch.bfloat16 if device == "cuda" else torch.float32,
            "add_watermarker": False,
        }
        try:
            self.pipe = cls.from_pretrained(str(folder), variant="fp16", **options)
        except (ValueError, OSError):
            self.pipe = cls.from_pretrained(str(folder), **options)
        self.pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def draw(self) -> bytes:
        """The pixels of the same picture."""
        image = self.pipe(
            PROMPT, width=self.side, height=self.side, num_inference_steps=self.steps,
            guidance_scale=CFG, generator=torch.Generator("cpu").manual_seed(SEED),
        ).images[0]  # fmt: skip
        return bytes(image.tobytes())

    def draw_merged(self, path: Path) -> bytes:
        """The same picture with the LoRA in `path` merged by the worker's rule, by a patcher of its
        own, and drawn by diffusers' pipeline."""
        targets = lora_targets(self.pipe.unet, self.pipe.text_encoder, self.pipe.text_encoder_2)
        patcher = LoraPatcher(targets)
        with patcher.applied([(parse_lora(path.read_bytes(), targets).to(self.device), SCALE)]):
            return self.draw()

    def fused(self, files: LoraFiles, runs: int) -> Rows:
        """Load, fuse, draw, unfuse, unload."""
        pipe, found = self.pipe, Rows()
        state = load_file(files.folder / files.names[0])

        def cycle() -> None:
            pipe.load_lora_weights(dict(state), adapter_name="x")
            pipe.fuse_lora(components=["unet"], lora_scale=SCALE)
            self.draw()
            pipe.unfuse_lora(components=["unet"])
            pipe.unload_lora_weights()

        found["picture_ms"] = median_ms(self.device, self.draw, 1)
        found["fused_cycle_ms"] = median_ms(self.device, cycle, runs)
        return found

    def hotswaps(self, files: LoraFiles, *, compiled: bool) -> Callable[[], None]:
        """What loads one of two adapters in the other's place and draws, the blocks compiled where
        asked; drawn once. The pipeline is good for nothing else afterwards."""
        pipe = self.pipe
        states = [load_file(files.folder / name) for name in files.names[:2]]
        rank = next(v.shape[0] for k, v in states[0].items() if k.endswith("lora_down.weight"))
        pipe.enable_lora_hotswap(target_rank=rank)
        pipe.load_lora_weights(dict(states[0]), adapter_name="x")
        if compiled:
            pipe.unet.compile_repeated_blocks(fullgraph=True)
        turn = iter(range(10**6))

        def swap() -> None:
            state = dict(states[next(turn) % 2])
            pipe.load_lora_weights(state, adapter_name="x", hotswap=True)
            self.draw()

        swap()
        return swap


def release(*_: object) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    # After an error of the device itself nothing works, and the last line is still wanted.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()
