"""Draws a picture again from its own receipt, and holds the two against each other.

Duty: a manifest's receipt → a request for the same picture, with the owner's LoRAs by hash; later,
the file that was drawn against the one that was sent.
Must not know: HTTP, who signed.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from app.core.db import Database
from app.core.errors import Conflict
from app.models import Content, LoraModel, Status
from app.repositories.inputs.images import FIELDS
from app.repositories.loras import LoraRepository
from app.schemas.common import Storable
from app.schemas.content import GenerateIn, LoraUse
from app.services.contents.accepting import ContentService
from app.services.contents.resolve import PARAMETERS
from app.services.limits import Allowance
from app.services.marking.verifying import compare
from app.services.storage import Storage
from app.services.worker.base_model import BaseModel as LoadedModel
from sdxl_contract.errors import ContractError, InvalidRequest
from sdxl_contract.limits import MAX_LORAS, PROMPT_MAX_CHARS
from sdxl_contract.request import explain_validation, scheduler_named

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Of a batch's picture these say how it came about, and not what it shows.
_OF_THE_REQUEST = frozenset({"num_images", "seed"})


class ReceiptLora(BaseModel):
    """A LoRA by its bytes."""

    name: Annotated[Storable, Field(max_length=200)]
    sha256: _Sha256
    scale: float = Field(allow_inf_nan=False)


class Receipt(BaseModel):
    """What a manifest says of a picture's making; anybody may have written it."""

    unsigned_sha256: _Sha256
    seed: int
    prompt: Annotated[Storable, Field(max_length=PROMPT_MAX_CHARS)]
    negative_prompt: Annotated[Storable, Field(max_length=PROMPT_MAX_CHARS)] = ""
    parameters: dict[str, Any] = Field(max_length=50)
    scheduler: str | None = Field(default=None, max_length=100)
    base_model: Annotated[Storable, Field(max_length=500)]
    loras: list[ReceiptLora] = Field(default_factory=list, max_length=MAX_LORAS)


def receipt_of(report: dict[str, Any]) -> Receipt:
    """The receipt in a verified file.

    Raises:
        InvalidRequest: it has none that can be believed, or that a picture can be drawn from.
    """
    manifest = report["manifest"]
    if manifest is None:
        raise _refused("carries no signed manifest, so it says nothing of how it was made")
    if not manifest.get("receipt_is_signed"):
        if manifest.get("facts") is None and manifest["state"] != "invalid":
            raise _refused("was not made by this software: its manifest holds no receipt")
        raise _refused("has a manifest that was changed after it was signed")
    try:
        receipt = Receipt.model_validate(manifest["facts"])
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        problem = explain_validation([dict(item) for item in found])
        raise _refused(f"has a receipt that cannot be drawn from: {problem.message}") from None
    twice = [sha for sha, n in Counter(lora.sha256 for lora in receipt.loras).items() if n > 1]
    if twice:
        raise _refused(f"has a receipt that names the LoRA {twice[0]} twice")
    unknown = sorted(receipt.parameters.keys() - set(PARAMETERS))
    if set(FIELDS) & set(unknown):
        raise _refused("was drawn from another picture, which it does not hold")
    if unknown:
        raise _refused(
            f"was drawn with {unknown[0][:100]}, which this version cannot draw: use a newer one"
        )
    return receipt


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
            RateLimited, BudgetExhausted: `allowance` is used up.
        """
        receipt = receipt_of(report)
        self._check_model(receipt)
        loras = await self._find_loras(owner, receipt)
        asked = as_asked(receipt, loras)
        names = {loras[lora.sha256].id: lora.name for lora in receipt.loras}
        accepted = await self._contents.accept(owner, asked, None, allowance, lora_names=names)
        return accepted.content

    def _check_model(self, receipt: Receipt) -> None:
        known = self._base_model.known
        if known is None or known.base_model in (None, receipt.base_model):
            return
        raise Conflict(
            f"This picture was drawn with the base model {receipt.base_model!r}; the worker has "
            f"{known.base_model!r}, which would draw another one.",
            field="file",
            details={
                "reason": "other_model",
                "base_model": receipt.base_model,
                "loaded": known.base_model,
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
        same_pixels = None if differing is None else differing == 0
        return {
            "content_id": content.id,
            "is_equal": same_file if same_pixels is None else same_pixels,
            "same_file": same_file,
            "same_pixels": same_pixels,
            "pixels": None if differing is None else image.width * image.height,
            "pixels_differing": differing,
            "largest_difference": found.get("largest_difference"),
            "summary": _summary(same_file, found, image.width * image.height),
        }


def as_asked(receipt: Receipt, loras: Mapping[str, LoraModel]) -> GenerateIn:
    """The receipt as a request for one picture; `loras` are the owner's, by their hash.

    Raises:
        InvalidRequest: it asks for what no request may.
    """
    given = {
        name: value
        for name, value in receipt.parameters.items()
        if name not in _OF_THE_REQUEST and value is not None
    }
    # Receipts of earlier versions have only the name that the worker gave its sampler.
    stated = scheduler_named(str(given.pop("scheduler", "")))
    given["scheduler"] = receipt.scheduler or (stated.value if stated else None)
    try:
        return GenerateIn.model_validate(
            given
            | {
                "prompt": receipt.prompt,
                "negative_prompt": receipt.negative_prompt,
                "seed": receipt.seed,
                "loras": [
                    LoraUse(lora_model_id=loras[lora.sha256].id, scale=lora.scale)
                    for lora in receipt.loras
                ],
            }
        )
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        problem: ContractError = explain_validation([dict(item) for item in found])
        raise _refused(f"has a receipt that cannot be drawn from: {problem.message}") from None


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"file: it {why}", details={"field": "file"})


def _summary(same_file: bool, found: dict[str, Any], pixels: int) -> str:
    differing = found.get("pixels_differing")
    if differing == 0:
        return "Every pixel is equal to the picture that was drawn from the receipt."
    if differing is not None:
        return (
            f"{differing} of {pixels} pixels differ from the picture that was drawn from the "
            f"receipt, by at most {found['largest_difference']} of 255."
        )
    if same_file:
        return "What was drawn is, byte for byte, the picture that the receipt was made for."
    if found:
        return (
            f"The file has another size ({found['width']} × {found['height']} px) than what was "
            "drawn, and what was drawn is not the picture that the receipt was made for."
        )
    return "What was drawn is not, byte for byte, the picture that the receipt was made for."
