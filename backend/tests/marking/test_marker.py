"""Signed manifests: what they say, who signed, and that any change is found."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image

from app.services.marking.keys import (
    Identity,
    UnusableKey,
    development_identity,
    operators_identity,
)
from app.services.marking.marker import (
    CHAIN_MAX_BYTES,
    EDITED,
    FACTS_LABEL,
    Facts,
    Marker,
    MarkingFailed,
    Source,
)
from app.services.marking.reading import can_be_kept, read
from app.services.marking.unsigned import without_manifest

pytestmark = pytest.mark.process


MEDIA = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def picture(kind: str = "PNG", colour: tuple[int, int, int] = (10, 200, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, kind)
    return file.getvalue()


def facts(data: bytes) -> Facts:
    receipt = {"seed": 7, "prompt": "un café", "loras": [{"sha256": "a" * 64, "scale": 0.8}]}
    return Facts(hashlib.sha256(data).hexdigest(), receipt, "2026-11-26T20:00:00Z")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return development_identity(tmp_path_factory.mktemp("keys") / "marking")


@pytest.fixture(scope="module")
def marker(identity: Identity) -> Marker:
    return Marker(identity, "1.2.3")


@pytest.mark.parametrize("kind", MEDIA)
def test_a_signed_picture_is_trusted_by_its_root_and_valid_to_everyone(
    marker: Marker, identity: Identity, kind: str
) -> None:
    plain = picture(kind)
    signed = marker.mark(plain, MEDIA[kind], facts(plain))

    trusted = read(signed, identity.root)["manifest"]
    assert (trusted["state"], trusted["problems"]) == ("trusted", [])
    assert trusted["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    assert trusted["facts"]["prompt"] == "un café"
    assert trusted["facts"]["unsigned_sha256"] == hashlib.sha256(plain).hexdigest()
    assert trusted["generator"] == "modal-sdxl-lora"
    assert read(signed, "")["manifest"]["state"] == "valid"
    assert len(signed) - len(plain) < 10_000
    with Image.open(io.BytesIO(signed)) as one, Image.open(io.BytesIO(plain)) as other:
        assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def test_a_png_without_its_manifest_is_the_picture_that_was_signed(marker: Marker) -> None:
    plain = picture()
    signed = marker.mark(plain, "image/png", facts(plain))

    assert without_manifest(signed) == plain
    assert without_manifest(plain) == plain
    assert read(signed, "")["unsigned_sha256"] == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("where", ["in the picture", "in what the manifest says"])
def test_a_changed_byte_is_found(marker: Marker, identity: Identity, kind: str, where: str) -> None:
    plain = picture(kind)
    signed = bytearray(marker.mark(plain, MEDIA[kind], facts(plain)))
    if where == "in the picture":
        data = plain[-14:-10]  # of the last piece of picture data, whatever the format
        signed[signed.rindex(data)] ^= 1
    else:
        signed[signed.index("café".encode())] ^= 1

    report = read(bytes(signed), identity.root)

    assert "refused" in report or report["manifest"]["state"] == "invalid"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])  # a PNG's checksums find it
def test_what_is_written_where_no_signature_covers_it_is_found(
    marker: Marker, identity: Identity, kind: str
) -> None:
    signed = marker.mark(picture(kind), MEDIA[kind], facts(picture(kind)))
    padding = signed.index(b"cpad", signed.rindex(b"c2pa.signature\0")) + 7
    for place in (padding, padding + 500):
        changed = bytearray(signed)
        changed[place] ^= 1
        manifest = read(bytes(changed), identity.root)["manifest"]
        assert manifest["state"] == "invalid"
        assert "changed after it was signed" in manifest["problems"][0]
        assert not manifest["receipt_is_signed"]


def test_a_removed_manifest_is_not_there(marker: Marker, identity: Identity) -> None:
    signed = marker.mark(picture(), "image/png", facts(picture()))
    again = io.BytesIO()
    with Image.open(io.BytesIO(signed)) as opened:
        opened.save(again, "PNG")

    assert read(again.getvalue(), identity.root)["manifest"] is None


def test_another_picture_s_manifest_is_found(marker: Marker, identity: Identity) -> None:
    mine, other = picture(), picture(colour=(200, 10, 30))
    signed = marker.mark(other, "image/png", facts(other))
    start = signed.index(b"caBX") - 4
    end = start + 12 + int.from_bytes(signed[start : start + 4], "big")
    after_header = 8 + 25  # signature and IHDR
    swapped = mine[:after_header] + signed[start:end] + mine[after_header:]

    manifest = read(swapped, identity.root)["manifest"]

    assert manifest["state"] == "invalid"
    assert "belongs to another picture" in manifest["problems"][0]


def test_a_stranger_s_signature_is_valid_but_not_trusted(
    marker: Marker, identity: Identity, tmp_path: Path
) -> None:
    stranger = Marker(development_identity(tmp_path / "other"), "1")
    manifest = read(stranger.mark(picture(), "image/png", facts(picture())), identity.root)

    assert manifest["manifest"]["state"] == "valid"
    assert "not one that this server trusts" in manifest["manifest"]["problems"][0]


@pytest.fixture(scope="module")
def source(marker: Marker) -> bytes:
    plain = picture("JPEG")
    return marker.mark(plain, "image/jpeg", facts(plain))


def edit(marker: Marker, file: bytes | None, kind: str = "image/jpeg", **changes: Any) -> bytes:
    made_of = Source("a" * 64, kind, file)
    return marker.mark(picture(), "image/png", replace(facts(picture()), **changes), made_of)


def ingredient(signed: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """A picture's source as its manifest names it, and every manifest in the file."""
    store = json.loads(c2pa.Reader("image/png", io.BytesIO(signed)).json())
    [found] = store["manifests"][store["active_manifest"]]["ingredients"]
    return found, store["manifests"]


