"""The algorithms' formulas a second time, element by element in float64: what is right."""

from __future__ import annotations

import torch
from torch import Tensor

from testkit.loras.making import Tensors

# Bits of mantissa, the hidden one included, and the exponent of the smallest subnormal number.
MANTISSA = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
SMALLEST = {torch.bfloat16: -133, torch.float16: -24, torch.float32: -149}


def ulps(found: Tensor, exact: Tensor, floor: Tensor) -> float:
    """Largest error in units of the last place of the exact result.

    Where W0 and the change cancel each other to less than a thousandth of themselves, the
    unit is that of `floor`: no sum in float32 can be relatively exact there. Below the smallest
    normal number units shrink no further.
    """
    # Not 0, which has no exponent of its own.
    size = torch.maximum(exact.abs(), floor * 1e-3).clamp_min(2.0 ** SMALLEST[found.dtype])
    exponent = torch.frexp(size)[1] - MANTISSA[found.dtype]
    unit = torch.ldexp(torch.ones_like(exact), exponent.clamp_min(SMALLEST[found.dtype]))
    return float(((found.double() - exact).abs() / unit).max())


def exact_change(parts: Tensors, weight: Tensor) -> Tensor:
    """ΔW in float64 at strength 1, element formulas spelled out; `weight` is W0."""
    p = {name: tensor.double() for name, tensor in parts.items()}
    w0 = weight.double()
    out, inner = weight.shape[:2]
    kernel = weight.shape[2:]
    rank = 0
    delta: Tensor
    if "lora_mid.weight" in p:
        up, down = p["lora_up.weight"].flatten(1), p["lora_down.weight"].flatten(1)
        rank = down.shape[0]
        terms = [
            p["lora_mid.weight"][m, n][None, None] * torch.outer(up[:, m], down[n])[..., None, None]
            for m in range(rank)
            for n in range(rank)
        ]
        delta = torch.stack(terms).sum(0)
    elif "lora_down.weight" in p:
        rank = p["lora_down.weight"].shape[0]
        delta = (p["lora_up.weight"].flatten(1) @ p["lora_down.weight"].flatten(1)).reshape(
            w0.shape
        )
    elif "hada_w1_a" in p:
        rank = p["hada_w1_b"].shape[0]
        halves = []
        for half in "12":
            a, b = p[f"hada_w{half}_a"], p[f"hada_w{half}_b"]
            if f"hada_t{half}" in p:
                core = p[f"hada_t{half}"].permute(2, 3, 0, 1)
                halves.append((a.T @ core @ b).permute(2, 3, 0, 1))
            else:
                halves.append((a @ b).reshape(w0.shape))
        delta = halves[0] * halves[1]
    elif "lokr_w1" in p or "lokr_w1_a" in p:
        w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        rank = p["lokr_w1_b"].shape[0] if "lokr_w1_b" in p else 0
        rows, columns = out // w1.shape[0], inner // w1.shape[1]
        if "lokr_w2" in p:
            w2 = p["lokr_w2"]
        elif "lokr_t2" in p:
            rank = p["lokr_w2_b"].shape[0]
            core = p["lokr_t2"].permute(2, 3, 0, 1)
            w2 = (p["lokr_w2_a"].T @ core @ p["lokr_w2_b"]).permute(2, 3, 0, 1)
        else:
            rank = p["lokr_w2_b"].shape[0]
            w2 = p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
        w2 = w2.reshape(rows, columns, *kernel)
        delta = torch.empty(w0.shape, dtype=torch.float64)
        for i in range(w1.shape[0]):
            for j in range(w1.shape[1]):
                delta[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = w1[i, j] * w2
    else:
        delta = p["diff"]
    if rank and "alpha" in p:
        delta = delta * (float(p["alpha"]) / rank)
    if "dora_scale" in p:
        changed = w0 + delta
        dims = [d for d in range(w0.dim()) if p["dora_scale"].shape[d] == 1]
        delta = p["dora_scale"] * changed / changed.pow(2).sum(dims, keepdim=True).sqrt() - w0
    return delta
