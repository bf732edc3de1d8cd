"""Safetensors files written by hand, so that tests control every byte; small LoRAs in them."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from typing import Any

Shape = tuple[int, ...]
Spec = Mapping[str, tuple[str, Shape]]  # name → (dtype as the format spells it, shape)
SIZES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1,
         "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1}  # fmt: skip

_MODULE = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def raw(header: bytes, data: bytes = b"") -> bytes:
    """A file with this header text, right or wrong."""
    return struct.pack("<Q", len(header)) + header + data


def build(spec: Spec, metadata: Any = None, data: bytes | None = None) -> bytes:
    """A well-formed file of these tensors, all zeros unless `data` is given."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in spec.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return raw(text, bytes(end) if data is None else data)


def safetensors_bytes(
    shapes: Mapping[str, Shape],
    metadata: dict[str, str] | None = None,
    seed: int | None = None,
) -> bytes:
    """A file of float32 tensors: zeros, or numbers drawn from `seed`."""
    data = None
    if seed is not None:
        numbers = random.Random(seed)
        count = sum(math.prod(shape) for shape in shapes.values())
        data = struct.pack(f"<{count}f", *(numbers.gauss(0, 0.5) for _ in range(count)))
    return build({name: ("F32", shape) for name, shape in shapes.items()}, metadata, data)


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
