"""Train a small T2I-Adapter that holds the demo model's drawings to a picture's edges.

`python -m demo_model.training.train_control MINUTES` trains for that long and goes on from the file
that is there; needs the packages of build_dataset.py and the committed model, which stays as it is.
The edges are those that the worker finds for `canny`, with its thresholds.

The loss is the base's (`v_loss` of train_base.py), by the words or without any. Beside the pictures
that the model knows, most of a batch are other things of the same set, turned and mirrored, without
words: a network that sees only 136 shapes learns these by heart rather than to follow lines.
`HELD_OUT` is in no batch, nor is any other thing that shares a word with it.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo_model.common import (
    HERE,
    MODEL,
    SIZE,
    STATE,
    available_names,
    held_out,
    known,
    others,
    turned,
)
from demo_model.training.muon import MuonWithAdamW, split
from demo_model.training.parts import Parts, build_scheduler, encode_prompts
from demo_model.training.train_base import Captions, unet_loss
from sdxl_contract.drawing.controls import Canny
from sdxl_contract.drawing.edges import canny

FOLDER = HERE / "controls" / "edges"
BATCH = 16
RATE = 2e-3
SEED = 11
OTHER_DRAWINGS = 2  # of each thing without words
WORDLESS = 0.4  # of the pictures that have words: edges alone must do
ZEROS = 0.5  # of those without words: the second row of classifier-free guidance
OTHERS = 0.8  # of a batch: turned things without words; at 0.5 it learnt the known shapes by heart
WORDINGS = 2  # of each caption
SAVE_SECONDS = 300
SEEN_AT = 200  # of 1,000 times: where `warm_up` lets the UNet see the picture
WARM_SHARE, WARM_STEPS, WARM_RATE = 0.5, 400, 4e-3


@dataclass
class Pictures:
    """latents: float32 (N, 4, 16, 16), standard deviation one; edges: bool (N, 128, 128)."""

    latents: torch.Tensor
    edges: torch.Tensor

    def maps(self, chosen: torch.Tensor) -> torch.Tensor:
        """As the worker gives them to an adapter of one channel: float32 (B, 1, 128, 128)."""
        return self.edges[chosen][:, None].float()


def edges_of(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What the worker finds for `"canny": {}`. uint8 (H, W, 3) to bool (H, W)."""
    asked = Canny()
    found = canny(Image.fromarray(picture), asked.low, asked.high)
    return np.asarray(found)[..., 0] > 0


@torch.no_grad()
def prepared(vae: AutoencoderKL, pictures: Iterator[NDArray[np.uint8]]) -> Pictures:
    """Their latents and edges."""
    latents, edges = [], []
    while some := list(islice(pictures, 16)):
        pixels = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2)
        mean = vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean
        latents.append(mean * vae.config["scaling_factor"])
        edges += [edges_of(one) for one in some]
    return Pictures(torch.cat(latents), torch.from_numpy(np.stack(edges)))


def pictures_of(vae: AutoencoderKL, names: list[str]) -> tuple[Pictures, Pictures, Pictures]:
    """The named, the turned and the held out ones: made once, and kept under `.training/`."""
    path = STATE / "edges.pt"
    if not path.is_file():
        chance = random.Random(SEED)
        drawn = known(names), turned([*others(), *names], chance, OTHER_DRAWINGS), known(held_out())
        found = [prepared(vae, some) for some in drawn]
        torch.save([(one.latents, one.edges) for one in found], path)
    named, rest, unseen = (Pictures(*one) for one in torch.load(path))
    return named, rest, unseen


