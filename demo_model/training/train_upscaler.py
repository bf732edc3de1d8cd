"""Train a small upscaler of twice the sides for what the demo model draws.

`python -m demo_model.training.train_upscaler MINUTES` trains for that long from the beginning, by
the processor's time, and writes `upscalers/`; needs the packages of build_dataset.py, what
references.py wrote, and the committed autoencoder. The network is Real-ESRGAN's compact one, with
its names, as any that the worker reads.

It learns from pictures that are drawn at twice the side and made small again, by one of three
filters. Half of the small ones went through the autoencoder, as all did that the model draws. The
loss is each picture's root mean square error, which is what decibels measure. By the mean absolute
error it learnt to add nothing: in flat areas, most of these pictures, that is right.
`HELD_OUT` is in no batch, nor is any other thing that shares a word with it.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from demo_model import references
from demo_model.common import (
    BACKGROUNDS,
    HERE,
    SIZE,
    STATE,
    available_names,
    draw,
    held_out,
    others,
    turned,
)
from demo_model.training.muon import MuonWithAdamW, split
from demo_model.training.train_control import committed

FILE = HERE / "upscalers" / "demo-2x.safetensors"
SCALE = 2
WIDTH, CONVS = 24, 8
BATCH, CROP = 8, 48  # pictures, and px of a small one's part
RATE = 2e-3
LEAST = 1e-6
THROUGH = 0.5  # of a batch: small ones that went through the autoencoder
SEED = 21
FILTERS = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass
class Pairs:
    """uint8, N pictures of 3 channels: `large` at twice the side of `small` and of `drawn`.

    Attributes:
        drawn: `small` after the autoencoder.
    """

    large: torch.Tensor
    small: torch.Tensor
    drawn: torch.Tensor

    def crops(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch in 0..1: (BATCH, 3, CROP, CROP), and the same places at twice the side."""
        small, large = [], []
        for number, index in enumerate(torch.randint(len(self.large), (BATCH,)).tolist()):
            source = self.drawn if number < BATCH * THROUGH else self.small
            y, x = torch.randint(SIZE - CROP + 1, (2,)).tolist()
            one = source[index, :, y : y + CROP, x : x + CROP]
            y, x, side = SCALE * y, SCALE * x, SCALE * CROP
            two = self.large[index, :, y : y + side, x : x + side]
            if torch.rand(()) < 0.5:
                one, two = one.flip(-1), two.flip(-1)
            # Its colours in another order: there are few of them, and shapes are what it learns.
            order = torch.randperm(3)
            small.append(one[order])
            large.append(two[order])
        return torch.stack(small).float() / 255, torch.stack(large).float() / 255


def sources(names: list[str], chance: random.Random) -> Iterator[NDArray[np.uint8]]:
    """Two flat pictures and the line art of each name, and all there is once, turned."""
    side = SCALE * SIZE
    grounds = list(BACKGROUNDS)
    flat = (
        draw(n, ground, "flat", "", side) for n in names for ground in chance.sample(grounds, 2)
    )
    line = (draw(name, "white", "line", "", side) for name in names)
    return chain(flat, line, turned([*others(), *names], chance, 1, side))


def shrunk(picture: NDArray[np.uint8], resampling: Image.Resampling) -> NDArray[np.uint8]:
    """uint8 (2 SIZE, 2 SIZE, 3) to (SIZE, SIZE, 3)."""
    return np.array(Image.fromarray(picture).resize((SIZE, SIZE), resampling))


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """What the autoencoder makes of pictures: uint8 (N, 3, h, w) to the same."""
    latents = vae.encode(pictures.float() / 127.5 - 1).latent_dist.mean
    decoded = vae.decode(latents).sample
    found: torch.Tensor = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return found


def prepared(
    vae: AutoencoderKL, pictures: Iterator[NDArray[np.uint8]], chance: random.Random
) -> Pairs:
    """Large and small ones."""
    large, small, drawn = [], [], []
    while some := list(islice(pictures, 16)):
        less = [shrunk(one, chance.choice(FILTERS)) for one in some]
        large.append(torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2))
        small.append(torch.from_numpy(np.stack(less)).permute(0, 3, 1, 2))
        drawn.append(through(vae, small[-1]))
    return Pairs(torch.cat(large), torch.cat(small), torch.cat(drawn))


