"""Draws a picture again from its own receipt, and holds the two against each other.

Duty: a receipt and the owner's own files by their hashes → a content in the queue; later, the
file that was drawn against the one that was sent.
Must not know: HTTP, who signed.
"""

from __future__ import annotations

import uuid
from typing import Any

from app.core.db import Database
from app.core.errors import Conflict
from app.models import Content, LoraModel, Status
from app.repositories.inputs.embeddings import EmbeddingRepository
from app.repositories.inputs.images import InputRepository
from app.repositories.loras import LoraRepository
from app.repositories.upkeep.takedowns import TakedownRepository
from app.services.contents.accepting import ContentService
from app.services.limits import Allowance
from app.services.marking.receipts import (
    Receipt,
    as_asked,
    embeddings_of,
    pictures_of,
    receipt_of,
)
from app.services.marking.verifying import compare
from app.services.storage import Storage
from app.services.worker.base_model import BaseModel as LoadedModel
from sdxl_contract.errors import ContentRefused
from sdxl_contract.result import Health

_MOST_CARRIERS = 20


class ReplayService:
    """Pictures from receipts."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        contents: ContentService,
        base_model: LoadedModel,
    ) -> None:
        self._database = database
        self._storage = storage
        self._contents = contents
        self._base_model = base_model

    async def draw(self, owner: str, report: dict[str, Any], allowance: Allowance) -> Content:
        """Put the picture that a verified file's receipt describes in the queue.

        Raises:
            InvalidRequest: the file has no receipt to draw from.
            Conflict: a LoRA is missing, or the worker has another model.
            ContentRefused: it was taken down, or asks for what is not allowed.
            RateLimited, BudgetExhausted: `allowance` is used up.
        """
        receipt = receipt_of(report)
        await self._check_takedowns(receipt)
        self._check_model(receipt)
        loras = await self._find_loras(owner, receipt)
        pictures = await self._find_pictures(owner, receipt)
        asked = as_asked(receipt, loras, pictures, await self._find_embeddings(owner, receipt))
        names = {str(loras[lora.sha256].id): lora.name for lora in receipt.loras}
        # Who signs a receipt of their own might else have pictures drawn without a watermark.
        is_ours = not report["manifest"]["signed_by_a_stranger"]

        def as_it_was(content: Content) -> None:
            for lora in content.loras:
                lora["name"] = names.get(lora["lora_model_id"], lora["name"])
            if is_ours:
                content.watermark = receipt.watermark

        accepted = await self._contents.accept(owner, asked, None, allowance, adjust=as_it_was)
        return accepted.content

    async def carriers(self, mark: str, owner: str | None) -> dict[str, Any]:
        """Which pictures have this watermark; see `app.schemas.marking.WatermarkOut`."""
        async with self._database.session() as session:
            found = await TakedownRepository(session).carriers(mark, _MOST_CARRIERS)
        own = (content_id for content_id, whose in found if whose == owner)
        method, _, payload = mark.partition(":")
        return {
            "method": method,
            "payload": payload,
            "is_known": bool(found),
            "contents": list(dict.fromkeys(own)),
        }

    async def _check_takedowns(self, receipt: Receipt) -> None:
        async with self._database.session() as session:
            is_down = await TakedownRepository(session).names_picture(
                receipt.unsigned_sha256, receipt.content_id
            )
        if is_down:
            raise ContentRefused(
                "file: this picture was taken down and is not drawn again",
                details={"field": "file", "reason": "taken_down"},
            )

    def _check_model(self, receipt: Receipt) -> None:
        known = self._base_model.known
        if known is None:
            return
        # By its weights where both sides say which; earlier versions have only the name.
        if receipt.weights is not None and known.weights is not None:
            if receipt.weights == known.weights:
                return
        elif known.base_model in (None, receipt.base_model):
            return
        raise Conflict(
            f"This picture was drawn with the base model {_named(receipt)}; the worker has "
            f"{_named(known)}, which would draw another one.",
            field="file",
            details={
                "reason": "other_model",
                "base_model": receipt.base_model,
                "weights": receipt.weights,
                "loaded": known.base_model,
                "loaded_weights": known.weights,
            },
        )

    async def _find_loras(self, owner: str, receipt: Receipt) -> dict[str, LoraModel]:
        if not receipt.loras:
            return {}
        async with self._database.session() as session:
            found = await LoraRepository(session, owner).by_hashes(
                lora.sha256 for lora in receipt.loras
            )
        missing = [lora for lora in receipt.loras if lora.sha256 not in found]
        if missing:
            names = ", ".join(f"{lora.name!r} (SHA-256 {lora.sha256})" for lora in missing)
            raise Conflict(
                f"Your library lacks what this picture was drawn with: {names}.",
                field="file",
                details={
                    "reason": "loras_missing",
                    "missing": [{"name": one.name, "sha256": one.sha256} for one in missing],
                },
            )
        return found

    async def _find_embeddings(self, owner: str, receipt: Receipt) -> dict[str, uuid.UUID]:
        """Ids of the owner's embeddings that it was drawn with, by hash."""
        wanted = embeddings_of(receipt)
        if not wanted:
            return {}
        async with self._database.session() as session:
            usable = await EmbeddingRepository(session, owner).usable()
        found = {one.sha256: one.id for one in usable}
        missing = [one for one in wanted if one.sha256 not in found]
        if missing:
            names = ", ".join(f"{one.token!r} (SHA-256 {one.sha256})" for one in missing)
            raise Conflict(
                f"Your library lacks embeddings that this picture was drawn with: {names}.",
                field="file",
                details={
                    "reason": "embeddings_missing",
                    "missing": [{"name": one.token, "sha256": one.sha256} for one in missing],
                },
            )
        return found

    async def _find_pictures(self, owner: str, receipt: Receipt) -> dict[str, uuid.UUID]:
        """Ids of the owner's pictures that it was drawn from, by field."""
        found: dict[str, uuid.UUID] = {}
        missing = []
        async with self._database.session() as session:
            repository = InputRepository(session, owner)
            for field, sha256 in pictures_of(receipt).items():
                picture = await repository.by_sha256(sha256) or (
                    await repository.drawn_by_sha256(sha256)
                )
                if picture is None:
                    missing.append({"name": field, "sha256": sha256})
                else:
                    found[field] = picture.id
        if missing:
            names = ", ".join(f"{one['name']} (SHA-256 {one['sha256']})" for one in missing)
            raise Conflict(
                f"You have not uploaded what this picture was drawn from: {names}.",
                field="file",
                details={"reason": "pictures_missing", "missing": missing},
            )
        return found

    async def compare(
        self, owner: str, content_id: uuid.UUID, picture: bytes, report: dict[str, Any]
    ) -> dict[str, Any]:
        """What was drawn against the file that it was drawn from; see `app.schemas.marking`.

        Raises:
            NotFound: there is no such content.
            Conflict: it is not drawn.
            InvalidRequest: the file has no receipt.
        """
        receipt = receipt_of(report)
        content = await self._contents.get(owner, content_id)
        if content.status != Status.SUCCEEDED or not content.images:
            raise Conflict(
                f"This content is {content.status}: there is nothing to compare yet.",
                field="content_id",
                details={"reason": "not_drawn", "status": content.status},
            )
        image = content.images[0]
        same_file = image.sha256 == receipt.unsigned_sha256
        found: dict[str, Any] = {}
        if report["width"] is not None:
            found = await compare(await self._storage.get(image.object_key), picture)
        differing = found.get("pixels_differing")
        # Of another size: a true thumbnail, or the picture after somebody has cut it.
        is_whole = report["width"] is None or report["manifest"]["state"] != "invalid"
        same_pixels = None if differing is None else differing == 0
        return {
            "content_id": content.id,
            "is_equal": same_file and is_whole if same_pixels is None else same_pixels,
            "same_file": same_file,
            "same_pixels": same_pixels,
            "pixels": None if differing is None else image.width * image.height,
            "pixels_differing": differing,
            "largest_difference": found.get("largest_difference"),
            "summary": _summary(same_file, is_whole, found, image.width * image.height),
        }


def _named(model: Receipt | Health) -> str:
    weights = "" if model.weights is None else f" (weights {model.weights})"
    return f"{model.base_model!r}{weights}"


def _summary(same_file: bool, is_whole: bool, found: dict[str, Any], pixels: int) -> str:
    differing = found.get("pixels_differing")
    if differing == 0:
        return "Every pixel is equal to the picture that was drawn from the receipt."
    if differing is not None:
        return (
            f"{differing} of {pixels} pixels differ from the picture that was drawn from the "
            f"receipt, by at most {found['largest_difference']} of 255."
        )
    if same_file and not is_whole:
        return (
            f"The file was changed after it was signed: it has {found['width']} × "
            f"{found['height']} px. What was drawn is the picture that was signed."
        )
    if same_file:
        return "What was drawn is, byte for byte, the picture that the receipt was made for."
    if found:
        return (
            f"The file has another size ({found['width']} × {found['height']} px) than what was "
            "drawn, and what was drawn is not the picture that the receipt was made for."
        )
    return "What was drawn is not, byte for byte, the picture that the receipt was made for."
