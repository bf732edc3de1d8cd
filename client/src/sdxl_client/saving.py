"""Pictures as files. Must not know: how they came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdxl_client.models import Content


def save_files(content: Content, files: Sequence[bytes], folder: Path) -> list[Path]:
    """Write pictures into `folder`, named after the content and their seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image, data in zip(content.images, files, strict=True):
        suffix = {b"\x89PNG": ".png", b"RIFF": ".webp"}.get(data[:4], ".jpg")
        path = folder / f"{str(content.id)[:8]}-{image.seed}{suffix}"
        path.write_bytes(data)
        paths.append(path)
    return paths