def pairs_of(vae: AutoencoderKL, names: list[str]) -> tuple[Pairs, Pairs]:
    """What is trained on, and the held out: made once, and kept under `.training/`."""
    path = STATE / "upscaler.pt"
    if not path.is_file():
        chance = random.Random(SEED)
        unseen = (one.pixels for one in references.large())
        found = [prepared(vae, some, chance) for some in (sources(names, chance), unseen)]
        torch.save([vars(one) for one in found], path)
    seen, rest = (Pairs(**one) for one in torch.load(path))
    return seen, rest


def decibels(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal to noise of pictures in 0..1 (N, 3, h, w): the mean over them, in dB."""
    errors = (found.clamp(0, 1) - wanted).square().mean(dim=(1, 2, 3))
    return float(-10 * errors.log10().mean())


@torch.no_grad()
def judged(network: Doubling, rest: Pairs) -> str:
    """How near the held out come, made large from the clean and from the drawn ones."""
    wanted = rest.large.float() / 255
    told = []
    for small in (rest.small, rest.drawn):
        plain = [
            np.array(Image.fromarray(one.permute(1, 2, 0).numpy()).resize(
                (SCALE * SIZE, SCALE * SIZE), Image.Resampling.LANCZOS
            ))
            for one in small
        ]  # fmt: skip
        lanczos = torch.from_numpy(np.stack(plain)).permute(0, 3, 1, 2).float() / 255
        ours = decibels(network(small.float() / 255), wanted)
        told.append(f"{ours:.2f} dB (lanczos {decibels(lanczos, wanted):.2f})")
    return f"held out: clean {told[0]}, drawn {told[1]}"


class Doubling(nn.Module):
    """Convolutions that find what is to be added to each pixel four times."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in pairwise([3, *[WIDTH] * (CONVS + 1)]):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.PReLU(out)]
        last = nn.Conv2d(WIDTH, 3 * SCALE**2, 3, padding=1)
        self.body = nn.Sequential(*layers, last)

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) in 0..1 to (B, 3, 2 h, 2 w)."""
        plain = small.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
        return functional.pixel_shuffle(self.body(small), SCALE) + plain


def build() -> Doubling:
    """The untrained network: what it adds is nothing at first.

    By torch's own beginning each layer hands on less than it gets, and nine of them nearly nothing.
    """
    network = Doubling()
    layers = [layer for layer in network.body if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=0.25)  # PReLU's slope at first
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    return network


def main(minutes: float) -> None:
    """Train, print the losses each 500 steps, save at the end."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    kept_back = held_out()
    seen, rest = pairs_of(committed()[1], [n for n in available_names() if n not in kept_back])
    network = build()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = sum(p.numel() for p in network.parameters())
    print(f"{count} parameters, {len(seen.large)} pictures, {len(rest.large)} held out", flush=True)
    optimizer = MuonWithAdamW(*split([network]), lr=RATE, dtype=torch.float32)
    start, step, total = time.process_time(), 0, 0.0
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        optimizer.set_rate(RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done)))
        small, large = seen.crops()
        found = network(small.contiguous(memory_format=torch.channels_last))
        # A part may be flat, and a root has no slope at nothing.
        loss = ((found - large).square().mean(dim=(1, 2, 3)) + LEAST).sqrt().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 500 == 0:
            seconds = (time.process_time() - start) / step
            line = f"step {step} loss {total / 500:.5f}; {judged(network, rest)}"
            print(f"{line}; {seconds:.3f} s/step", flush=True)
            total = 0.0
    FILE.parent.mkdir(exist_ok=True)
    half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(half, FILE)
    network.load_state_dict({name: value.float() for name, value in half.items()})
    print(f"saved after {step} steps: {FILE.stat().st_size} bytes; {judged(network, rest)}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