def test_what_was_made_from_a_picture_keeps_that_picture_s_manifest(
    marker: Marker, identity: Identity, source: bytes
) -> None:
    edited = edit(marker, source)

    manifest = read(edited, identity.root)["manifest"]
    assert (manifest["state"], manifest["problems"]) == ("trusted", [])
    assert manifest["made_from_a_picture"]
    assert manifest["digital_source_type"] == EDITED
    parent, manifests = ingredient(edited)
    assert (parent["relationship"], parent["instance_id"]) == ("parentOf", "urn:sha256:" + "a" * 64)
    kept = manifests[parent["active_manifest"]]
    labels = {assertion["label"] for assertion in kept["assertions"]}
    assert FACTS_LABEL in labels
    assert len(edited) - len(picture()) < 10_000


def test_an_action_says_what_was_done(marker: Marker, source: bytes) -> None:
    for action in ("c2pa.edited", "c2pa.resized"):
        _, manifests = ingredient(edit(marker, source, action=action))
        told = [
            one["action"]
            for manifest in manifests.values()
            for assertion in manifest["assertions"]
            if assertion["label"] == "c2pa.actions.v2"
            for one in assertion["data"]["actions"]
        ]
        assert sorted(told) == sorted(["c2pa.created", "c2pa.opened", action])


def test_a_stranger_s_manifest_is_kept_as_it_is(
    marker: Marker, identity: Identity, tmp_path: Path
) -> None:
    stranger = Marker(development_identity(tmp_path / "other"), "1")
    theirs = stranger.mark(picture("JPEG"), "image/jpeg", facts(picture("JPEG")))
    edited = edit(marker, theirs)
    manifest = read(edited, identity.root)["manifest"]
    assert (manifest["state"], manifest["problems"]) == ("trusted", [])
    assert not manifest["signed_by_a_stranger"]
    assert len(ingredient(edited)[1]) == 2


def test_a_source_that_was_changed_after_it_was_signed_is_told(
    marker: Marker, identity: Identity, source: bytes
) -> None:
    changed = bytearray(source)
    changed[-14] ^= 1
    edited = edit(marker, bytes(changed))
    manifest = read(edited, identity.root)["manifest"]
    assert (manifest["state"], manifest["problems"]) == ("trusted", [])
    parent, _ = ingredient(edited)
    failures = parent["validation_results"]["activeManifest"]["failure"]
    assert "assertion.dataHash.mismatch" in {failure["code"] for failure in failures}


@pytest.mark.parametrize("how", ["no file", "no manifest", "overwritten", "cut off", "no picture"])
def test_a_source_whose_manifest_cannot_be_kept_is_named_by_its_hash(
    marker: Marker, identity: Identity, source: bytes, how: str
) -> None:
    begins = source.index(b"jumb")
    file = {
        "no file": None,
        "no manifest": picture("JPEG"),
        "overwritten": source[: begins + 40] + bytes(600) + source[begins + 640 :],
        "cut off": source[: begins + 900],
        "no picture": b"jumb" + bytes(90),
    }[how]
    is_kept = file is not None and can_be_kept(file, "image/jpeg")
    assert not is_kept
    edited = edit(marker, file if is_kept else None)
    assert read(edited, identity.root)["manifest"]["state"] == "trusted"
    parent, manifests = ingredient(edited)
    assert parent["instance_id"] == "urn:sha256:" + "a" * 64
    assert len(manifests) == 1


