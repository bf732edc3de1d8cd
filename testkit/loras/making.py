"""Small SDXL-shaped models, and LoRA files of every kind for them, made from seeds.

Shapes here come from the algorithms' papers and from what trainers write, not from the code under
test: the two must agree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdxl_worker.lora import LoraPatcher, ModelTargets, lora_targets

Tensors = dict[str, Tensor]
TE1_WIDTH, TE2_WIDTH = 32, 48


@dataclass
class TinyModel:
    """UNet and text encoders laid out like SDXL's, with random weights."""

    # Any: diffusers' and transformers' classes are only half typed.
    unet: Any
    text_encoder: Any
    text_encoder_2: Any

    def targets(self) -> ModelTargets:
        return lora_targets(self.unet, self.text_encoder, self.text_encoder_2)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full module name → weight shape."""
        return self.targets().shapes

    def roots(self) -> dict[str, nn.Module]:
        return {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }


def tiny_model(
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    *,
    widths: tuple[int, int, int] = (32, 64, 64),
    depths: tuple[int, int, int] = (1, 2, 3),
) -> TinyModel:
    """SDXL's blocks and layer counts, with small `widths` and `depths` of its levels."""
    torch.manual_seed(seed)
    unet: Any = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depths,
        attention_head_dim=tuple(width // 16 for width in widths),
        cross_attention_dim=TE1_WIDTH + TE2_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TE2_WIDTH + 6 * 8,
    )
    model = TinyModel(
        unet,
        CLIPTextModel(_text_config(TE1_WIDTH)),
        CLIPTextModelWithProjection(_text_config(TE2_WIDTH)),
    )
    for module in model.roots().values():
        module.to(dtype).eval().requires_grad_(False)
    return model


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=1,
        eos_token_id=2,
    )


def model_hashes(model: TinyModel) -> dict[str, str]:
    """Every parameter and buffer: a hash of its bytes and all that identifies it in memory."""
    found = {}
    for root, module in model.roots().items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found[f"{root}.{name}"] = (
                f"{hashlib.sha256(raw).hexdigest()} {id(tensor)} {tensor.data_ptr()} "
                f"{tuple(tensor.stride())} {tensor.dtype} {tensor.requires_grad}"
            )
        for name, child in module.named_modules():
            hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks)
            found[f"{root}.{name} module"] = f"{type(child)} {id(child)} {list(map(len, hooks))}"
    return found


def save(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """A .safetensors file's bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(contiguous, metadata)
    return data


class Randomness:
    """Seeded tensors of one dtype."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float16) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def normal(self, *shape: int, size: float = 0.1) -> Tensor:
        return (torch.randn(*shape, generator=self._generator) * size).to(self._dtype)

    def below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self._generator))

    def chosen(self, names: Iterable[str], share: float) -> list[str]:
        pool = list(names)
        keep = torch.rand(len(pool), generator=self._generator) < share
        return [name for name, kept in zip(pool, keep.tolist(), strict=True) if kept] or pool[:1]


Shape = tuple[int, ...]
Maker = Callable[[Randomness, Shape, int], Tensors]


def _kernel(shape: Shape) -> tuple[int, int, Shape]:
    return shape[0], shape[1], shape[2:]


