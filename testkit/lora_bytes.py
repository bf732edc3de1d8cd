"""Small LoRA files, written by hand: a JSON header and the numbers."""

from __future__ import annotations

import json
import math
import random
import struct

_MODULE = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def safetensors_bytes(
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, str] | None = None,
    seed: int | None = None,
) -> bytes:
    """A file of float32 tensors: zeros, or numbers drawn from `seed`."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = bytes(end)
    if seed is not None:
        numbers = random.Random(seed)
        body = b"".join(struct.pack("<f", numbers.gauss(0, 0.5)) for _ in range(end // 4))
    return struct.pack("<Q", len(text)) + text + body


def kohya_lora(
    rank: int = 4, *, context: int = 2048, width: int = 640, seed: int | None = None
) -> bytes:
    """A kohya LoRA on one cross-attention key; `context` 2048 is SDXL's width, 768 SD 1.5's."""
    module = _MODULE
    return safetensors_bytes(
        {
            f"{module}.lora_down.weight": (rank, context),
            f"{module}.lora_up.weight": (width, rank),
            f"{module}.alpha": (),
        },
        {"modelspec.trigger_phrase": "inkstyle"},
        seed,
    )


def sd15_lora(rank: int = 4) -> bytes:
    """A kohya LoRA on a layer that SD 1.5 has, with its widths."""
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return safetensors_bytes(
        {
            f"{module}.lora_down.weight": (rank, 768),
            f"{module}.lora_up.weight": (320, rank),
            f"{module}.alpha": (),
        }
    )
