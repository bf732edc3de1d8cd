"""Signs pictures: a C2PA manifest that says that a model made them, with what, and when.

Duty: a picture's bytes and the facts of its making → the same picture with a manifest inside.
Pixels and text chunks stay as they are. Signing is the last thing that happens to a file: no two
signatures are the same, so a picture is known by the SHA-256 of its unsigned bytes.
Must not know: storage, the database.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import c2pa
from PIL import Image

from app.services.marking.keys import Identity, UnusableKey

GENERATOR = "modal-sdxl-lora"
FACTS_LABEL = "org.modal-sdxl-lora.generation"
_ACTIONS = "c2pa.actions.v2"
_BY_HASH = "urn:sha256:"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# IPTC's terms: made by a trained model; and that, together with somebody's picture.
CREATED = _SOURCE_TYPES + "trainedAlgorithmicMedia"
EDITED = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
# Of manifests in one picture. Each edit adds the one before it, whole: 6.5 kB where it is ours.
CHAIN_MAX_BYTES = 32_768
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

log = logging.getLogger(__name__)


class MarkingFailed(Exception):
    """A picture could not be signed."""


@dataclass(frozen=True)
class Source:
    """The picture that was edited.

    Attributes:
        sha256: of its file.
        media_type: None where it is not known any more.
        file: its bytes with a manifest that is to be kept, our own or one that `can_keep` has seen;
            None: it is named by its hash.
    """

    sha256: str
    media_type: str | None = None
    file: bytes | None = None


@dataclass(frozen=True)
class Facts:
    """What a manifest says of a picture's making.

    Attributes:
        unsigned_sha256: of the bytes before they were signed.
        receipt: what is needed to draw it again: model, prompt, seed, LoRAs by hash and scale.
        when: ISO 8601, UTC.
        action: what was done with the source, where there is one.
        watermark: the method and the bits that are in its pixels: `spread-1:0123abcd`.
        copied: when a copy in another file format was made of it, ISO 8601, UTC.
    """

    unsigned_sha256: str
    receipt: dict[str, Any]
    when: str
    action: str = "c2pa.edited"
    watermark: str | None = None
    software: dict[str, str] = field(default_factory=dict)
    copied: str | None = None


def reading_settings(trusted: str) -> c2pa.Settings:
    """For whoever reads manifests: nothing is fetched; `trusted` are PEM roots, or empty."""
    trust = {"trust": {"trust_anchors": trusted}} if trusted else {}
    return c2pa.Settings.from_dict(_OFFLINE | trust)


class _Tools(threading.local):
    """What signing needs, made once for each thread: half of a small picture's cost otherwise."""

    def __init__(self, who: Identity) -> None:
        self.context = c2pa.Context(settings=reading_settings(who.root))
        if who.sign is not None:
            algorithm = c2pa.C2paSigningAlg[who.algorithm.upper()]
            self.signer = c2pa.Signer.from_callback(who.sign, algorithm, who.certificates, None)
        else:
            self.signer = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(
                    alg=who.algorithm.encode(),
                    sign_cert=who.certificates.encode(),
                    private_key=who.key.encode(),
                    ta_url=None,
                )
            )


