"""`POST /verify`: whether a picture is one of ours, what it says of itself, and what was changed.

Needs no key: whoever comes across a picture may ask.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile

from app.api.deps import ServicesDep
from app.core.rates import Rate
from app.schemas.marking import VerificationOut
from app.services.marking.verifying import FILE_MAX_BYTES, verify
from sdxl_contract.errors import InvalidRequest

router = APIRouter(tags=["verify"])

_CALLS_PER_MINUTE = 30
_rate = Rate(_CALLS_PER_MINUTE, per_seconds=60.0)


@router.post("/verify")
async def verify_picture(
    file: Annotated[UploadFile, File(description="PNG, JPEG or WebP, at most 32 MiB")],
    request: Request,
    services: ServicesDep,
) -> VerificationOut:
    """Read a picture's marks. The file is not kept."""
    _rate.take(request.client.host if request.client else "")
    picture = await file.read(FILE_MAX_BYTES + 1)
    if len(picture) > FILE_MAX_BYTES:
        raise InvalidRequest(
            f"file: at most {FILE_MAX_BYTES // 2**20} MiB", details={"field": "file"}
        )
    report = await verify(picture, services.marking.roots)
    return VerificationOut(**report, **_judged(report))


def _judged(report: dict[str, Any]) -> dict[str, Any]:
    manifest = report["manifest"]
    promised = (manifest or {}).get("facts") or {}
    known = report.get("unsigned_sha256")
    matches = None
    if known is not None and "unsigned_sha256" in promised:
        matches = known == promised["unsigned_sha256"]
    if manifest is None:
        summary = "This picture carries no signed manifest: it never had one, or lost it."
    elif manifest["state"] == "invalid":
        summary = "This picture, or what it says of itself, was changed after it was signed."
    else:
        who = manifest["signed_by"] or "an unnamed signer"
        made = "was made by a model" if _by_a_model(manifest) else "is signed"
        trust = "" if manifest["state"] == "trusted" else ", whom this server does not know"
        summary = f"This picture {made} and is unchanged since {who} signed it{trust}."
    return {"matches_receipt": matches, "summary": summary}


def _by_a_model(manifest: dict[str, Any]) -> bool:
    return str(manifest["digital_source_type"]).lower().endswith("algorithmicmedia")
