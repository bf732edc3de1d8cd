"""What verification answers."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field


class ManifestOut(BaseModel):
    """The signed manifest (C2PA) that a picture carries."""

    state: Literal["trusted", "valid", "invalid"] = Field(
        description="trusted: unchanged, by a signer that this server trusts; valid: unchanged, by "
        "another signer; invalid: changed, damaged or of another picture"
    )
    problems: list[str] = Field(description="what is wrong, a sentence each")
    codes: list[str] = Field(description="the same, as C2PA names it")
    signed_by: str | None = None
    signed_at: str | None = Field(default=None, description="by a time-stamping authority")
    generator: str | None = Field(default=None, description="the software that wrote it")
    made_by_this_software: bool = False
    digital_source_type: str | None = Field(
        default=None, description="IPTC's term; trainedAlgorithmicMedia: made by a trained model"
    )
    made_at: str | None = None
    made_from_a_picture: bool = False
    facts: dict[str, Any] | None = Field(
        default=None, description="the receipt: model, prompt, seed, LoRAs by hash and scale"
    )
    receipt_is_signed: bool = Field(
        default=False,
        description="whether the receipt is as it was signed, also where the picture was changed",
    )
    signed_by_a_stranger: bool = Field(
        default=False, description="whether this server does not trust the signer"
    )


class WatermarkOut(BaseModel):
    """A mark in the pixels, which outlives what removes a manifest; anybody could write one."""

    method: str
    payload: str = Field(description="32 bits, as 8 hexadecimal digits")
    is_known: bool = Field(description="a picture that this server drew and still has carries it")
    contents: list[uuid.UUID] = Field(
        description="those of the caller's contents that have such a picture, the newest first; "
        "empty without a key: what others drew is told to nobody"
    )


class VerificationOut(BaseModel):
    """What a picture says of itself, and whether that is so."""

    media_type: str = Field(description="application/c2pa: a manifest without its picture")
    width: int | None
    height: int | None
    file_sha256: str
    unsigned_sha256: str | None = Field(
        default=None, description="of the file without its manifest; null for a JPEG"
    )
    manifest: ManifestOut | None = Field(description="null: there is none, or it was removed")
    matches_receipt: bool | None = Field(
        description="whether the file without its manifest is, byte for byte, the one that the "
        "manifest names; null where that cannot be told"
    )
    watermark: WatermarkOut | None = Field(description="null: none can be found")
    parameters: str | None = Field(
        description="the text that a PNG carries, unsigned: anyone can change it"
    )
    summary: str = Field(description="one sentence for a person")


class ComparisonOut(BaseModel):
    """A picture, or its manifest alone, held against what was drawn from its receipt."""

    content_id: uuid.UUID = Field(description="what was drawn")
    is_equal: bool = Field(
        description="every pixel is equal; where only a manifest was sent, every byte of the file "
        "that it was made for"
    )
    same_file: bool = Field(
        description="the file that was drawn is, byte for byte, the one that the receipt names"
    )
    same_pixels: bool | None = Field(
        description="null where that cannot be told: a manifest alone, or a copy of another size"
    )
    pixels: int | None = Field(description="of the picture")
    pixels_differing: int | None
    largest_difference: int | None = Field(description="of 255, in any colour of any pixel")
    summary: str = Field(description="one sentence for a person")
