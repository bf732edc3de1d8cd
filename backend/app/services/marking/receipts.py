"""What a signed manifest says of a picture's making, as a request for the same picture.

Must not know: who signed, which LoRAs and pictures an owner has.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from app.models import LoraModel
from app.repositories.inputs.images import FIELDS, LISTS
from app.schemas.common import Storable
from app.schemas.content import GenerateIn, LoraUse
from app.services.contents.resolve import PARAMETERS
from app.services.inputs.using import map_pictures, pictures_in
from app.services.marking.watermark.methods import Mark
from sdxl_contract.drawing.controls import CONTROLS_MAX
from sdxl_contract.drawing.references import REFERENCES_MAX
from sdxl_contract.errors import ContractError, InvalidRequest
from sdxl_contract.limits import MAX_EMBEDDINGS, MAX_LORAS, PROMPT_MAX_CHARS
from sdxl_contract.prompts.words import Token
from sdxl_contract.request import explain_validation, scheduler_named

_MOST_PICTURES = len(FIELDS) + CONTROLS_MAX + REFERENCES_MAX
_HASH = re.compile(r"[0-9a-f]{64}")
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Of a batch's picture these say how it came about, and not what it shows.
_OF_THE_REQUEST = frozenset({"num_images", "seed"})


class ReceiptLora(BaseModel):
    """A LoRA by its bytes."""

    name: Annotated[Storable, Field(max_length=200)]
    sha256: _Sha256
    scale: float = Field(allow_inf_nan=False)


class ReceiptEmbedding(BaseModel):
    """An embedding by its bytes, and the prompts' word that stood for it."""

    token: Token
    sha256: _Sha256


_EMBEDDINGS = TypeAdapter[list[ReceiptEmbedding]](
    Annotated[list[ReceiptEmbedding], Field(max_length=MAX_EMBEDDINGS)]
)


class Receipt(BaseModel):
    """What a manifest says of a picture's making; anybody may have written it."""

    unsigned_sha256: _Sha256
    content_id: str = Field(default="", max_length=100)
    seed: int
    prompt: Annotated[Storable, Field(max_length=PROMPT_MAX_CHARS)]
    negative_prompt: Annotated[Storable, Field(max_length=PROMPT_MAX_CHARS)] = ""
    parameters: dict[str, Any] = Field(max_length=50)
    scheduler: str | None = Field(default=None, max_length=100)
    base_model: Annotated[Storable, Field(max_length=500)]
    weights: Annotated[Storable, Field(max_length=100)] | None = None
    loras: list[ReceiptLora] = Field(default_factory=list, max_length=MAX_LORAS)
    watermark: str | None = Field(default=None, max_length=100)


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
    if receipt.watermark is not None:
        try:
            Mark.parse(receipt.watermark)
        except ValueError as error:
            raise _refused(f"has a receipt that {error}: {receipt.watermark}") from None
    unknown = sorted(receipt.parameters.keys() - {*PARAMETERS, *FIELDS, *LISTS, "embeddings"})
    if unknown:
        raise _refused(
            f"was drawn with {unknown[0][:100]}, which this version cannot draw: use a newer one"
        )
    return receipt


def pictures_of(receipt: Receipt) -> dict[str, str]:
    """Hashes of the pictures that it was drawn from, by field."""
    try:
        named = pictures_in(receipt.parameters)
    # Anybody may have written it.
    except (AttributeError, KeyError, TypeError):
        raise _refused("has a receipt that cannot be drawn from: it names no pictures") from None
    if len(named) > _MOST_PICTURES:
        raise _refused("has a receipt that cannot be drawn from: it names too many pictures")
    hashes = {}
    for field, use in named.items():
        sha256 = use.get("sha256") if isinstance(use, dict) else None
        if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
            raise _refused(f"has a receipt that cannot be drawn from: {field} has no SHA-256")
        hashes[field] = sha256
    return hashes


def embeddings_of(receipt: Receipt) -> list[ReceiptEmbedding]:
    """The embeddings that it was drawn with."""
    try:
        return _EMBEDDINGS.validate_python(receipt.parameters.get("embeddings") or [])
    except ValidationError:
        raise _refused("has a receipt that cannot be drawn from: it names no embeddings") from None


def as_asked(
    receipt: Receipt,
    loras: Mapping[str, LoraModel],
    pictures: Mapping[str, uuid.UUID] = MappingProxyType({}),
    embeddings: Mapping[str, uuid.UUID] = MappingProxyType({}),
) -> GenerateIn:
    """The receipt as a request for one picture; `loras` are the owner's by their hash, `pictures`
    the ids of what it was drawn from by field, `embeddings` the owner's ids by hash.

    Raises:
        InvalidRequest: it asks for what no request may.
    """
    given = {
        name: value
        for name, value in receipt.parameters.items()
        if name not in _OF_THE_REQUEST and value is not None
    }

    def owned(field: str, use: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in use.items() if name != "sha256"}
        return {**values, "image_id": pictures[field]} if field in pictures else use

    given = map_pictures(given, owned)
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
                # Named in any case: words that were plain then stay plain.
                "embeddings": [
                    {"embedding_id": embeddings[one.sha256], "word": one.token}
                    for one in embeddings_of(receipt)
                ],
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