@dataclass
class Words:
    """Prompts as the UNet gets them: (N, WORDINGS, 77, 160) and (N, WORDINGS, 96); none at all."""

    words: torch.Tensor
    pooled: torch.Tensor
    empty: tuple[torch.Tensor, torch.Tensor]

    def of(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A wording of each picture; none for numbers below zero, and for `WORDLESS` of all."""
        count = len(chosen)
        wording = torch.randint(WORDINGS, (count,))
        words, pooled = self.words[chosen, wording].float(), self.pooled[chosen, wording].float()
        without = (chosen < 0) | (torch.rand(count) < WORDLESS)
        kept = (torch.rand(count) >= ZEROS).float()[:, None]
        words = torch.where(without[:, None, None], self.empty[0] * kept[..., None], words)
        return words, torch.where(without[:, None], self.empty[1] * kept, pooled)


@torch.no_grad()
def encoded(parts: Parts, names: list[str]) -> Words:
    """`WORDINGS` of each caption."""
    captions = Captions(parts, names, SEED)
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    words, pooled = [], []
    for pair in captions.pairs:
        texts = [captions.worded(*pair) for _ in range(WORDINGS)]
        found = encode_prompts(parts, parts.tokenizer(texts, **options).input_ids)
        words.append(found[0].bfloat16())
        pooled.append(found[1].bfloat16())
    empty = encode_prompts(parts, parts.tokenizer([""], **options).input_ids)
    return Words(torch.stack(words), torch.stack(pooled), empty)


def committed() -> tuple[Parts, AutoencoderKL]:
    """The model as it is committed, in float32 and frozen."""
    parts = Parts(
        CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder_2", dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(MODEL / "unet", torch_dtype=torch.float32),
    )
    vae = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float32)
    for module in (*parts.modules().values(), vae):
        module.eval().requires_grad_(False)
    return parts, vae


def build(unet: UNet2DConditionModel) -> T2IAdapter:
    """About 0.9 million parameters, of the shape that SDXL's adapters have, for grey maps."""
    blocks = unet.config["block_out_channels"]
    adapter = T2IAdapter(
        in_channels=1,
        channels=[*blocks, blocks[-1]],
        num_res_blocks=2,
        downscale_factor=16,
        adapter_type="full_adapter_xl",
    )
    path = FOLDER / "diffusion_pytorch_model.safetensors"
    if path.is_file():
        adapter.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        print("going on from the file that is there")
    return adapter


@torch.no_grad()
def judged(
    unet: UNet2DConditionModel, adapter: T2IAdapter, seen: Pictures, empty: Words
) -> tuple[float, float]:
    """The loss of unseen pictures without words, not held and held by their edges."""
    losses = []
    for held in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            total, count = 0.0, len(seen.latents)
            for start in range(0, count, BATCH):
                chosen = torch.arange(start, min(start + BATCH, count))
                more = features(adapter, seen.maps(chosen)) if held else {}
                nothing = [each.expand(len(chosen), *each.shape[1:]) for each in empty.empty]
                loss = unet_loss(unet, ALPHAS, seen.latents[chosen], *nothing, **more)
                total += loss.item() * len(chosen)
        losses.append(total / count)
    return losses[0], losses[1]


def features(adapter: T2IAdapter, maps: torch.Tensor) -> dict[str, Any]:
    """What the UNet gets of an adapter."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    return {"down_intrablock_additional_residuals": list(adapter(maps))}


ALPHAS = build_scheduler().alphas_cumprod


@torch.no_grad()
def levels(unet: UNet2DConditionModel, pictures: Pictures, words: Words) -> list[torch.Tensor]:
    """What the UNet has, where an adapter adds, of pictures that it sees nearly without noise.

    Four tensors (N, C, h, w), less their means over all pictures.
    """
    kept: list[list[torch.Tensor]] = [[], [], [], []]
    inner = unet.down_blocks[1]
    places = unet.down_blocks[0], inner.attentions[-1], unet.down_blocks[2], unet.mid_block
    hooks = [
        place.register_forward_hook(
            # A block gives a tuple that begins with its tensor; the middle gives the tensor.
            lambda _module, _inputs, found, into=into: into.append(
                (found[0] if isinstance(found, tuple) else found).half()
            )
        )
        for place, into in zip(places, kept, strict=True)
    ]
    a = ALPHAS[SEEN_AT]
    for start in range(0, len(pictures.latents), BATCH):
        latents = pictures.latents[start : start + BATCH]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * torch.randn_like(latents)
        hidden, pooled = (each.expand(len(latents), *each.shape[1:]) for each in words.empty)
        added = {"text_embeds": pooled, "time_ids": torch.full((len(latents), 6), SIZE)}
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        unet(noisy, SEEN_AT, hidden, added_cond_kwargs=added)
    for hook in hooks:
        hook.remove()
    found = [torch.cat(some).float() for some in kept]
    return [(each - each.mean(0)).half() for each in found]


def warm_up(
    adapter: T2IAdapter, unet: UNet2DConditionModel, pictures: Pictures, words: Words
) -> None:
    """Learn to give `WARM_SHARE` of what the UNet would have if it saw the picture itself.

    Twenty times quicker a picture than by the loss, through nothing but the adapter; what comes
    after has to find only how far the UNet believes it.
    """
    wanted = levels(unet, pictures, words)
    sizes = [(WARM_SHARE * each.float()).pow(2).mean() for each in wanted]
    optimizer = MuonWithAdamW(*split([adapter]), lr=RATE, dtype=torch.float32)
    totals = torch.zeros(len(wanted))
    for step in range(WARM_STEPS):
        optimizer.set_rate(WARM_RATE * (1 - step / WARM_STEPS))
        chosen = torch.randint(len(pictures.latents), (4 * BATCH,))
        given = features(adapter, pictures.maps(chosen))["down_intrablock_additional_residuals"]
        losses = torch.stack(
            [
                torch.nn.functional.mse_loss(one, WARM_SHARE * each[chosen].float()) / size
                for one, each, size in zip(given, wanted, sizes, strict=True)
            ]
        )
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals += losses.detach()
        if (step + 1) % 100 == 0:
            missed = " ".join(f"{total / 100:.3f}" for total in totals)
            print(f"warm-up {step + 1}: misses {missed} of the variance", flush=True)
            totals.zero_()


def save(adapter: T2IAdapter, folder: Path = FOLDER) -> None:
    """Write the folder in half precision; what is trained stays as it is."""
    half = T2IAdapter.from_config(adapter.config)
    half.load_state_dict(adapter.state_dict())
    half.half().save_pretrained(folder, safe_serialization=True)


def report(step: int, loss: float, held_out: tuple[float, float], seconds: float = 0.0) -> None:
    """One line of the log."""
    free, held = held_out
    print(
        f"step {step} loss {loss:.4f}; held out, without words: {free:.4f} free, {held:.4f} by "
        f"edges; {seconds:.3f} s/step",
        flush=True,
    )


def main(minutes: float) -> None:
    """Train, print the losses each hundred steps, save each five minutes and at the end."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    parts, vae = committed()
    kept_back = held_out()
    names = [name for name in available_names() if name not in kept_back]
    named, rest, unseen = pictures_of(vae, names)
    words = encoded(parts, names)
    unet = parts.unet.to(memory_format=torch.channels_last)
    adapter = build(unet).to(memory_format=torch.channels_last).train()
    count = sum(p.numel() for p in adapter.parameters())
    print(
        f"{count} parameters, {len(named.latents)} pictures of {len(names)} names, "
        f"{len(rest.latents)} turned ones, {len(unseen.latents)} held out",
        flush=True,
    )
    if (FOLDER / "config.json").is_file():
        torch.manual_seed(SEED + 1)
    else:
        both = zip(vars(named).values(), vars(rest).values(), strict=True)
        warm_up(adapter, unet, Pictures(*(torch.cat(two) for two in both)), words)
        report(0, 0.0, judged(unet, adapter, unseen, words))
    optimizer = MuonWithAdamW(*split([adapter]), lr=RATE, dtype=torch.float32)
    start, step, total, saved = time.monotonic(), 0, 0.0, time.monotonic()
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(rate)
        turned_count = round(BATCH * OTHERS)
        one = torch.randint(len(named.latents), (BATCH - turned_count,))
        other = torch.randint(len(rest.latents), (turned_count,))
        latents = torch.cat([named.latents[one], rest.latents[other]])
        maps = torch.cat([named.maps(one), rest.maps(other)])
        told = words.of(torch.cat([one, torch.full_like(other, -1)]))
        loss = unet_loss(unet, ALPHAS, latents, *told, **features(adapter, maps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 100 == 0:
            seconds = (time.monotonic() - start) / step
            report(step, total / 100, judged(unet, adapter, unseen, words), seconds)
            total = 0.0
        if time.monotonic() - saved > SAVE_SECONDS:
            save(adapter)
            saved = time.monotonic()
    save(adapter)
    size = (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size
    print(f"saved after {step} steps: {size} bytes", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
