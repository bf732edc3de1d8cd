"""Train the base model: text encoders and UNet together, on the latents of the flat style.

`python -m demo_model.training.train_base MINUTES` trains for that long and goes on from the last
checkpoint where there is one, then writes `sdxl-demo/`. The loss is the mean squared error of v
(Salimans and Ho 2022, arXiv 2202.00512): v = sqrt(a) noise - sqrt(1 - a) x. Times are drawn with
more weight on noisy ones, since there the words decide what the picture becomes.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTokenizer

from demo_model.common import AFTER, BACKGROUNDS, BEFORE, SIZE, STATE, TEMPLATES, available_names
from demo_model.training.muon import MuonWithAdamW, split
from demo_model.training.parts import (
    Parts,
    build_parts,
    build_scheduler,
    build_tokenizer,
    encode_prompts,
    load_vae,
    save,
)

BATCH = 48
RATE = 2e-3
SHIFT = 2.0  # of the times: t = s u / (1 + (s - 1) u) for u uniform in 0..1
WITHOUT_WORDS = 0.08  # zeros instead of the prompt, for classifier-free guidance
EMPTY = 0.04  # the empty prompt
SEED = 2
CHECKPOINT = STATE / "base.pt"


@dataclass
class Latents:
    """Pictures as the UNet sees them: float32 (N, 4, 16, 16), standard deviation one."""

    values: torch.Tensor
    scaling_factor: float


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """Means of the latents, unscaled. uint8 (N, H, W, 3) to float32 (N, 4, H/8, W/8)."""
    parts = []
    for start in range(0, len(pictures), 64):
        pixels = torch.from_numpy(pictures[start : start + 64]).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean.float())
    return torch.cat(parts)


def load_latents(style: str = "flat") -> tuple[AutoencoderKL, Latents]:
    """The autoencoder and the latents of one style, made once and kept beside its weights."""
    state = torch.load(STATE / "vae.pt")
    data = np.load(STATE / "pictures.npz")
    plain = load_vae(state, 1.0)
    factor = 1 / encode(plain, data["flat"]).std().item()
    return load_vae(state, factor), Latents(encode(plain, data[style]) * factor, factor)


class Captions:
    """The pictures' captions in random wordings: with words around them that mean nothing."""

    def __init__(self, parts: Parts, names: list[str], seed: int) -> None:
        self.pairs = [(name, ground) for name in names for ground in BACKGROUNDS]
        self._tokenizer = parts.tokenizer
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def worded(self, name: str, background: str) -> str:
        """One way to say it. Without a background's name it is white."""
        draw = self._random
        if background == "white" and draw.random() < 0.5:
            text = draw.choice(("{n}", "a {n}", "a picture of a {n}")).format(n=name)
        else:
            text = draw.choice(TEMPLATES).format(n=name, b=background)
        chance = draw.random()
        if chance < 0.2 and text.startswith((name, f"a {name}")):
            text = f"{draw.choice(BEFORE)} {text.removeprefix('a ')}"
        if 0.1 < chance < 0.35:
            text = f"{text}, {draw.choice(AFTER)}"
        if 0.33 < chance < 0.4:  # a word that nobody knows
            word = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
            text = draw.choice((f"{word} {text}", f"{text}, {word}"))
        return text

    def ids(self, chosen: list[int]) -> torch.Tensor:
        """int64 (len(chosen), 77); some are the empty prompt."""
        empty = [self._random.random() < EMPTY for _ in chosen]
        pairs = [self.pairs[index] for index in chosen]
        texts = ["" if e else self.worded(*pair) for e, pair in zip(empty, pairs, strict=True)]
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        found: torch.Tensor = self._tokenizer(texts, **options).input_ids
        return found


def random_times(count: int) -> torch.Tensor:
    """int64 (count,) in 0..999, more of them noisy."""
    u = torch.rand(count)
    shifted = SHIFT * u / (1 + (SHIFT - 1) * u)
    return (shifted * 1000).long().clamp(0, 999)


def v_loss(
    parts: Parts, alphas: torch.Tensor, latents: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """The loss of one batch: latents (B, 4, 16, 16), token ids (B, 77)."""
    words, pooled = encode_prompts(parts, ids)
    kept = (torch.rand(len(latents), 1) >= WITHOUT_WORDS).float()
    return unet_loss(parts.unet, alphas, latents, words * kept[..., None], pooled * kept)


def unet_loss(
    unet: UNet2DConditionModel,
    alphas: torch.Tensor,
    latents: torch.Tensor,
    words: torch.Tensor,
    pooled: torch.Tensor,
    **more: Any,
) -> torch.Tensor:
    """`v_loss` for prompts that are encoded: (B, 77, 160) and (B, 96); `more` goes to the UNet."""
    count = len(latents)
    # Any size may be asked for; what is drawn does not depend on it.
    sizes = torch.randint(8, SIZE // 4 + 1, (count, 4)) * 8
    time_ids = torch.cat([sizes[:, :2], torch.zeros(count, 2, dtype=torch.long), sizes[:, 2:]], 1)
    times = random_times(count)
    a = alphas[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    target = a.sqrt() * noise - (1 - a).sqrt() * latents
    added = {"text_embeds": pooled, "time_ids": time_ids}
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    found = unet(noisy, times, words, added_cond_kwargs=added, **more).sample
    return torch.nn.functional.mse_loss(found.float(), target)


def load_checkpoint(parts: Parts) -> None:
    """Put the last checkpoint's weights into `parts`."""
    for name, state in torch.load(CHECKPOINT).items():
        parts.modules()[name].load_state_dict(state)


def main(minutes: float) -> None:
    """Train, print the loss each hundred steps, save each five minutes, write the folder."""
    again = CHECKPOINT.exists()
    torch.manual_seed(SEED + int(time.time()) % 1000 if again else SEED)
    vae, latents = load_latents()
    # A resumed run keeps its vocabulary: the embeddings belong to it.
    folder = STATE / "tokenizer"
    parts = build_parts(CLIPTokenizer.from_pretrained(folder) if again else build_tokenizer(folder))
    parts.unet.to(memory_format=torch.channels_last)
    if again:
        load_checkpoint(parts)
    modules = parts.modules()
    optimizer = MuonWithAdamW(*split(modules.values()), lr=RATE)
    average = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
    alphas = build_scheduler().alphas_cumprod
    captions = Captions(parts, available_names(), torch.initial_seed())
    count = sum(p.numel() for m in modules.values() for p in m.parameters())
    print(f"{count} parameters, {len(captions)} captions, latents x {latents.scaling_factor:.4f}")

    start = saved = time.monotonic()
    step, total = 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = RATE * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(rate)
        chosen = torch.randint(len(captions), (BATCH,))
        batch_ids = captions.ids(chosen.tolist())
        with torch.autocast("cpu", torch.bfloat16):
            loss = v_loss(parts, alphas, latents.values[chosen], batch_ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    if value.is_floating_point():
                        average[name][key].lerp_(value, 1 - decay)
        step, total = step + 1, total + loss.item()
        if step % 100 == 0:
            seconds = (time.monotonic() - start) / step
            print(
                f"step {step} loss {total / 100:.4f} rate {rate:.1e} {seconds:.3f} s/step",
                flush=True,
            )
            total = 0.0
        if time.monotonic() - saved > 300:
            torch.save(average, CHECKPOINT)
            saved = time.monotonic()
    torch.save(average, CHECKPOINT)
    load_checkpoint(parts)
    save(parts, vae)
    print(f"saved after {step} steps", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
