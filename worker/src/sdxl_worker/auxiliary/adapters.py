"""IP-Adapters: what lies in the operator's folder, as one network each.

Duty: a folder → items for the shelf: an image encoder and the adapters that look through it. Only
safetensors are opened; what cannot be used is logged with the reason and left out.
Must not know: requests, how an adapter is attached.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sdxl_contract.limits import AdapterInfo, AdapterKind
from sdxl_worker.auxiliary.provided import NAME, entries
from sdxl_worker.auxiliary.shelf import Item, sha256_of, stamp_of

log = structlog.get_logger()
ADAPTER, ENCODER = "adapter", "image_encoder"
_ENCODER_WEIGHTS = "model.safetensors"
_BASE = {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}


class Adapter(nn.Module):
    """One adapter.

    Attributes:
        projection: the encoder's view of a picture → tokens beside the words'.
        names: of the cross-attentions, in the order of `pairs`.
        pairs: diffusers' processors, which hold a key's and a value's weights each.
        is_plus: it looks at the encoder's last hidden state but one instead of its summary.
    """

    def __init__(
        self, projection: nn.Module, pairs: Mapping[str, nn.Module], *, is_plus: bool
    ) -> None:
        super().__init__()
        self.projection = projection
        self.names = list(pairs)
        self.pairs = nn.ModuleList(pairs.values())
        self.is_plus = is_plus


def build_adapter(tensors: Mapping[str, Tensor], unet: Any) -> Adapter:
    """An adapter for `unet` of a file's tensors; where these are on `meta`, so is it.

    Raises:
        ValueError, KeyError, RuntimeError: they are none, or another UNet's.
    """
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    projecting = parts["image_proj"]
    is_plus = "latents" in projecting
    if not is_plus and projecting.keys() != _BASE:
        raise ValueError("it is neither an IP-Adapter nor an IP-Adapter Plus")
    count = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    wanted = {
        f"{2 * number + 1}.to_{side}_ip.weight" for number in range(count) for side in ("k", "v")
    }
    if parts["ip_adapter"].keys() != wanted:
        raise ValueError("its attentions are not those of this model's UNet")
    found = unet._convert_ip_adapter_attn_to_diffusers([parts], low_cpu_mem_usage=False)
    projection = unet._convert_ip_adapter_image_proj_to_diffusers(
        projecting, low_cpu_mem_usage=False
    )
    pairs = {name: one for name, one in found.items() if isinstance(one, nn.Module)}
    return Adapter(projection, pairs, is_plus=is_plus)


def find_adapters(folder: Path | None, unet: Any) -> list[Item]:
    """The image encoder of a folder, and the adapters that fit both it and `unet`.

    Raises:
        ModelLoadFailed: it is no folder.
    """
    paths = [path for path in entries(folder, "ADAPTERS_DIR") if path.suffix == ".safetensors"]
    if folder is None or not paths:
        return []
    try:
        found = [_encoder(folder / ENCODER, unet.dtype)]
    except Exception as error:
        log.warning("adapters_left_out", reason=f"no image encoder: {error!s}"[:300])
        return []
    for path in paths:
        try:
            found.append(_adapter(path, unet, found[0]))
        # diffusers raises what it likes on tensors that are none of its.
        except Exception as error:
            log.warning("adapter_left_out", file=path.name, reason=str(error)[:300])
    return found if len(found) > 1 else []


def _encoder(folder: Path, dtype: torch.dtype) -> Item:
    # Imported late: it takes seconds, which a start has better uses for.
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    weights = folder / _ENCODER_WEIGHTS

    def load() -> nn.Module:
        return cast(
            "nn.Module",
            CLIPVisionModelWithProjection.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=dtype
            ),
        )

    return Item(
        ENCODER, ENCODER, weights, sha256_of(weights), stamp_of(weights), load, config, _settle
    )  # fmt: skip


@torch.no_grad()
def _settle(encoder: Any) -> None:
    """transformers hangs hooks on a network when it is first asked for hidden states."""
    side = encoder.config.image_size
    nothing = torch.zeros(1, 3, side, side, dtype=encoder.dtype, device=encoder.device)
    encoder(nothing, output_hidden_states=True)


def _adapter(path: Path, unet: Any, encoder: Item) -> Item:
    if not NAME.fullmatch(path.stem):
        raise ValueError("its name has other signs than letters, digits, blanks and ._+-")
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        built = build_adapter({k: torch.empty(shape) for k, shape in shapes.items()}, unet)
    sees = encoder.about.hidden_size if built.is_plus else encoder.about.projection_dim
    takes = shapes["image_proj.proj_in.weight" if built.is_plus else "image_proj.proj.weight"][1]
    if sees != takes:
        raise ValueError(f"it looks through an encoder of width {takes}, not {sees}")
    dtype = unet.dtype

    def load() -> nn.Module:
        return build_adapter(load_file(path), unet).to(dtype)

    stamp = stamp_of(path)
    about = AdapterInfo(
        name=path.stem,
        sha256=sha256_of(path),
        kind=AdapterKind.PLUS if built.is_plus else AdapterKind.BASE,
        encoder_sha256=encoder.sha256,
        bytes=stamp[0],
    )
    return Item(ADAPTER, path.stem, path, about.sha256, stamp, load, about)
