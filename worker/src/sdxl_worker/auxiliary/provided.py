"""What lies in the operator's folders.

Duty: a folder → items for the shelf. Only safetensors are opened, so no file can run code; what
cannot be used is logged with the reason and left out.
Must not know: requests, how a network is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from sdxl_contract.drawing.hires import BUILT_IN
from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.limits import NAME_MAX_CHARS, ControlInfo, ControlKind, UpscalerInfo
from sdxl_worker.auxiliary.shelf import Item, sha256_of, stamp_of
from sdxl_worker.auxiliary.upscaler_networks import NotAnUpscaler, build_upscaler

log = structlog.get_logger()
UPSCALER, CONTROL = "upscaler", "control"
_CLASSES = {
    ControlKind.CONTROLNET: "ControlNetModel",
    ControlKind.CONTROLNET_UNION: "ControlNetUnionModel",
    ControlKind.T2I_ADAPTER: "T2IAdapter",
}
# Of T2I-Adapters, those with SDXL's levels.
_ADAPTER_TYPE, _ADAPTER_SHRINKS = "full_adapter_xl", 16
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)
# Of ControlNet-Union, in its order; the last two of its ProMax.
_TYPES = ("openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "repaint")
_UPSCALER_MAX_BYTES = 512 * 2**20
NAME = re.compile(rf"[\w+-][\w+ .-]{{0,{NAME_MAX_CHARS - 1}}}", re.ASCII)


def find_upscalers(folder: Path | None) -> list[Item]:
    """The upscalers of a folder, named by their files.

    Raises:
        ModelLoadFailed: it is no folder.
    """
    found = []
    for path in entries(folder, "UPSCALERS_DIR"):
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            found.append(_upscaler(path))
        except (NotAnUpscaler, SafetensorError, OSError) as error:
            log.warning("upscaler_left_out", file=path.name, reason=str(error)[:300])
    return found


def find_controls(folder: Path | None, unet: Any) -> list[Item]:
    """The control networks of a folder, each a folder as diffusers saves it, by its name.

    Args:
        unet: what they are to hold: one made for another is left out.

    Raises:
        ModelLoadFailed: it is no folder.
    """
    found = []
    for path in entries(folder, "CONTROLS_DIR"):
        if not (path / "config.json").is_file():
            continue
        try:
            found.append(_control(path, unet))
        # diffusers' classes raise what they like on a configuration that is none of theirs.
        except Exception as error:
            log.warning("control_left_out", folder=path.name, reason=str(error)[:300])
    return found


def _control(folder: Path, unet: Any) -> Item:
    # Imported late: it takes seconds, which a start has better uses for.
    import diffusers

    config = json.loads((folder / "config.json").read_text())
    kind = ControlKind.CONTROLNET
    if "num_control_type" in config:
        kind = ControlKind.CONTROLNET_UNION
    elif config["_class_name"] == _CLASSES[ControlKind.T2I_ADAPTER]:
        kind = ControlKind.T2I_ADAPTER
    elif config["_class_name"] != _CLASSES[kind]:
        raise ValueError(
            f"{config['_class_name']!r} is neither a ControlNet nor a T2I-Adapter: nothing else is "
            "taken"
        )
    cls: Any = getattr(diffusers, _CLASSES[kind])
    weights = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    if not NAME.fullmatch(folder.name):
        raise ValueError("its name has other signs than letters, digits, blanks and ._+-")
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in cls.from_config(config).state_dict().items()}
    with safe_open(weights, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if shapes != wanted:
        raise ValueError("its weights are not those of its configuration")
    if not _fits(kind, config, unet.config):
        raise ValueError("it was made for another UNet")
    dtype = unet.dtype

    def load() -> nn.Module:
        network = cls.from_config(config)
        network.load_state_dict(load_file(weights))
        return cast("nn.Module", network.to(dtype))

    stamp = stamp_of(weights)
    types = _TYPES[: config["num_control_type"]] if kind is ControlKind.CONTROLNET_UNION else ()
    about = ControlInfo(
        name=folder.name, sha256=sha256_of(weights), kind=kind, types=types, bytes=stamp[0]
    )
    return Item(CONTROL, folder.name, weights, about.sha256, stamp, load, about)


def _fits(kind: ControlKind, config: dict[str, Any], unet: Any) -> bool:
    """Whether what a network of this configuration gives has the UNet's shapes."""
    blocks = list(unet.block_out_channels)
    if kind is not ControlKind.T2I_ADAPTER:
        return (
            config["cross_attention_dim"] == unet.cross_attention_dim
            and list(config["block_out_channels"]) == blocks
        )
    # One map for each level of the UNet, and one for its middle; it begins at half the latents.
    return (
        config["adapter_type"] == _ADAPTER_TYPE
        and list(config["channels"]) == [*blocks, blocks[-1]]
        and config["downscale_factor"] == _ADAPTER_SHRINKS
        and config["in_channels"] in (1, 3)
    )


def entries(folder: Path | None, setting: str) -> Iterator[Path]:
    """What lies in the folder that a setting names, if it names one.

    Raises:
        ModelLoadFailed: it is no folder.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise ModelLoadFailed(f"{setting} is no folder")
    yield from sorted(folder.iterdir())


def _upscaler(path: Path) -> Item:
    name, stamp = path.stem, stamp_of(path)
    if not NAME.fullmatch(name) or name in BUILT_IN:
        raise NotAnUpscaler("its name has other signs than letters, digits, blanks and ._+-")
    if stamp[0] > _UPSCALER_MAX_BYTES:
        raise NotAnUpscaler(f"it has more than {_UPSCALER_MAX_BYTES} bytes")

    def load() -> nn.Module:
        return build_upscaler(load_file(path))[1]

    architecture, network = build_upscaler(load_file(path))
    about = UpscalerInfo(
        name=name,
        sha256=sha256_of(path),
        architecture=architecture,
        scale=network.scale,
        bytes=stamp[0],
    )
    return Item(UPSCALER, name, path, about.sha256, stamp, load, about)