def make_lora(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    out, inner, kernel = _kernel(shape)
    return {
        "lora_down.weight": rnd.normal(rank, inner, *kernel),
        "lora_up.weight": rnd.normal(out, rank, *(1 for _ in kernel)),
    }


def make_tucker(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    out, inner, kernel = _kernel(shape)
    if not kernel or set(kernel) == {1}:
        return make_lora(rnd, shape, rank)
    return {
        "lora_down.weight": rnd.normal(rank, inner, 1, 1),
        "lora_up.weight": rnd.normal(out, rank, 1, 1),
        "lora_mid.weight": rnd.normal(rank, rank, *kernel),
    }


def make_loha(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    out, inner, kernel = _kernel(shape)
    return {
        "hada_w1_a": rnd.normal(out, rank),
        "hada_w1_b": rnd.normal(rank, inner * math.prod(kernel)),
        "hada_w2_a": rnd.normal(out, rank),
        "hada_w2_b": rnd.normal(rank, inner * math.prod(kernel)),
    }


def make_loha_tucker(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    out, inner, kernel = _kernel(shape)
    if not kernel or set(kernel) == {1}:
        return make_loha(rnd, shape, rank)
    made = {}
    for half in ("1", "2"):
        made[f"hada_t{half}"] = rnd.normal(rank, rank, *kernel)
        made[f"hada_w{half}_a"] = rnd.normal(rank, out)
        made[f"hada_w{half}_b"] = rnd.normal(rank, inner)
    return made


def _split(side: int) -> int:
    """The largest divisor of `side` that is not above its root."""
    return max(d for d in range(1, math.isqrt(side) + 1) if side % d == 0)


def make_lokr(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    """w1 whole, w2 as a pair."""
    out, inner, kernel = _kernel(shape)
    a, b = _split(out), _split(inner)
    return {
        "lokr_w1": rnd.normal(a, b),
        "lokr_w2_a": rnd.normal(out // a, rank),
        "lokr_w2_b": rnd.normal(rank, inner // b * math.prod(kernel)),
    }


def make_lokr_full(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    out, inner, kernel = _kernel(shape)
    a, b = _split(out), _split(inner)
    return {
        "lokr_w1": rnd.normal(a, b),
        "lokr_w2": rnd.normal(out // a, inner // b, *kernel),
    }


def make_lokr_tucker(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    """Both factors as pairs, w2 of a convolution in Tucker form."""
    out, inner, kernel = _kernel(shape)
    a, b = _split(out), _split(inner)
    if not kernel or set(kernel) == {1}:
        w2 = {
            "lokr_w2_a": rnd.normal(out // a, rank),
            "lokr_w2_b": rnd.normal(rank, inner // b * math.prod(kernel)),
        }
    else:
        w2 = {
            "lokr_t2": rnd.normal(rank, rank, *kernel),
            "lokr_w2_a": rnd.normal(rank, out // a),
            "lokr_w2_b": rnd.normal(rank, inner // b),
        }
    return {"lokr_w1_a": rnd.normal(a, rank), "lokr_w1_b": rnd.normal(rank, b)} | w2


def make_full(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
    return {"diff": rnd.normal(*shape, size=0.01)}


def _with_dora(maker: Maker, axis: int) -> Maker:
    def make(rnd: Randomness, shape: Shape, rank: int) -> Tensors:
        ones = [1] * len(shape)
        ones[axis] = shape[axis]
        return maker(rnd, shape, rank) | {"dora_scale": rnd.normal(*ones).abs() + 0.5}

    return make


# Every algorithm, by the name the reports give it.
MAKERS: dict[str, Maker] = {
    "lora": make_lora,
    "tucker": make_tucker,
    "loha": make_loha,
    "loha-tucker": make_loha_tucker,
    "lokr": make_lokr,
    "lokr-full": make_lokr_full,
    "lokr-tucker": make_lokr_tucker,
    "full": make_full,
    "dora-out": _with_dora(make_lora, 0),
    "dora-in": _with_dora(make_lora, 1),
    "loha-dora-out": _with_dora(make_loha, 0),
    "loha-dora-in": _with_dora(make_loha, 1),
    "lokr-dora-in": _with_dora(make_lokr, 1),
}


def kohya_stem(module: str) -> str:
    """`unet.a.b` → `lora_unet_a_b`, and the text encoders' prefixes."""
    root, _, rest = module.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    return prefix[root] + rest.replace(".", "_")


def changeable(model: TinyModel) -> dict[str, Shape]:
    """Linear and convolution modules → weight shape."""
    return {name: shape for name, shape in model.shapes.items() if len(shape) > 1}


def norms(model: TinyModel) -> dict[str, Shape]:
    """Norm modules → weight shape."""
    return {name: shape for name, shape in model.shapes.items() if len(shape) == 1}


def lora_file(
    model: TinyModel,
    algorithm: str,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float | None = 2.0,
    dtype: torch.dtype = torch.float16,
    share: float = 0.3,
    modules: Iterable[str] | None = None,
) -> Tensors:
    """A kohya-spelled file that changes `modules`, or a seeded share of all."""
    rnd = Randomness(seed, dtype)
    shapes = changeable(model)
    tensors: Tensors = {}
    for name in rnd.chosen(shapes, share) if modules is None else modules:
        shape = shapes[name]
        fitting = min(rank, shape[0], math.prod(shape[1:]))
        stem = kohya_stem(name)
        for part, tensor in MAKERS[algorithm](rnd, shape, fitting).items():
            tensors[f"{stem}.{part}"] = tensor
        if alpha is not None and algorithm != "full":
            tensors[f"{stem}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


class Rig:
    """A model, its patcher, and the hashes that it must have between tests."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.model = tiny_model(dtype)
        self.targets = self.model.targets()
        self.patcher = LoraPatcher(self.targets)
        self.hashes = model_hashes(self.model)

    def is_pristine(self) -> bool:
        """Whether every parameter and buffer is as it was made, in value and in memory."""
        return model_hashes(self.model) == self.hashes
