"""Train the base model: text encoders and UNet together, on the latents of the flat style.

`python train_base.py MINUTES` trains for that long and goes on from the last checkpoint where
there is one, then writes `sdxl-demo/`. The loss is the mean squared error of v (Salimans and Ho
2022, arXiv 2202.00512): v = sqrt(a) noise - sqrt(1 - a) x. Times are drawn with more weight on
noisy ones, since there the words decide what the picture becomes.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from common import BACKGROUNDS, SIZE, STATE, TEMPLATES, available_names
from diffusers import AutoencoderKL
from muon import MuonWithAdamW, split
from parts import (
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


def tokenized(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Each caption in each wording. int64 (captions, wordings, 77), and the empty one."""
    pairs = [(name, ground) for name in available_names() for ground in BACKGROUNDS]
    texts = [template.format(n=n, b=b) for n, b in pairs for template in TEMPLATES]
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = parts.tokenizer(texts, **options).input_ids.view(len(pairs), len(TEMPLATES), -1)
    return ids, parts.tokenizer([""], **options).input_ids[0]


def random_times(count: int) -> torch.Tensor:
    """int64 (count,) in 0..999, more of them noisy."""
    u = torch.rand(count)
    shifted = SHIFT * u / (1 + (SHIFT - 1) * u)
    return (shifted * 1000).long().clamp(0, 999)


def v_loss(
    parts: Parts, alphas: torch.Tensor, latents: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """The loss of one batch: latents (B, 4, 16, 16), token ids (B, 77)."""
    count = len(latents)
    words, pooled = encode_prompts(parts, ids)
    kept = (torch.rand(count, 1) >= WITHOUT_WORDS).float()
    words, pooled = words * kept[..., None], pooled * kept
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
    found = parts.unet(noisy, times, words, added_cond_kwargs=added).sample
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
    parts = build_parts(build_tokenizer(STATE / "tokenizer"))
    parts.unet.to(memory_format=torch.channels_last)
    if again:
        load_checkpoint(parts)
    modules = parts.modules()
    optimizer = MuonWithAdamW(*split(modules.values()), lr=RATE)
    average = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
    alphas = build_scheduler().alphas_cumprod
    ids, empty = tokenized(parts)
    count = sum(p.numel() for m in modules.values() for p in m.parameters())
    print(f"{count} parameters, {len(ids)} captions, latents x {latents.scaling_factor:.4f}")

    start = saved = time.monotonic()
    step, total = 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = RATE * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(rate)
        chosen = torch.randint(len(ids), (BATCH,))
        batch_ids = ids[chosen, torch.randint(ids.shape[1], (BATCH,))]
        batch_ids[torch.rand(BATCH) < EMPTY] = empty
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
