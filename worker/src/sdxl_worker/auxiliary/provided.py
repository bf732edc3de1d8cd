"""What lies in the operator's folders.

Duty: a folder → items for the shelf. Only safetensors are opened, so no file can run code; what
cannot be used is logged with the reason and left out.
Must not know: requests, how a network is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import structlog
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sdxl_contract.drawing.hires import BUILT_IN
from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.limits import NAME_MAX_CHARS, UpscalerInfo
from sdxl_worker.auxiliary.shelf import Item, sha256_of, stamp_of
from sdxl_worker.auxiliary.upscaler_networks import NotAnUpscaler, build_upscaler

log = structlog.get_logger()
UPSCALER = "upscaler"
_UPSCALER_MAX_BYTES = 512 * 2**20
_NAME = re.compile(rf"[\w+-][\w+ .-]{{0,{NAME_MAX_CHARS - 1}}}", re.ASCII)


def find_upscalers(folder: Path | None) -> list[Item]:
    """The upscalers of a folder, named by their files.

    Raises:
        ModelLoadFailed: it is no folder.
    """
    found = []
    for path in _entries(folder, "UPSCALERS_DIR"):
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            found.append(_upscaler(path))
        except (NotAnUpscaler, SafetensorError, OSError) as error:
            log.warning("upscaler_left_out", file=path.name, reason=str(error)[:300])
    return found


def _entries(folder: Path | None, setting: str) -> Iterator[Path]:
    if folder is None:
        return
    if not folder.is_dir():
        raise ModelLoadFailed(f"{setting} is no folder")
    yield from sorted(folder.iterdir())


def _upscaler(path: Path) -> Item:
    name, stamp = path.stem, stamp_of(path)
    if not _NAME.fullmatch(name) or name in BUILT_IN:
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
