"""Train an IP-Adapter and the image encoder that it looks through: a picture instead of words.

`python -m demo_model.training.train_ip_adapter MINUTES` trains for that long, by the processor's
time, and goes on with the last part where `adapters/` is there; needs the packages of
build_dataset.py and the committed model, which stays as it is.

Three parts, each far quicker than what comes after it: the encoder learns to tell names and
backgrounds; the adapter's attentions learn to add what the words' attentions would have added to
those of no words; then both learn that the UNet says of the picture without words what it says with
them. Its own answers are the goal instead of the truth, since they are what the words mean to it.
References are the names' pictures on all backgrounds, moved, scaled, mirrored and blurred.
`HELD_OUT` is in no batch.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from demo_model.common import BACKGROUNDS, HERE, SIZE, available_names, held_out, known
from demo_model.training.muon import MuonWithAdamW, split
from demo_model.training.train_base import encode, random_times
from demo_model.training.train_control import ALPHAS, Words, committed, encoded
from demo_model.training.train_safety import SIDE, Pictures

FOLDER = HERE / "adapters"
ENCODER, NAME = "image_encoder", "pictures"
SUMMARY, TOKENS = 128, 4  # what the encoder says of a picture; what the adapter makes of that
NAMING_STEPS, NAMING_BATCH, NAMING_RATE = 1000, 64, 2e-3
SHARE = 0.25  # of the time: the attentions alone
BATCH, RATE = 16, 2e-3
UNSEEN = 0.15  # of a batch: no picture, and no words: the second row of classifier-free guidance
SEED = 31


class Adapter(nn.Module):
    """diffusers' parts of an IP-Adapter.

    Attributes:
        projection: the encoder's summary (B, SUMMARY) to TOKENS beside the words'.
        names: of the cross-attentions, in the order of `pairs`.
        pairs: diffusers' processors, which hold a key's and a value's weights each.
    """

    def __init__(self, unet: UNet2DConditionModel, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        whole = {"low_cpu_mem_usage": False}
        found = unet._convert_ip_adapter_attn_to_diffusers([parts], **whole)
        self.projection = unet._convert_ip_adapter_image_proj_to_diffusers(
            parts["image_proj"], **whole
        )
        self.names = crossings(unet)
        self.pairs = nn.ModuleList(found[name] for name in self.names)


def build_encoder() -> CLIPVisionModelWithProjection:
    """About 0.3 million parameters; from the folder where it is there."""
    if (FOLDER / ENCODER).is_dir():
        return CLIPVisionModelWithProjection.from_pretrained(FOLDER / ENCODER, dtype=torch.float32)
    return CLIPVisionModelWithProjection(config())


def config() -> CLIPVisionConfig:
    """As small as the pictures."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        projection_dim=SUMMARY,
    )


