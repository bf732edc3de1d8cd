"""Whose signature a picture carries: the operator's certificate, or a development root of our own.

Duty: certificate chain, private key (or a command that signs, for a key in a KMS) and algorithm.
Must not know: pictures, manifests, settings.

Certificates as C2PA 2.x asks of a claim signer: a leaf with the extended key usage for claim
signing, digital signatures only, and the root not among the certificates that are sent along.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

# id-kp-c2paClaimSigning (C2PA specification 2.x, section 14.5).
_CLAIM_SIGNING = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
_EMAIL_PROTECTION = x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION
_ORGANISATION = "modal-sdxl-lora (development)"
_ROOT_DAYS = 3650
_LEAF_DAYS = 365
_RENEW_DAYS = 60
_SIGN_SECONDS = 20.0


class UnusableKey(Exception):
    """No picture can be signed with what was given; the message says which file and why."""


@dataclass(frozen=True)
class Identity:
    """Who signs.

    Attributes:
        certificates: PEM, the signer's own first, without the root.
        key: PEM of the private key; empty where `sign` is used.
        algorithm: C2PA's name, such as es256.
        root: PEM of the development root; empty with the operator's own certificate.
        sign: bytes → raw signature, for a key that is not here.
    """

    certificates: str
    key: str
    algorithm: str
    root: str = ""
    sign: Callable[[bytes], bytes] | None = None

    @property
    def is_development(self) -> bool:
        """Whether nobody but this installation trusts the signature."""
        return bool(self.root)


def operators_identity(
    certificate: Path, key: Path | None, sign_command: str | None = None
) -> Identity:
    """The operator's certificate with its key, or with the command that signs.

    Raises:
        UnusableKey: a file is unreadable, expired or for another key.
    """
    chain = _read(certificate)
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError) as error:
        raise UnusableKey(f"{certificate.name} holds no PEM certificate") from error
    if leaf.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise UnusableKey(f"the certificate in {certificate.name} has expired")
    algorithm = _algorithm(leaf.public_key())
    if sign_command is not None:
        return Identity(chain.decode(), "", algorithm, sign=_by_command(sign_command))
    if key is None:
        raise UnusableKey(f"{certificate.name} needs MARKING_KEY_FILE or MARKING_SIGN_COMMAND")
    secret = _read(key)
    try:
        private = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise UnusableKey(f"{key.name} holds no PEM private key without a password") from error
    if _public_bytes(private.public_key()) != _public_bytes(leaf.public_key()):
        raise UnusableKey(f"{key.name} is not the key of the certificate in {certificate.name}")
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(chain.decode(), pem.decode(), algorithm)


def development_identity(folder: Path) -> Identity:
    """A root of this installation's own and a signer below it, made in `folder` where missing.

    The root stays the same, so that what was signed before stays recognised; the signer is renewed
    before it expires.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Servers on one DATA_DIR may start at the same moment: a key of one with the certificate of
    # another would sign nothing ever after.
    with open(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made_or_kept(folder)


def _made_or_kept(folder: Path) -> Identity:
    root_key_file, root_file = folder / "root.key", folder / "root.pem"
    if not root_file.exists():
        root_key = ec.generate_private_key(ec.SECP256R1())
        name = _name("development root")
        _write(root_key_file, _private_pem(root_key))
        _write(root_file, _pem(_certificate(name, root_key.public_key(), name, root_key, True)))
    root = x509.load_pem_x509_certificate(root_file.read_bytes())
    leaf_key_file, leaf_file = folder / "signer.key", folder / "signer.pem"
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=_RENEW_DAYS)
    if (
        not leaf_file.exists()
        or x509.load_pem_x509_certificate(leaf_file.read_bytes()).not_valid_after_utc < soon
    ):
        issuer = serialization.load_pem_private_key(root_key_file.read_bytes(), None)
        assert isinstance(issuer, ec.EllipticCurvePrivateKey)
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(_name("signer"), leaf_key.public_key(), root.subject, issuer, False)
        _write(leaf_key_file, _private_pem(leaf_key))
        _write(leaf_file, _pem(leaf))
    return Identity(
        leaf_file.read_text(), leaf_key_file.read_text(), "es256", root=root_file.read_text()
    )


def _by_command(command: str) -> Callable[[bytes], bytes]:
    arguments = shlex.split(command)

    def sign(data: bytes) -> bytes:
        done = subprocess.run(
            arguments, input=data, capture_output=True, timeout=_SIGN_SECONDS, check=False
        )
        if done.returncode != 0 or not done.stdout:
            raise UnusableKey("MARKING_SIGN_COMMAND gave no signature")
        return done.stdout

    return sign


def _algorithm(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        names = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if key.curve.name in names:
            return names[key.curve.name]
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        return "ps256"
    raise UnusableKey("the certificate's key must be P-256, P-384, P-521, Ed25519 or RSA")


def _certificate(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    is_root: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    days = _ROOT_DAYS if is_root else _LEAF_DAYS
    usage = {
        "digital_signature": not is_root, "key_cert_sign": is_root, "crl_sign": is_root,
        "content_commitment": False, "key_encipherment": False, "data_encipherment": False,
        "key_agreement": False, "encipher_only": False, "decipher_only": False,
    }  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not is_root:
        # Readers of before C2PA 2.x know claim signing by the older of the two.
        usages = x509.ExtendedKeyUsage([_CLAIM_SIGNING, _EMAIL_PROTECTION])
        builder = builder.add_extension(usages, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_bytes(key: object) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, kind)  # type: ignore[attr-defined]
    return encoded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableKey(f"{path.name} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    part.replace(path)