def test_manifests_of_edits_of_edits_do_not_grow_for_ever(
    marker: Marker, identity: Identity
) -> None:
    file, sizes, depths = marker.mark(picture(), "image/png", facts(picture())), [], []
    for _ in range(12):
        file = edit(marker, file, "image/png")
        assert read(file, identity.root)["manifest"]["state"] == "trusted"
        sizes.append(len(file) - len(picture()))
        depths.append(len(ingredient(file)[1]))
    assert max(sizes) <= CHAIN_MAX_BYTES
    assert max(depths) >= 4
    assert depths.count(1) >= 2  # named by its hash, and begun anew


def test_a_manifest_that_can_be_kept_leaves_the_picture_above_doubt(
    marker: Marker, identity: Identity, source: bytes
) -> None:
    """What is answered on a small picture holds for others, wherever the source was damaged."""
    begins, kept = source.index(b"jumb"), set()
    for place in range(begins - 4, begins + 3600, 397):
        damaged = bytearray(source)
        damaged[place] ^= 1
        if marker.can_keep(Source("a" * 64, "image/jpeg", bytes(damaged))):
            edited = edit(marker, bytes(damaged))
            assert read(edited, identity.root)["manifest"]["state"] == "trusted"
            kept.add(len(ingredient(edited)[1]))
    assert kept == {2}  # and none was dropped again


def test_the_root_stays_and_an_expiring_signer_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = development_identity(tmp_path / "keys")
    assert development_identity(tmp_path / "keys") == first
    old = Marker(first, "1").mark(picture(), "image/png", facts(picture()))
    monkeypatch.setattr("app.services.marking.keys._RENEW_DAYS", 400)

    renewed = development_identity(tmp_path / "keys")

    assert (renewed.root, renewed.key != first.key) == (first.root, True)
    assert read(old, renewed.root)["manifest"]["state"] == "trusted"
    for file in (tmp_path / "keys").iterdir():
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.process
def test_an_operator_s_key_signs_as_a_file_and_as_a_command(
    identity: Identity, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_text(identity.certificates)
    key.write_text(identity.key)
    program = tmp_path / "kms.py"
    program.write_text(
        "import sys\n"
        "from backend_kms import sign\n"
        "sys.stdout.buffer.write(sign(sys.stdin.buffer.read()))\n"
    )
    (tmp_path / "backend_kms.py").write_text(
        "from cryptography.hazmat.primitives import hashes, serialization\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature\n"
        f"KEY = serialization.load_pem_private_key(open({str(key)!r}, 'rb').read(), None)\n"
        "def sign(data):\n"
        "    r, s = decode_dss_signature(KEY.sign(data, ec.ECDSA(hashes.SHA256())))\n"
        "    return r.to_bytes(32, 'big') + s.to_bytes(32, 'big')\n"
    )
    by_file = operators_identity(certificate, key)
    by_command = operators_identity(certificate, None, f"{sys.executable} {program}")

    for who in (by_file, by_command):
        assert not who.is_development
        signed = Marker(who, "1").mark(picture(), "image/png", facts(picture()))
        assert read(signed, identity.root)["manifest"]["state"] == "trusted"


def test_an_unusable_key_is_named(identity: Identity, tmp_path: Path) -> None:
    certificate, other = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_text(identity.certificates)
    other.write_text(development_identity(tmp_path / "other").key)

    with pytest.raises(UnusableKey, match=r"k\.pem is not the key of the certificate in c\.pem"):
        operators_identity(certificate, other)
    with pytest.raises(UnusableKey, match=r"gone\.pem cannot be read"):
        operators_identity(tmp_path / "gone.pem", other)
    with pytest.raises(UnusableKey, match=r"k\.pem holds no PEM certificate"):
        operators_identity(other, other)


def test_what_is_no_picture_is_refused(marker: Marker) -> None:
    with pytest.raises(MarkingFailed):
        marker.mark(b"<svg/>", "image/png", facts(b""))


def test_servers_that_start_at_the_same_moment_share_one_identity(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: development_identity(tmp_path / "marking"), range(8)))

    assert len(set(map(str, made))) == 1
