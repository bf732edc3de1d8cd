"""Train the AutoencoderKL: f = 8, four latent channels, as SDXL's own.

`python -m demo_model.training.train_vae MINUTES` trains for that long (learning rate: short
warm-up, then cosine to zero) and goes on from the last checkpoint's weights where there is one. The
loss is the mean absolute error of the pixels (in -1..1) + 0.1 x that of their differences to the
right and downwards (edges) + `KL` x the mean KL divergence of the latents (Kingma and Welling
2014).
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from demo_model.common import SIZE, STATE
from demo_model.training.muon import MuonWithAdamW, split

BATCH = 16
RATE = 3e-3
KL = 5e-4
SEED = 1
CHECKPOINT = STATE / "vae.pt"


def build() -> AutoencoderKL:
    """The untrained autoencoder: (B, 3, 128, 128) in -1..1 to latents (B, 4, 16, 16)."""
    blocks = 4
    return AutoencoderKL(
        block_out_channels=(16, 32, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        latent_channels=4,
        sample_size=SIZE,
        force_upcast=False,
    )


def edges(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences to the neighbour on the right and below."""
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def augmented(pictures: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """A batch in -1..1; a third of it mirrored and a third with its channels permuted."""
    batch = pictures[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
    third = len(batch) // 3
    batch[:third] = batch[:third].flip(-1)
    batch[third : 2 * third] = batch[third : 2 * third][:, torch.randperm(3)]
    return batch


def main(minutes: float) -> None:
    """Train, print the loss each hundred steps, save each five minutes and at the end."""
    torch.manual_seed(SEED + int(time.time()) % 1000 if CHECKPOINT.exists() else SEED)
    data = np.load(STATE / "pictures.npz")
    styles = ("flat", "line", "line", "line", "sepia", "sprout")
    pictures = torch.from_numpy(np.concatenate([data[style] for style in styles]))
    vae = build().to(memory_format=torch.channels_last)
    if CHECKPOINT.exists():
        vae.load_state_dict(torch.load(CHECKPOINT))
    average = {key: value.clone() for key, value in vae.state_dict().items()}
    optimizer = MuonWithAdamW(*split([vae]), lr=RATE)
    print(f"{sum(p.numel() for p in vae.parameters())} parameters", flush=True)

    start, saved, step, total = time.monotonic(), time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = RATE * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(rate)
        batch = augmented(pictures, torch.randint(len(pictures), (BATCH,)))
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        absolute = (decoded - batch).abs().mean()
        pairs = zip(edges(decoded), edges(batch), strict=True)
        sharp = torch.stack([(ours - real).abs().mean() for ours, real in pairs]).sum()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        (absolute + 0.1 * sharp + KL * divergence.float()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in vae.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        step, total = step + 1, total + absolute.item()
        if step % 100 == 0:
            seconds = (time.monotonic() - start) / step
            line = f"step {step} L1 {total / 100:.4f} KL {divergence.item():.2f}"
            print(f"{line} rate {rate:.1e} {seconds:.3f} s/step", flush=True)
            total = 0.0
        if time.monotonic() - saved > 300:
            torch.save(average, CHECKPOINT)
            saved = time.monotonic()
    torch.save(average, CHECKPOINT)
    print(f"saved after {step} steps", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
