"""Signs pictures: a C2PA manifest that says that a model made them, with what, and when.

Duty: a picture's bytes and the facts of its making → the same picture with a manifest inside.
Pixels and text chunks stay as they are. Signing is the last thing that happens to a file: no two
signatures are the same, so a picture is known by the SHA-256 of its unsigned bytes.
Must not know: storage, the database.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import c2pa

from app.services.marking.keys import Identity

GENERATOR = "modal-sdxl-lora"
FACTS_LABEL = "org.modal-sdxl-lora.generation"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# IPTC's terms: made by a trained model; and that, together with somebody's picture.
CREATED = _SOURCE_TYPES + "trainedAlgorithmicMedia"
EDITED = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
_OFFLINE: dict[str, Any] = {
    "version": 1,
    # A second, smaller picture in each file would cost up to 1.9 MB.
    "builder": {"thumbnail": {"enabled": False}},
    # A manifest may name a URL where it lies: a stranger's file would have us fetch it.
    # What has just been signed is not read back: half of a small picture's cost. The tests read it.
    "verify": {
        "remote_manifest_fetch": False,
        "verify_trust": True,
        "verify_after_sign": False,
    },
}


class MarkingFailed(Exception):
    """A picture could not be signed."""


@dataclass(frozen=True)
class Facts:
    """What a manifest says of a picture's making.

    Attributes:
        unsigned_sha256: of the bytes before they were signed.
        receipt: what is needed to draw it again: model, prompt, seed, LoRAs by hash and scale.
        when: ISO 8601, UTC.
        is_edit: whether somebody's picture went into it.
        watermark: the method and the bits that are in its pixels: `spread-1:0123abcd`.
    """

    unsigned_sha256: str
    receipt: dict[str, Any]
    when: str
    is_edit: bool = False
    watermark: str | None = None
    software: dict[str, str] = field(default_factory=dict)


def reading_settings(trusted: str) -> c2pa.Settings:
    """For whoever reads manifests: nothing is fetched; `trusted` are PEM roots, or empty."""
    trust = {"trust": {"trust_anchors": trusted}} if trusted else {}
    return c2pa.Settings.from_dict(_OFFLINE | trust)


class Marker:
    """Signs with one identity. Blocking; used from several threads at once."""

    def __init__(self, identity: Identity, version: str) -> None:
        self._identity = identity
        self._version = version

    @property
    def identity(self) -> Identity:
        """Who signs."""
        return self._identity

    def mark(
        self, picture: bytes, media_type: str, facts: Facts, parent: tuple[bytes, str] | None = None
    ) -> bytes:
        """`picture` (a PNG, JPEG or WebP file) with a signed manifest inside.

        Args:
            parent: the file, with its media type, that was edited; its own manifest is kept.

        Raises:
            MarkingFailed: it is none of these files, or could not be signed.
        """
        signed = io.BytesIO()
        try:
            with (
                self._signer() as signer,
                c2pa.Context(settings=reading_settings(self._identity.root)) as context,
                c2pa.Builder(
                    json.dumps(self._manifest(media_type, facts, parent)), context
                ) as made,
            ):
                if parent is not None:
                    made.set_intent(c2pa.C2paBuilderIntent.EDIT)  # it was opened, then edited
                    made.add_ingredient(
                        json.dumps({"title": "source", "relationship": "parentOf"}),
                        parent[1],
                        io.BytesIO(parent[0]),
                    )
                made.sign(signer, media_type, io.BytesIO(picture), signed)
        except (c2pa.C2paError, OSError, ValueError) as error:
            raise MarkingFailed(
                f"the picture could not be signed: {type(error).__name__}"
            ) from error
        return signed.getvalue()

    def _signer(self) -> c2pa.Signer:
        who = self._identity
        if who.sign is not None:
            algorithm = c2pa.C2paSigningAlg[who.algorithm.upper()]
            return c2pa.Signer.from_callback(who.sign, algorithm, who.certificates, None)
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(
                alg=who.algorithm.encode(),
                sign_cert=who.certificates.encode(),
                private_key=who.key.encode(),
                ta_url=None,
            )
        )

    def _manifest(
        self, media_type: str, facts: Facts, parent: tuple[bytes, str] | None
    ) -> dict[str, Any]:
        agent = {"name": GENERATOR, "version": self._version}
        is_edit = facts.is_edit or parent is not None
        action: dict[str, Any] = {
            "action": "c2pa.created" if parent is None else "c2pa.edited",
            "digitalSourceType": EDITED if is_edit else CREATED,
            "when": facts.when,
            "softwareAgent": agent,
        }
        if facts.software:
            action["parameters"] = {"software": facts.software}
        actions, soft_binding = [action], []
        if facts.watermark is not None:
            method, _, bits = facts.watermark.partition(":")
            actions.append({"action": "c2pa.watermarked.bound", "when": facts.when})
            block = {"scope": {}, "value": bits}
            data = {"alg": f"org.modal-sdxl-lora.{method}", "blocks": [block]}
            soft_binding.append({"label": "c2pa.soft-binding", "data": data})
        return {
            "claim_generator_info": [agent],
            "format": media_type,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": actions}},
                {
                    "label": FACTS_LABEL,
                    "data": {"unsigned_sha256": facts.unsigned_sha256} | facts.receipt,
                },
                *soft_binding,
            ],
        }
