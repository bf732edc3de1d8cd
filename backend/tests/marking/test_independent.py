"""Manifests are read and proved without the library that writes them.

Sources: C2PA specification 2.x for the order of things, ISO 19566-5 (JUMBF) for boxes, RFC 9052
(COSE) for the signature, RFC 5280 for the chain. Only cbor2 and cryptography are used.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from PIL import Image

from app.core.settings import Settings
from app.services.marking.keys import Identity, development_identity
from app.services.marking.marker import FACTS_LABEL, Facts, Marker, Source
from testkit.backend import Backend, ended

MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_CONTENT_CREDENTIALS = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")  # id-kp-documentSigning
_X5CHAIN, _ALGORITHM, _ES256 = 33, 1, -7


class Broken(Exception):
    """What a manifest says is not so."""


@dataclass
class Box:
    """A JUMBF superbox: its label, what it holds, and its bytes without its own header."""

    label: str
    body: bytes
    boxes: list[Box] = field(default_factory=list)
    content: bytes = b""

    def inner(self, label: str) -> Box:
        for box in self.boxes:
            if box.label == label:
                return box
        raise Broken(f"there is no {label}")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if size < 8 or place + size > len(data):
            raise Broken("a box is cut off")
        yield kind, data[place + 8 : place + size]
        place += size


def _superbox(body: bytes) -> Box:
    parts = list(_boxes(body))
    if not parts or parts[0][0] != b"jumd":
        raise Broken("a box has no description")
    described = parts[0][1]
    label = described[17 : described.index(b"\0", 17)].decode()
    box = Box(label, body)
    for kind, content in parts[1:]:
        if kind == b"jumb":
            box.boxes.append(_superbox(content))
        elif kind in (b"cbor", b"json"):
            box.content = content
    return box


def manifest_bytes(file: bytes) -> bytes | None:
    """The manifest store in a file, by the format's own rules."""
    if file.startswith(b"\x89PNG"):
        place = 8
        while place < len(file):
            size, kind = struct.unpack_from(">I4s", file, place)
            if kind == b"caBX":
                return file[place + 8 : place + 8 + size]
            place += size + 12
        return None
    if file[:4] == b"RIFF":
        place = 12
        while place + 8 <= len(file):
            kind, size = struct.unpack_from("<4sI", file, place)
            if kind == b"C2PA":
                return file[place + 8 : place + 8 + size]
            place += 8 + size + size % 2
        return None
    found, place = b"", 2
    while file[place] == 0xFF and file[place + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", file, place + 2)
        part = file[place + 4 : place + 2 + size]
        if file[place + 1] == 0xEB and part[:2] == b"JP":
            (number,) = struct.unpack_from(">I", part, 4)
            found += part[8:] if number == 1 else part[16:]  # its box header is repeated
        place += 2 + size
    return found or None


def _check_signature(signed: bytes, claim: bytes) -> list[x509.Certificate]:
    message = cbor2.loads(signed)
    if message.tag != 18:
        raise Broken("it is no COSE_Sign1")
    protected, unprotected, payload, signature = message.value
    headers = cbor2.loads(protected)
    if payload is not None or headers[_ALGORITHM] != _ES256:
        raise Broken("it is signed otherwise than with a detached ES256")
    chain = headers.get(_X5CHAIN) or unprotected[_X5CHAIN]
    chain = chain if isinstance(chain, list) else [chain]
    certificates = [x509.load_der_x509_certificate(one) for one in chain]
    key = certificates[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    half = len(signature) // 2
    r, s = (int.from_bytes(part) for part in (signature[:half], signature[half:]))
    to_verify = cbor2.dumps(["Signature1", protected, b"", claim])
    try:
        key.verify(encode_dss_signature(r, s), to_verify, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Broken("the claim was changed") from None
    return certificates


def _check_chain(certificates: list[x509.Certificate], root: x509.Certificate) -> bool:
    """Whether the chain ends at `root`, each link signed and valid now."""
    now = datetime.now(UTC)
    leaf = certificates[0]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if not list(usage) or leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise Broken("the signer may not sign")
    chain = [*certificates, root]
    try:
        for below, above in itertools.pairwise(chain):
            if below != above:
                below.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return all(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in chain)


def prove(file: bytes, root_pem: str) -> tuple[str, dict[str, Any]]:
    """("trusted" or "valid", the receipt) of a signed file.

    Raises:
        Broken: something is not as it was signed, or nothing is signed.
    """
    store = manifest_bytes(file)
    if store is None:
        raise Broken("there is no manifest")
    [(kind, body)] = list(_boxes(store))
    if kind != b"jumb":
        raise Broken("the manifest is no JUMBF")
    manifest = _superbox(body).boxes[-1]  # the active one is the last
    claim = manifest.inner("c2pa.claim.v2").content
    certificates = _check_signature(manifest.inner("c2pa.signature").content, claim)
    claimed = cbor2.loads(claim)
    assertions = manifest.inner("c2pa.assertions")
    bound = False
    said: dict[str, Any] = {}
    for reference in claimed["created_assertions"] + claimed.get("gathered_assertions", []):
        label = reference["url"].rpartition("/")[2]
        box = assertions.inner(label)
        if hashlib.sha256(box.body).digest() != reference["hash"]:
            raise Broken(f"{label} was changed")
        content = box.content
        if label == "c2pa.hash.data":
            _check_binding(file, cbor2.loads(content))
            bound = True
        elif label == FACTS_LABEL:
            said = cbor2.loads(content)
    if not bound:
        raise Broken("the manifest is bound to no picture")
    root = x509.load_pem_x509_certificate(root_pem.encode())
    return ("trusted" if _check_chain(certificates, root) else "valid"), said


def _check_binding(file: bytes, binding: dict[str, Any]) -> None:
    digest, place = hashlib.sha256(), 0
    store = manifest_bytes(file)
    assert store is not None
    for gap in binding["exclusions"]:
        # Nothing but the manifest may be left out.
        if gap["length"] > len(store) + 64:
            raise Broken("more than the manifest is left out of what is signed")
        digest.update(file[place : gap["start"]])
        place = gap["start"] + gap["length"]
    digest.update(file[place:])
    if digest.digest() != binding["hash"]:
        raise Broken("the picture was changed, or it is another one")


# --- on files ---------------------------------------------------------------------------------


def picture(kind: str, colour: tuple[int, int, int] = (10, 200, 30)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").rotate(colour[0]).save(file, kind)
    return file.getvalue()


def signed(marker: Marker, data: bytes, kind: str) -> bytes:
    receipt = {"seed": 7, "prompt": "un café"}
    facts = Facts(hashlib.sha256(data).hexdigest(), receipt, "2026-11-26T20:00:00Z")
    return marker.mark(data, MEDIA[kind], facts)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return development_identity(tmp_path_factory.mktemp("keys") / "marking")


@pytest.fixture(scope="module")
def marker(identity: Identity) -> Marker:
    return Marker(identity, "1.2.3")


@pytest.mark.parametrize("kind", MEDIA)
def test_every_hash_and_signature_holds(
    marker: Marker, identity: Identity, kind: str, tmp_path: Any
) -> None:
    data = picture(kind)
    state, receipt = prove(signed(marker, data, kind), identity.root)
    assert (state, receipt["prompt"]) == ("trusted", "un café")
    assert receipt["unsigned_sha256"] == hashlib.sha256(data).hexdigest()

    other = development_identity(tmp_path / "other")
    assert prove(signed(marker, data, kind), other.root)[0] == "valid"
    assert prove(signed(Marker(other, "1"), data, kind), identity.root)[0] == "valid"


@pytest.mark.parametrize("kind", MEDIA)
def test_an_edit_with_its_source_s_manifest_holds(
    marker: Marker, identity: Identity, kind: str
) -> None:
    source = Source("a" * 64, MEDIA[kind], signed(marker, picture(kind), kind))
    data = picture(kind, (90, 0, 0))
    facts = Facts(hashlib.sha256(data).hexdigest(), {"seed": 8}, "2026-11-26T20:00:00Z")
    edited = marker.mark(data, MEDIA[kind], facts, source)

    state, receipt = prove(edited, identity.root)
    assert (state, receipt["seed"]) == ("trusted", 8)
    store = manifest_bytes(edited)
    assert store is not None
    [(_, body)] = list(_boxes(store))
    assert len(_superbox(body).boxes) == 2


@pytest.mark.parametrize("kind", MEDIA)
def test_a_byte_changed_anywhere_is_found(marker: Marker, identity: Identity, kind: str) -> None:
    whole = signed(marker, picture(kind), kind)
    store = manifest_bytes(whole)
    assert store is not None
    start = whole.index(store[:64])
    inside = [
        start + whole[start:].index(text)
        for text in ("café".encode(), b"sha256", b"created_assert")
    ]
    [(_, body)] = list(_boxes(store))
    sealed = _superbox(body).boxes[-1].inner("c2pa.signature").content
    key = whole.index(sealed) + len(sealed) - 10  # in the signature itself
    outside = [start - 40 if kind != "WEBP" else 30, len(whole) - 40]
    for place in (*inside, key, *outside):
        if kind == "WEBP" and start < place < len(whole) - 8 and place in outside:
            continue  # there the manifest comes last: that is not outside
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises((Broken, ValueError, KeyError)):
            prove(bytes(changed), identity.root)


def test_removed_swapped_and_foreign_manifests_are_found(
    marker: Marker, identity: Identity
) -> None:
    mine, other = picture("PNG"), picture("PNG", (90, 0, 0))
    with pytest.raises(Broken, match="no manifest"):
        prove(mine, identity.root)
    theirs = signed(marker, other, "PNG")
    start = theirs.index(b"caBX") - 4
    chunk = theirs[start : start + 12 + int.from_bytes(theirs[start : start + 4], "big")]
    with pytest.raises(Broken, match="another one"):
        prove(mine[:33] + chunk + mine[33:], identity.root)


# --- on what leaves the backend ---------------------------------------------------------------


async def test_pictures_thumbnails_batches_and_replays_hold(
    backend: Backend, settings: Settings
) -> None:
    root = (settings.data_dir / "marking" / "root.pem").read_text()
    size = {"width": 512, "height": 512}
    for kind in ("png", "jpeg", "webp"):
        content = await backend.generate(seed=5, num_images=2, output_format=kind, **size)
        for image in content["images"]:
            for url in (image["url"], image["thumbnail_url"]):
                state, receipt = prove((await backend.http.get(url)).content, root)
                assert state == "trusted"
                assert receipt["seed"] == image["seed"]
                assert receipt["unsigned_sha256"] == image["sha256"]
    accepted = await backend.http.post(
        "/api/v1/content/batch", json={"prompts": ["a", "b"], "seed": 9}
    )
    again = await backend.http.post(f"/api/v1/content/{content['id']}/replay")
    for one in (*accepted.json()["content_ids"], again.json()["id"]):
        made = await ended(backend, one)
        state, receipt = prove((await backend.http.get(made["image_url"])).content, root)
        assert (state, receipt["content_id"]) == ("trusted", one)
