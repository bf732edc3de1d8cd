"""Marks what leaves the backend: each picture and thumbnail of a content, with its receipt.

Duty: a content, the worker's result and a picture → the file with its watermark, then signed. Which
key signs is decided once, at start. Must not know: storage, HTTP.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.models import Content, Image
from app.services.contents.dispatch import parameters_used
from app.services.contents.resolve import asked_of
from app.services.marking.keys import (
    Identity,
    UnusableKey,
    development_identity,
    operators_identity,
)
from app.services.marking.marker import Facts, Marker, MarkingFailed, Source
from app.services.marking.watermark.files import NoPicture, write_mark
from app.services.marking.watermark.methods import METHODS, Mark
from sdxl_contract.request import Scheduler
from sdxl_contract.result import GenerateResult

log = logging.getLogger(__name__)


class Marking:
    """Signs, or leaves pictures as they are where the operator has turned it off."""

    def __init__(self, marker: Marker | None, roots: str) -> None:
        self._marker = marker
        self.roots = roots  # PEM of what verification calls trusted

    @classmethod
    def from_settings(cls, settings: Settings, version: str) -> Marking:
        """What the settings ask for.

        Raises:
            UnusableKey: a file cannot be used; the message names it.
        """
        roots = ""
        if settings.marking_trust_file is not None:
            try:
                roots = settings.marking_trust_file.read_text()
            except OSError as error:
                raise UnusableKey(f"MARKING_TRUST_FILE cannot be read: {error.strerror}") from error
        if settings.marking == "off":
            log.warning(
                "MARKING=off: pictures carry no signed manifest. Where the law asks for a mark "
                "that machines can read (EU 2024/1689, article 50), add one elsewhere"
            )
            return cls(None, roots)
        identity = _identity(settings)
        if identity.is_development:
            log.warning(
                "pictures are signed with a development certificate that only this installation "
                "trusts: set MARKING_CERTIFICATE_FILE for one that others do"
            )
        return cls(
            Marker(identity, version), "\n".join(part for part in (identity.root, roots) if part)
        )

    @property
    def signs(self) -> bool:
        """Whether it signs at all."""
        return self._marker is not None

    async def watermarked(self, content: Content, file: bytes) -> tuple[bytes, str | None]:
        """A drawn picture's file with the content's watermark, if it is to have one, and which.

        Raises:
            MarkingFailed: the file cannot be opened, or the watermark is of another version.
        """
        if content.watermark is None:
            return file, None
        try:
            mark = Mark.parse(content.watermark)
            marked, written = await in_pool(Duty.IMAGES, write_mark, file, mark)
        except (NoPicture, ValueError) as error:
            raise MarkingFailed(f"the watermark could not be written: {error}") from error
        return marked, None if written is None else str(written)

    async def picture(
        self,
        content: Content,
        result: GenerateResult,
        source: Source | None,
        image: Image,
        data: bytes,
        is_small: bool = False,
    ) -> bytes:
        """`data`, the file of `image`, or of its small copy, signed.

        Args:
            source: what it was drawn from; a small copy names it and does not keep its manifest.

        Raises:
            MarkingFailed: it could not be signed.
        """
        if self._marker is None:
            return data
        media_type = _sniffed(data)
        facts = Facts(
            unsigned_sha256=image.sha256,
            receipt=receipt(content, result, image),
            when=image.created_at.isoformat().replace("+00:00", "Z"),
            software={"base_model": result.model_info.base_model},
            action="c2pa.resized" if content.parameters.get("upscale") else "c2pa.edited",
            watermark=image.watermark,
        )
        if source is not None and is_small:
            source = replace(source, file=None)
        return await in_pool(Duty.IMAGES, self._marker.mark, data, media_type, facts, source)

    def sign_copy(self, original: bytes, copy: bytes) -> bytes:
        """`copy`, made for a caller of a stored picture's file, signed as that is; in a thread.

        Raises:
            MarkingFailed: it could not be signed.
        """
        if self._marker is None:
            return copy
        return self._marker.mark_copy(original, _sniffed(original), copy, _sniffed(copy))


def receipt(content: Content, result: GenerateResult, image: Image) -> dict[str, Any]:
    """All that is needed to draw the picture again: no names of people, keys or addresses."""
    return {
        "content_id": str(content.id),
        "image": image.position,
        "seed": image.seed,
        "prompt": content.prompt,
        "negative_prompt": content.negative_prompt,
        "parameters": parameters_used(content, result),
        # As it was asked for: the parameters have the name of the class that the model chose.
        "scheduler": asked_of(content).get("scheduler", Scheduler.DEFAULT.value),
        "base_model": result.model_info.base_model,
        "weights": result.model_info.weights,
        "loras": [
            {"name": lora["name"], "sha256": lora["sha256"], "scale": lora["scale"]}
            for lora in content.loras
        ],
        "watermark": image.watermark,
    }


def watermark_of(settings: Settings) -> str | None:
    """What new contents' pictures get, as a content keeps it; None: nothing."""
    return None if settings.watermark == "off" else METHODS[settings.watermark].name


def _identity(settings: Settings) -> Identity:
    if settings.marking_certificate_file is None:
        return development_identity(settings.data_dir / "marking")
    return operators_identity(
        settings.marking_certificate_file,
        settings.marking_key_file,
        settings.marking_sign_command,
    )


def _sniffed(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"
