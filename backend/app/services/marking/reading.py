"""What a picture says of itself: manifest, signature, trust, text; and what was changed.

Duty: bytes of anybody's file and the roots that are trusted → a report; two pictures → in how many
pixels they differ; a picture to draw from → whether its manifest can be kept. Runs in a process of
its own (`python -m app.services.marking.reading`), since the file is a stranger's.
Must not know: HTTP, the database. Fetches nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from enum import IntEnum
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from app.services.foreign.serving import serve
from app.services.marking.keys import development_identity
from app.services.marking.marker import (
    FACTS_LABEL,
    GENERATOR,
    Marker,
    Source,
    reading_settings,
)
from app.services.marking.unsigned import without_manifest
from app.services.marking.watermark.methods import find_mark

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_MANIFEST_ALONE = "application/c2pa"
_NOT_OURS = "it is not a PNG, JPEG or WebP picture"
_NO_PICTURE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)  # fmt: skip
_OTHER_PICTURE, _UNTRUSTED = "assertion.dataHash.mismatch", "signingCredential.untrusted"
_CHANGED = "claimSignature.mismatch"
_SIGNATURE_BOX, _PADDING, _NEXT_SEGMENT = b"c2pa.signature\x00", b"\x63pad", b"\xff\xeb"
_SIGNATURE_BYTES = 65_536
_MAX_PIXELS = 2**26
_TEXT_CHARS = 20_000
_MEMORY_BYTES = 2 * 2**30
# C2PA's codes (specification 2.x, section 15) in the words of the person who asked.
_MEANINGS = {
    "assertion.dataHash.mismatch": "The picture was changed after it was signed, or the manifest "
    "belongs to another picture.",
    "assertion.hashedURI.mismatch": "What the manifest says was changed after it was signed.",
    "claimSignature.mismatch": "The manifest was changed after it was signed.",
    "claim.malformed": "The manifest is damaged.",
    "signingCredential.untrusted": "The signer is not one that this server trusts.",
    "signingCredential.expired": "The signer's certificate had expired.",
    "signingCredential.invalid": "The signer's certificate may not sign pictures.",
}


class Asked(IntEnum):
    """What is asked of a stranger's picture, and what comes before it."""

    REPORT = 0  # the roots that are trusted, as PEM
    COMPARISON = 1  # one of our pictures
    SOURCE = 2  # the media type


def read(picture: bytes, trusted: str) -> dict[str, Any]:
    """The report on `picture`, with `trusted` PEM roots; see `app.schemas.marking`."""
    if picture[4:8] == b"jumb":
        return _manifest_alone(picture, trusted)
    try:
        with Image.open(io.BytesIO(picture), formats=tuple(_FORMATS)) as opened:
            kind, size = str(opened.format), opened.size
            if size[0] * size[1] > _MAX_PIXELS:
                return {"refused": f"it has more than {_MAX_PIXELS} pixels"}
            text = str(opened.info.get("parameters", "")) if kind == "PNG" else ""
    except _NO_PICTURE:
        return {"refused": _NOT_OURS}
    report: dict[str, Any] = {
        "media_type": _FORMATS[kind],
        "width": size[0],
        "height": size[1],
        "file_sha256": hashlib.sha256(picture).hexdigest(),
        "parameters": text[:_TEXT_CHARS] or None,
        "manifest": _manifest(picture, _FORMATS[kind], trusted),
        "watermark": _watermark(picture),
    }
    bare = without_manifest(picture)
    if bare is not None:
        report["unsigned_sha256"] = hashlib.sha256(bare).hexdigest()
    return report


def _manifest_alone(data: bytes, trusted: str) -> dict[str, Any]:
    """The report on a manifest without its picture (a `.c2pa` file): all but the picture's part."""
    manifest = _manifest(data, _MANIFEST_ALONE, trusted)
    if manifest is None or "receipt_is_signed" not in manifest:
        return {"refused": "it is neither a picture nor a manifest that can be read"}
    other = _MEANINGS[_OTHER_PICTURE]
    manifest["problems"] = [problem for problem in manifest["problems"] if problem != other]
    manifest["codes"] = [code for code in manifest["codes"] if code != _OTHER_PICTURE]
    if manifest["receipt_is_signed"]:
        is_stranger = _MEANINGS[_UNTRUSTED] in manifest["problems"]
        manifest["state"] = "valid" if is_stranger or not trusted else "trusted"
    return {
        "media_type": _MANIFEST_ALONE,
        "width": None,
        "height": None,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "parameters": None,
        "manifest": manifest,
        "watermark": None,
    }


def _watermark(picture: bytes) -> str | None:
    """What is in the pixels; None also where they cannot be read."""
    try:
        with Image.open(io.BytesIO(picture), formats=tuple(_FORMATS)) as opened:
            found = find_mark(np.asarray(opened.convert("RGB")))
    except _NO_PICTURE:
        return None
    return None if found is None else str(found)


