"""Small LoRA files, written by hand: a JSON header and zeros."""

from __future__ import annotations

import json
import math
import struct

_MODULE = "lora_unet_input_blocks_4_1_transformer_blocks_{block}_{layer}"


def safetensors_bytes(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> bytes:
    """A file of float32 zeros with these tensors."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(end)


def kohya_lora(
    rank: int = 4, *, context: int = 2048, width: int = 640, block: int = 0, note: str = "a"
) -> bytes:
    """A kohya LoRA on one cross-attention key; `context` 2048 is SDXL's width, 768 SD 1.5's."""
    module = _MODULE.format(block=block, layer="attn2_to_k")
    return safetensors_bytes(
        {
            f"{module}.lora_down.weight": (rank, context),
            f"{module}.lora_up.weight": (width, rank),
            f"{module}.alpha": (),
        },
        {"ss_output_name": note, "modelspec.trigger_phrase": "inkstyle"},
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
