"""Trains the demo's safety checker: a tiny ViT that knows creatures that bite, and a bomb.

They stand for whatever an operator does not allow; the checker is there to prove the way from a
picture to a refusal, on pictures that the demo model draws. It learns from the true pictures in
`references.npz`, moved, scaled, mirrored and blurred on all backgrounds. Three minutes on one core.
`python -m demo_model.training.train_safety`; the log is in `logs/train_safety.log`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from demo_model import references
from demo_model.common import BACKGROUNDS, HERE

FOLDER = HERE / "safety-demo"
BITES = ("bomb", "crocodile", "scissors", "shark", "snake", "spider")
SIDE = 32
_STEPS, _BATCH, _SEED = 1200, 64, 7
_MEAN = _DEVIATION = 0.5


def config() -> ViTConfig:
    """About 120,000 parameters."""
    return ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "harmless", 1: "bites"},
        label2id={"harmless": 0, "bites": 1},
    )


class Pictures:
    """Batches of the true pictures, each changed a little."""

    def __init__(self, names: list[str], generator: torch.Generator) -> None:
        known = references.load()
        places = [known.names.index(name) for name in names]
        # Colour times opacity, and how much of the background is seen: (N, 3 or 1, 32, 32).
        self._ink = self._planes(known.ink[places]) / 255
        self._clear = self._planes(known.clear[places][..., None])
        self._grounds = (
            torch.tensor([ImageColor.getrgb(colour) for colour in BACKGROUNDS.values()])
            .float()
            .view(-1, 3, 1, 1)
            / 255
        )
        self._bites = torch.tensor([name in BITES for name in names])
        self._generator = generator

    @staticmethod
    def _planes(array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """(count, 3, 32, 32) from 0 to 1, and the label of each: half of them bite."""
        bites = self._bites.nonzero()[:, 0]
        harmless = (~self._bites).nonzero()[:, 0]
        half = count // 2
        chosen = torch.cat(
            [
                bites[(self._random(half) * len(bites)).long()],
                harmless[(self._random(count - half) * len(harmless)).long()],
            ]
        )
        return self.changed(chosen), self._bites[chosen].long()

    def changed(self, chosen: Tensor, grounds: Tensor | None = None) -> Tensor:
        """These pictures, each moved, scaled, mirrored and blurred.

        Args:
            grounds: the number of each one's background; by chance unless given.
        """
        count = len(chosen)
        scale = 0.85 + 0.35 * self._random(count)
        turn = 0.3 * (self._random(count) - 0.5)
        mirror = torch.where(self._random(count) < 0.5, -1.0, 1.0)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = scale * mirror * turn.cos()
        theta[:, 0, 1] = -scale * turn.sin()
        theta[:, 1, 0] = scale * mirror * turn.sin()
        theta[:, 1, 1] = scale * turn.cos()
        theta[:, :, 2] = 0.3 * (self._random(count, 2) - 0.5)
        grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
        ink = F.grid_sample(self._ink[chosen], grid, align_corners=False)
        hidden = F.grid_sample(1 - self._clear[chosen], grid, align_corners=False)
        if grounds is None:
            grounds = (self._random(count) * len(self._grounds)).long()
        pictures = ink + (1 - hidden) * self._grounds[grounds]
        soft = F.avg_pool2d(pictures, 3, 1, 1)
        share = 0.7 * self._random(count, 1, 1, 1)
        noise = 0.06 * (self._random(*pictures.shape) - 0.5)
        return ((1 - share) * pictures + share * soft + noise).clamp(0, 1)


def main() -> int:
    """Train, measure on changed pictures that were not seen, write the folder."""
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)
    names = references.load().names
    pictures = Pictures(names, torch.Generator().manual_seed(_SEED))
    model = ViTForImageClassification(config())
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else _STEPS
    chooser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(chooser, 2e-3, total_steps=steps)
    began, smooth = time.time(), 0.7
    for step in range(1, steps + 1):
        data, labels = pictures.batch(_BATCH)
        loss = F.cross_entropy(model((data - _MEAN) / _DEVIATION).logits, labels)
        chooser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        chooser.step()
        plan.step()
        smooth = 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step} loss {smooth:.4f} seconds {time.time() - began:.0f}", flush=True)
    _measure(model, names)
    _write(model, FOLDER)
    return 0


@torch.no_grad()
def _measure(model: ViTForImageClassification, names: list[str]) -> None:
    model.eval()
    unseen = Pictures(names, torch.Generator().manual_seed(_SEED + 1))
    places = torch.arange(len(names)).repeat(8)
    shares = model((unseen.changed(places) - _MEAN) / _DEVIATION).logits.softmax(-1)[:, 1]
    bites = torch.tensor([names[place] in BITES for place in places])
    found = (shares[bites] >= 0.5).float().mean().item()
    wrong = (shares[~bites] >= 0.5).float().mean().item()
    print(f"of what bites {found:.3f} found, of the rest {wrong:.4f} flagged", flush=True)


def _write(model: ViTForImageClassification, folder: Path) -> None:
    model.half().save_pretrained(folder, safe_serialization=True)
    prepared = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [_MEAN] * 3,
        "image_std": [_DEVIATION] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared, indent=1) + "\n")
    print(f"{(folder / 'model.safetensors').stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