def compare(drawn: bytes, other: bytes) -> dict[str, Any]:
    """In how many pixels a stranger's picture differs from one of ours, and by how much at most."""
    try:
        with Image.open(io.BytesIO(other), formats=tuple(_FORMATS)) as opened:
            size = opened.size
            if size[0] * size[1] > _MAX_PIXELS:
                return {"refused": f"it has more than {_MAX_PIXELS} pixels"}
            theirs = opened.convert("RGB")
    except _NO_PICTURE:
        return {"refused": _NOT_OURS}
    with Image.open(io.BytesIO(drawn)) as opened:
        ours = opened.convert("RGB")
    if ours.size != size:
        return {"width": size[0], "height": size[1]}
    red, green, blue = ImageChops.difference(ours, theirs).split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    counts = largest.histogram()
    return {
        "width": size[0],
        "height": size[1],
        "pixels_differing": sum(counts[1:]),
        "largest_difference": max(value for value, count in enumerate(counts) if count),
    }


def _manifest(picture: bytes, media_type: str, trusted: str) -> dict[str, Any] | None:
    try:
        with c2pa.Context(settings=reading_settings(trusted)) as context:
            reader = c2pa.Reader(media_type, io.BytesIO(picture), context=context)
            state = str(reader.get_validation_state()).lower()
            store: dict[str, Any] = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        text = f"The manifest is damaged ({_kind(error)})."
        return {"state": "invalid", "problems": [text], "codes": ["claim.malformed"]}
    active: dict[str, Any] = store.get("manifests", {}).get(store.get("active_manifest"), {})
    signer = active.get("signature_info", {})
    facts = _assertion(active, FACTS_LABEL)
    actions = _assertion(active, "c2pa.actions.v2").get("actions", [])
    source = next(
        (a.get("digitalSourceType") for a in reversed(actions) if "digitalSourceType" in a), None
    )
    generator = (active.get("claim_generator_info") or [{}])[0]
    told = [problem.get("code", "unknown") for problem in store.get("validation_status", [])]
    if not _is_padding_empty(picture):
        state = "invalid"
        told.append(_CHANGED)
    codes = set(told)
    return {
        "state": state,
        "problems": [_MEANINGS.get(code, f"C2PA: {code}.") for code in told],
        "codes": sorted(str(code) for code in codes),
        "signed_by": signer.get("issuer"),
        "signed_at": signer.get("time"),
        "generator": generator.get("name"),
        "made_by_this_software": generator.get("name") == GENERATOR,
        "digital_source_type": source,
        "made_at": actions[0].get("when") if actions else None,
        "facts": facts or None,
        "receipt_is_signed": bool(facts) and codes <= {_OTHER_PICTURE, _UNTRUSTED},
        "signed_by_a_stranger": _UNTRUSTED in codes,
        "made_from_a_picture": any(
            ingredient.get("relationship") == "parentOf"
            for ingredient in active.get("ingredients", [])
        ),
    }


def _is_padding_empty(picture: bytes) -> bool:
    """Whether the room that a signature left over holds nothing.

    No signature covers it, so that C2PA's readers pass over what is written there; it is to be
    of zeros.
    """
    begins = picture.rfind(_SIGNATURE_BOX)
    found = picture.find(_PADDING, begins, begins + _SIGNATURE_BYTES) if begins >= 0 else -1
    if found < 0:
        return True
    head = found + len(_PADDING)
    # A byte string of CBOR whose length has one or two bytes; shorter ones are not written.
    extra = {b"\x58": 1, b"\x59": 2}.get(picture[head : head + 1])
    if extra is None:
        return True
    start = head + 1 + extra
    size = int.from_bytes(picture[head + 1 : start], "big")
    padding = picture[start : start + size]
    # A JPEG's next segment may begin in it: nothing is known of that.
    return not any(padding) or _NEXT_SEGMENT in padding


def can_be_kept(picture: bytes, media_type: str) -> bool:
    """Whether what is made from `picture` may carry its manifest: a readable one, right or wrong.

    Tried with a key that nobody trusts and that is gone afterwards.
    """
    found = _manifest(picture, media_type, "")
    if found is None or "signed_by" not in found:
        return False
    with tempfile.TemporaryDirectory() as folder:
        marker = Marker(development_identity(Path(folder)), "")
        return marker.can_keep(Source("0" * 64, media_type, picture))


def _assertion(manifest: dict[str, Any], label: str) -> dict[str, Any]:
    for assertion in manifest.get("assertions", []):
        if assertion.get("label") == label and isinstance(assertion.get("data"), dict):
            data: dict[str, Any] = assertion["data"]
            return data
    return {}


def _kind(error: Exception) -> str:
    return type(error).__name__.removeprefix("_C2pa")


def answer(kind: int, first: bytes, second: bytes) -> bytes:
    """What `Asked(kind)` is answered, in JSON."""
    if kind == Asked.COMPARISON:
        report = compare(first, second)
    elif kind == Asked.SOURCE:
        report = {"can_be_kept": can_be_kept(second, first.decode())}
    else:
        report = read(second, first.decode())
    return json.dumps(report).encode()


if __name__ == "__main__":
    # What each fork would import by itself.
    Image.init()
    np.fft.fft2(np.zeros((8, 8)))
    serve(answer, _MEMORY_BYTES, in_forks=True)