class Marker:
    """Signs with one identity. Blocking; used from several threads at once.

    Raises:
        UnusableKey: nothing can be signed with the identity.
    """

    def __init__(self, identity: Identity, version: str) -> None:
        self._identity = identity
        self._version = version
        try:
            self._tools = _Tools(identity)
        except c2pa.C2paError as error:
            raise UnusableKey(f"its certificate or key cannot sign: {error}") from error

    @property
    def identity(self) -> Identity:
        """Who signs."""
        return self._identity

    def mark(
        self, picture: bytes, media_type: str, facts: Facts, source: Source | None = None
    ) -> bytes:
        """`picture` (a PNG, JPEG or WebP file) with a signed manifest inside.

        Args:
            source: what was edited. Its manifest is kept while it can be read and all of them have
                at most `CHAIN_MAX_BYTES`; else it is named by its hash.

        Raises:
            MarkingFailed: it is none of these files, or could not be signed.
        """
        if source is not None and source.file is not None:
            try:
                signed = self._sign(picture, media_type, facts, source)
                if len(signed) - len(picture) <= CHAIN_MAX_BYTES:
                    return signed
            except MarkingFailed as error:
                log.warning("the source's manifest is not kept: %s", error)
            source = replace(source, file=None)
        return self._sign(picture, media_type, facts, source)

    def mark_copy(self, original: bytes, media_type: str, copy: bytes, copy_type: str) -> bytes:
        """`copy`, another file of the picture `original`, signed with what `original` says.

        One whose original has no manifest of ours, drawn while nothing was signed, stays as it is.

        Raises:
            MarkingFailed: it could not be signed.
        """
        try:
            reader = c2pa.Reader(media_type, io.BytesIO(original), context=self._tools.context)
            store: dict[str, Any] = json.loads(reader.json())
        except c2pa.C2paError.ManifestNotFound:
            return copy
        except c2pa.C2paError as error:
            raise MarkingFailed(f"its original cannot be read: {type(error).__name__}") from error
        manifest = store["manifests"][store["active_manifest"]]
        told = {one["label"]: one["data"] for one in manifest["assertions"]}
        if FACTS_LABEL not in told:
            return copy
        receipt: dict[str, Any] = told[FACTS_LABEL]
        made = next(a for a in told[_ACTIONS]["actions"] if "digitalSourceType" in a)
        facts = Facts(
            unsigned_sha256=receipt.pop("unsigned_sha256"),
            receipt=receipt,
            when=made["when"],
            action=made["action"],
            watermark=receipt.get("watermark"),
            software=made.get("parameters", {}).get("software", {}),
            copied=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        parents = [one for one in manifest.get("ingredients", ()) if "instance_id" in one]
        source = None
        if parents:
            named = parents[0]["instance_id"].removeprefix(_BY_HASH)
            source = Source(named, parents[0].get("format"))
        return self.mark(copy, copy_type, facts, source)

    def can_keep(self, source: Source) -> bool:
        """Whether a picture that keeps the source's manifest, whoever wrote that, is above doubt.

        Answered on a small picture: the same for all that are made from the source, and too much
        to be asked at each of them.
        """
        pixel = io.BytesIO()
        Image.new("RGB", (1, 1)).save(pixel, "PNG")
        facts = Facts("0" * 64, {}, "1970-01-01T00:00:00Z")
        try:
            signed = self._sign(pixel.getvalue(), "image/png", facts, source)
            reader = c2pa.Reader("image/png", io.BytesIO(signed), context=self._tools.context)
            return str(reader.get_validation_state()).lower() != "invalid"
        except (MarkingFailed, c2pa.C2paError):
            return False

    def _sign(self, picture: bytes, media_type: str, facts: Facts, source: Source | None) -> bytes:
        signed = io.BytesIO()
        try:
            tools = self._tools
            definition = json.dumps(self._manifest(media_type, facts, source))
            with c2pa.Builder(definition, tools.context) as made:
                if source is not None:
                    made.set_intent(c2pa.C2paBuilderIntent.EDIT)  # it was opened, then edited
                    if source.file is not None:
                        made.add_ingredient(
                            json.dumps(_ingredient(source)),
                            source.media_type or "",
                            io.BytesIO(source.file),
                        )
                made.sign(tools.signer, media_type, io.BytesIO(picture), signed)
        except (c2pa.C2paError, OSError, ValueError) as error:
            raise MarkingFailed(
                f"the picture could not be signed: {type(error).__name__}"
            ) from error
        return signed.getvalue()

    def _manifest(self, media_type: str, facts: Facts, source: Source | None) -> dict[str, Any]:
        agent = {"name": GENERATOR, "version": self._version}
        action: dict[str, Any] = {
            "action": "c2pa.created" if source is None else facts.action,
            "digitalSourceType": CREATED if source is None else EDITED,
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
        if facts.copied is not None:
            copied = {"action": "c2pa.transcoded", "when": facts.copied, "softwareAgent": agent}
            actions.append(copied)
        return {
            "ingredients": [_ingredient(source)] if source and not source.file else [],
            "claim_generator_info": [agent],
            "format": media_type,
            "assertions": [
                {"label": _ACTIONS, "data": {"actions": actions}},
                {
                    "label": FACTS_LABEL,
                    "data": {"unsigned_sha256": facts.unsigned_sha256} | facts.receipt,
                },
                *soft_binding,
            ],
        }


def _ingredient(source: Source) -> dict[str, str]:
    known = {"format": source.media_type} if source.media_type else {}
    return {
        "title": "source",
        "relationship": "parentOf",
        "instance_id": f"{_BY_HASH}{source.sha256}",
        **known,
    }