def build(unet: UNet2DConditionModel) -> Adapter:
    """From the folder where it is there; else its attentions begin as those to the words."""
    path = FOLDER / f"{NAME}.safetensors"
    if path.is_file():
        return Adapter(unet, {name: value.float() for name, value in load_file(path).items()})
    width = unet.config["cross_attention_dim"]
    linear = nn.Linear(SUMMARY, TOKENS * width)
    tensors = {
        "image_proj.proj.weight": linear.weight.detach(),
        "image_proj.proj.bias": linear.bias.detach(),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    for number, name in enumerate(crossings(unet)):
        place = unet.get_submodule(name.removesuffix(".processor"))
        for side in ("k", "v"):
            weight = place.get_submodule(f"to_{side}").weight.detach().clone()
            tensors[f"ip_adapter.{2 * number + 1}.to_{side}_ip.weight"] = weight
    return Adapter(unet, tensors)


def crossings(unet: UNet2DConditionModel) -> list[str]:
    """The processors of attention to the words, in the order of an adapter's file."""
    return [name for name in unet.attn_processors if name.endswith("attn2.processor")]


@dataclass
class Seen:
    """References, and what the UNet is to draw for them.

    Attributes:
        latents: (N, 4, 16, 16), each name on all backgrounds.
        words: what they are called.
    """

    pictures: Pictures
    latents: Tensor
    words: Words

    def references(self, chosen: Tensor) -> Tensor:
        """As the worker's processor makes them: (B, 3, SIDE, SIDE) by CLIP's mean and deviation."""
        count = len(BACKGROUNDS)
        pixels = self.pictures.changed(chosen // count, chosen % count)
        mean, deviation = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        normal: Tensor = (pixels - mean) / deviation
        return normal

    def told(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The first wording of each: (B, 77, 160) and (B, 96)."""
        return self.words.words[chosen, 0].float(), self.words.pooled[chosen, 0].float()

    def noisy(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Their latents with noise, and the times (B,)."""
        times = random_times(len(chosen))
        a = ALPHAS[times].view(-1, 1, 1, 1)
        latents = self.latents[chosen]
        found = a.sqrt() * latents + (1 - a).sqrt() * torch.randn_like(latents)
        return found.contiguous(memory_format=torch.channels_last), times


def learn_names(encoder: CLIPVisionModelWithProjection, seen: Seen) -> None:
    """Names and backgrounds from the summary, by two layers that are thrown away."""
    count, grounds = len(seen.latents), len(BACKGROUNDS)
    readers = nn.Linear(SUMMARY, count // grounds), nn.Linear(SUMMARY, grounds)
    optimizer = MuonWithAdamW(*split([encoder, *readers]), lr=NAMING_RATE, dtype=torch.float32)
    right = torch.zeros(2)
    for step in range(1, NAMING_STEPS + 1):
        optimizer.set_rate(NAMING_RATE * (1 - (step - 1) / NAMING_STEPS))
        chosen = torch.randint(count, (NAMING_BATCH,))
        summary = encoder(seen.references(chosen)).image_embeds
        wanted = chosen // grounds, chosen % grounds
        said = [reader(summary) for reader in readers]
        losses = [functional.cross_entropy(*pair) for pair in zip(said, wanted, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        right += torch.stack(
            [
                (one.argmax(-1) == each).float().mean()
                for one, each in zip(said, wanted, strict=True)
            ]
        )
        if step % 100 == 0:
            name, ground = (right / 100).tolist()
            print(f"naming {step}: {name:.3f} of names, {ground:.3f} of grounds", flush=True)
            right.zero_()


class Watched:
    """An attention to words that keeps what it was asked, and what the words added."""

    def __init__(self, inner: Any, nothing: Tensor, into: list[tuple[Any, Tensor, Tensor]]) -> None:
        self._inner, self._nothing, self._into = inner, nothing, into

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        words = encoder_hidden_states
        found: Tensor = self._inner(attn, hidden_states, words)
        query = heads(attn, attn.to_q(hidden_states))
        with_words, without = (
            functional.scaled_dot_product_attention(
                query, heads(attn, attn.to_k(told)), heads(attn, attn.to_v(told))
            )
            for told in (words, self._nothing.expand(len(words), -1, -1))
        )
        self._into.append((attn, query, with_words - without))
        return found


def heads(attn: Any, values: Tensor) -> Tensor:
    """(B, n, heads x width) to (B, heads, n, width)."""
    count, length, width = values.shape
    return values.view(count, length, attn.heads, width // attn.heads).transpose(1, 2)


def added(
    unet: UNet2DConditionModel, seen: Seen, chosen: Tensor
) -> list[tuple[Any, Tensor, Tensor]]:
    """Each attention, its queries and what these words add to what no words give, while drawing.

    The second encoder's summary is that of no words, as it is beside a picture: the attentions
    alone decide what is drawn.
    """
    kept: list[tuple[Any, Tensor, Tensor]] = []
    before = dict(unet.attn_processors)
    watched = {n: Watched(before[n], seen.words.empty[0], kept) for n in crossings(unet)}
    try:
        unet.set_attn_processor({**before, **watched})
        noisy, times = seen.noisy(chosen)
        with torch.no_grad():
            pooled = seen.words.empty[1].expand(len(chosen), -1)
            predicted(unet, noisy, times, seen.told(chosen)[0], pooled)
    finally:
        unet.set_attn_processor(before)
    return kept


def predicted(
    unet: UNet2DConditionModel, noisy: Tensor, times: Tensor, words: Any, pooled: Tensor
) -> Tensor:
    """What the UNet says of a batch."""
    more = {"text_embeds": pooled, "time_ids": time_ids(len(noisy))}
    found: Tensor = unet(noisy, times, words, added_cond_kwargs=more).sample
    return found


def time_ids(count: int) -> Tensor:
    """As the worker has them for a whole picture."""
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).expand(count, -1)


def attention_losses(
    encoder: CLIPVisionModelWithProjection, adapter: Adapter, unet: UNet2DConditionModel, seen: Seen
) -> Tensor:
    """How much of what the words add each attention misses, of its variance: (attentions,)."""
    chosen = torch.randint(len(seen.latents), (BATCH,))
    tokens = adapter.projection(encoder(seen.references(chosen)).image_embeds)
    losses = []
    # diffusers' order while drawing is that of the layers; a file's is that of their names.
    pairs = {id(unet.get_submodule(name.removesuffix(".processor"))): pair
             for name, pair in zip(adapter.names, adapter.pairs, strict=True)}  # fmt: skip
    for attn, query, wanted in added(unet, seen, chosen):
        pair: Any = pairs[id(attn)]
        key, value = (heads(attn, layer[0](tokens)) for layer in (pair.to_k_ip, pair.to_v_ip))
        given = functional.scaled_dot_product_attention(query, key, value)
        losses.append((given - wanted).square().mean() / wanted.square().mean())
    return torch.stack(losses)


def shown(unet: UNet2DConditionModel, adapter: Adapter) -> None:
    """Attach the adapter for good: the UNet is the training's own copy."""
    before = dict(unet.attn_processors)
    unet.set_attn_processor({**before, **dict(zip(adapter.names, adapter.pairs, strict=True))})


def picture_loss(
    encoder: CLIPVisionModelWithProjection,
    adapter: Adapter,
    unets: tuple[UNet2DConditionModel, UNet2DConditionModel],
    seen: Seen,
) -> Tensor:
    """How far what is said of pictures is from what is said with words: the plain and `shown`."""
    chosen = torch.randint(len(seen.latents), (BATCH,))
    noisy, times = seen.noisy(chosen)
    kept = (torch.rand(BATCH) >= UNSEEN).float()
    words, pooled = seen.told(chosen)
    with torch.no_grad():
        wanted = predicted(
            unets[0], noisy, times, words * kept[:, None, None], pooled * kept[:, None]
        )
    summary = encoder(seen.references(chosen)).image_embeds * kept[:, None]
    tokens = [adapter.projection(summary)[:, None]]
    hidden, pooled = (each * kept.view(-1, *[1] * (each.ndim - 1)) for each in seen.words.empty)
    found = predicted(unets[1], noisy, times, (hidden, tokens), pooled)
    return functional.mse_loss(found, wanted)


def save(encoder: CLIPVisionModelWithProjection, adapter: Adapter) -> int:
    """Write the folder in half precision; its bytes."""
    state = {name: value.half().contiguous() for name, value in encoder.state_dict().items()}
    half = CLIPVisionModelWithProjection(config())
    half.load_state_dict(state)
    half.half().save_pretrained(FOLDER / ENCODER, safe_serialization=True)
    projection: Any = adapter.projection
    tensors = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for number, pair in enumerate(adapter.pairs):
        one: Any = pair
        tensors[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = one.to_k_ip[0].weight
        tensors[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = one.to_v_ip[0].weight
    halves = {name: value.detach().half().contiguous() for name, value in tensors.items()}
    save_file(halves, FOLDER / f"{NAME}.safetensors")
    return sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())


def main(minutes: float) -> None:
    """Train, print the losses each hundred steps, save each hundred and at the end."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    parts, vae = committed()
    names = [name for name in available_names() if name not in held_out()]
    latents = encode(vae, np.stack(list(known(names)))) * vae.config["scaling_factor"]
    pictures = Pictures(names, torch.Generator().manual_seed(SEED))
    seen = Seen(pictures, latents, encoded(parts, names))
    plain = parts.unet.to(memory_format=torch.channels_last)
    copy = committed()[0].unet.to(memory_format=torch.channels_last)
    anew = not FOLDER.is_dir()
    encoder, adapter = build_encoder().train(), build(plain)
    sizes = [sum(p.numel() for p in one.parameters()) for one in (encoder, adapter)]
    print(f"{sizes[0]} + {sizes[1]} parameters, {len(latents)} pictures of {len(names)} names")
    end = time.process_time() + 60 * minutes
    if anew:
        learn_names(encoder, seen)
    else:
        torch.manual_seed(SEED + 1)
        print("going on from the folder that is there", flush=True)
    shown(copy, adapter)
    optimizer = MuonWithAdamW(*split([encoder, adapter]), lr=RATE, dtype=torch.float32)
    began, step, total, alone = time.process_time(), 0, 0.0, anew
    while (done := (time.process_time() - began) / (end - began)) < 1:
        if alone and done >= SHARE:
            print(f"step {step}: the whole UNet from here", flush=True)
            alone, total = False, 0.0
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.set_rate(RATE * rate)
        if alone:
            loss = attention_losses(encoder, adapter, plain, seen).mean()
        else:
            loss = picture_loss(encoder, adapter, (plain, copy), seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step, total = step + 1, total + loss.item()
        if step % 100 == 0:
            seconds = (time.process_time() - began) / step
            print(f"step {step} loss {total / 100:.4f}; {seconds:.3f} s/step", flush=True)
            total = 0.0
            save(encoder, adapter)
    print(f"saved after {step} steps: {save(encoder, adapter)} bytes", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
