"""Who may use a worker: its certificate, its join token, and what clients know of workers."""

import base64
import binascii
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from ggrun.errors import GgrunError, UsageError

NAME = "ggrun-worker"
"""The host name in the certificates that workers make: clients know a worker by its fingerprint."""
_YEARS = 10
_TOKEN_BYTES = 32


def config_home() -> Path:
    """Where secrets are kept: GGRUN_CONFIG, or in the user's folder; GgrunError if there is none."""
    if own := os.environ.get("GGRUN_CONFIG"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ggrun"
    except RuntimeError:
        raise GgrunError("this user has no home folder: set GGRUN_CONFIG to one for keys") from None


@dataclass(frozen=True)
class Key:
    """What a client must know of a worker, in one word: the join token and the certificate's fingerprint."""

    token: bytes
    fingerprint: bytes

    def __str__(self) -> str:
        return f"{_word(self.token)}.{_word(self.fingerprint)}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """UsageError for what is no key."""
        try:
            token, fingerprint = (_bytes(part) for part in text.strip().split("."))
        except (ValueError, binascii.Error):
            token = fingerprint = b""
        if (len(token), len(fingerprint)) != (_TOKEN_BYTES, 32):
            raise UsageError("that is no key of a worker: paste the whole line that ggrun worker printed")
        return cls(token, fingerprint)


# ---------------------------------------------------------------- the worker's side


@dataclass(frozen=True)
class Identity:
    """A worker's own secrets: certificate and private key as PEM, and the join token."""

    certificate: bytes
    private_key: bytes
    token: bytes

    @property
    def key(self) -> Key:
        """What clients are told."""
        return Key(self.token, fingerprint(self.certificate))

    def knows(self, token: bytes) -> bool:
        """Whether it is the token; takes the same time for all that are as long."""
        return hmac.compare_digest(self.token, token)


def identity(folder: Path, new_token: bool = False) -> tuple[Identity, bool]:
    """The secrets in a folder, made where there are none; and whether clients need to be told a new key."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate, private_key = folder / "certificate.pem", folder / "private_key.pem"
        new_pair = not (certificate.exists() and private_key.exists())
        if new_pair:
            pair = _certificate()
            _write(private_key, pair[1])
            _write(certificate, pair[0])
        token = folder / "token"
        new_token = new_token or not token.exists()
        if new_token:
            _write(token, _word(secrets.token_bytes(_TOKEN_BYTES)).encode() + b"\n")
        known = _bytes(token.read_text(encoding="ascii").strip())
        if len(known) != _TOKEN_BYTES:
            raise ValueError("not a token")
        found = Identity(certificate.read_bytes(), private_key.read_bytes(), known)
        check_valid(found.certificate, str(certificate))
    except OSError as error:
        raise GgrunError(f"{error.filename or folder}: {error.strerror}") from None
    except (ValueError, binascii.Error):
        raise GgrunError(
            f"{folder}: the token or the certificate is damaged: remove it, and join again"
        ) from None
    return found, new_pair or new_token


def _certificate() -> tuple[bytes, bytes]:
    """A self-made certificate and its private key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return made.public_bytes(pem), private.private_bytes(pem, pkcs8, serialization.NoEncryption())


def fingerprint(certificate: bytes) -> bytes:
    """The SHA-256 of a certificate given as PEM."""
    from ssl import PEM_cert_to_DER_cert

    return sha256(PEM_cert_to_DER_cert(certificate.decode("ascii"))).digest()


def check_valid(certificate: bytes, whose: str, advice: str = "make the worker a new one") -> None:
    """GgrunError when a certificate's time is over or has not come; ValueError when it is none."""
    from cryptography import x509

    found, now = x509.load_pem_x509_certificate(certificate), datetime.now(UTC)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        span = f"{found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d}"
        raise GgrunError(f"{whose}: the certificate is valid from {span}: {advice}")


# ---------------------------------------------------------------- the client's side


def join(address: str, key: Key) -> Path:
    """Remember a worker's key; the file."""
    file = config_home() / "workers.json"
    known = {**_known(file), address: str(key)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(file, json.dumps(known, indent=2).encode())
    except OSError as error:
        raise GgrunError(f"{error.filename or file}: {error.strerror}") from None
    return file


def known_workers() -> dict[str, Key]:
    """The keys of all workers that were joined, by address."""
    return {address: Key.parse(key) for address, key in _known(config_home() / "workers.json").items()}


def _known(file: Path) -> Mapping[str, str]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise GgrunError(f"{file}: cannot be read: {error}") from None
    if not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        raise GgrunError(f"{file}: damaged: remove it, and join the workers again")
    return found


def _write(file: Path, data: bytes) -> None:
    """Write a file that only the user can read; nobody sees half of it."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    part.replace(file)


def _word(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(word: str) -> bytes:
    return base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
