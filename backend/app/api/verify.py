"""`POST /verify`: whether a picture is one of ours, what it says of itself, and what was changed.
`/replays`: a picture drawn again from its own receipt, and the two compared.

To verify needs no key: whoever comes across a picture may ask.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile

from app.api.content_out import content_out
from app.api.deps import CallerDep, OwnerDep, ServicesDep, known_caller
from app.core.rates import Rate
from app.schemas.content import ContentOut
from app.schemas.marking import ComparisonOut, VerificationOut
from app.services.marking.verifying import FILE_MAX_BYTES, verify
from sdxl_contract.errors import InvalidRequest

router = APIRouter(tags=["verify"])
replay_router = APIRouter(prefix="/replays", tags=["verify"])

_CALLS_PER_MINUTE = 30
_rate = Rate(_CALLS_PER_MINUTE, per_seconds=60.0)


Picture = Annotated[
    UploadFile, File(description="PNG, JPEG, WebP, or a manifest alone (.c2pa); at most 32 MiB")
]


@router.post("/verify")
async def verify_picture(
    file: Picture,
    request: Request,
    services: ServicesDep,
) -> VerificationOut:
    """Read a picture's marks. The file is not kept.

    With an API key the answer also names the caller's own contents with the same watermark.
    """
    _rate.take(request.client.host if request.client else "")
    report = await verify(await _read(file), services.marking.roots)
    watermark = None
    if report["watermark"] is not None:
        caller = await known_caller(request, services)
        owner = None if caller is None else caller.owner
        watermark = await services.replays.carriers(report["watermark"], owner)
    return VerificationOut(**{**report, "watermark": watermark}, **_judged(report, watermark))


@replay_router.post("", status_code=202)
async def replay_from_receipt(
    file: Picture, caller: CallerDep, services: ServicesDep, response: Response
) -> ContentOut:
    """Draw a picture again from the receipt in its signed manifest.

    On the same model and with the same LoRAs, which must be in the caller's library; others are
    named by their hash. Then compare: `POST /replays/comparison`.
    """
    report = await verify(await _read(file), services.marking.roots)
    content = await services.replays.draw(caller.owner, report, caller.allowance)
    response.headers["Location"] = f"/api/v1/content/{content.id}"
    return content_out(
        content,
        services.storage,
        services.settings.image_url_seconds,
        services.gate.waiting_for,
    )


@replay_router.post("/comparison")
async def compare_with_replay(
    file: Picture, content_id: Annotated[uuid.UUID, Form()], owner: OwnerDep, services: ServicesDep
) -> ComparisonOut:
    """The picture, pixel by pixel, against what was drawn from its receipt. It is not kept."""
    picture = await _read(file)
    report = await verify(picture, services.marking.roots)
    found = await services.replays.compare(owner, content_id, picture, report)
    return ComparisonOut(**found)


async def _read(file: UploadFile) -> bytes:
    picture = await file.read(FILE_MAX_BYTES + 1)
    if len(picture) > FILE_MAX_BYTES:
        raise InvalidRequest(
            f"file: at most {FILE_MAX_BYTES // 2**20} MiB", details={"field": "file"}
        )
    return picture


def _judged(report: dict[str, Any], watermark: dict[str, Any] | None) -> dict[str, Any]:
    manifest = report["manifest"]
    promised = (manifest or {}).get("facts") or {}
    known = report.get("unsigned_sha256")
    matches = None
    if known is not None and "unsigned_sha256" in promised:
        matches = known == promised["unsigned_sha256"]
    if manifest is None:
        summary = "This picture carries no signed manifest: it never had one, or lost it."
        if watermark is not None:
            summary += " Its pixels carry the watermark of a picture that a model made" + (
                " on this server." if watermark["is_known"] else ": this server has none like it."
            )
    elif manifest["state"] == "invalid":
        summary = "This picture, or what it says of itself, was changed after it was signed."
    else:
        who = manifest["signed_by"] or "an unnamed signer"
        made = "was made by a model" if _by_a_model(manifest) else "is signed"
        trust = "" if manifest["state"] == "trusted" else ", whom this server does not know"
        what, state = "picture", "is unchanged"
        if report["width"] is None:
            what, state = "manifest's picture", "the manifest is unchanged"
        summary = f"This {what} {made} and {state} since {who} signed it{trust}."
    return {"matches_receipt": matches, "summary": summary}


def _by_a_model(manifest: dict[str, Any]) -> bool:
    return str(manifest["digital_source_type"]).lower().endswith("algorithmicmedia")
