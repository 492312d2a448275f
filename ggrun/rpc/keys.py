"""Who may use a worker: its certificate, its join token, and what clients know of workers."""

import base64
import binascii
import hmac
import json
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from errno import EACCES
from hashlib import sha256
from pathlib import Path
from typing import Any

from ggrun.errors import GgrunError, UsageError

log = logging.getLogger(__name__)
NAME = "ggrun-worker"
"""The host name in the certificates that workers make: clients know a worker by its fingerprint."""
_YEARS = 10
_TOKEN_BYTES = 32
_SHOWN = "shown"
"""The file with the hash of the key that somebody was shown."""


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


def identity(folder: Path, new_token: bool = False) -> Identity:
    """The secrets in a folder, made where there are none. GgrunError for those that are damaged."""
    certificate, private_key, token = (
        folder / name for name in ("certificate.pem", "private_key.pem", "token")
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (certificate.exists() and private_key.exists()):
            pair = _certificate()
            _write(private_key, pair[1])
            _write(certificate, pair[0])
        if new_token or not token.exists():
            _write(token, _new_token().encode() + b"\n")
        found = Identity(certificate.read_bytes(), private_key.read_bytes(), _token(token))
        check_valid(found.certificate, str(certificate))
        _check_pair(found, private_key)
    except OSError as error:
        raise _refused(folder, error) from None
    except ValueError:
        raise GgrunError(f"{certificate}: damaged: remove it, and join again") from None
    return found


def check_secrets(folder: Path) -> None:
    """GgrunError where secrets are neither kept nor can be: before anything that takes time."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not ((folder / "token").exists() or os.access(folder, os.W_OK)):
            raise PermissionError(EACCES, os.strerror(EACCES), str(folder))
    except OSError as error:
        raise _refused(folder, error) from None


def was_shown(folder: Path, key: Key) -> bool:
    """Whether somebody was shown this key: the start that made it may have failed before that."""
    with suppress(OSError):
        return (folder / _SHOWN).read_bytes() == _shown(key)
    return False


def mark_shown(folder: Path, key: Key) -> None:
    """Remember that somebody was shown this key; where that cannot be written, it is shown again."""
    with suppress(OSError):
        _write(folder / _SHOWN, _shown(key))


def _shown(key: Key) -> bytes:
    return sha256(str(key).encode()).hexdigest().encode() + b"\n"


def _new_token() -> str:
    """The join line begins its key with it: `ggrun join` would take one that begins with - for an option."""
    while (word := _word(secrets.token_bytes(_TOKEN_BYTES))).startswith("-"):
        pass
    return word


def _token(file: Path) -> bytes:
    try:
        token = _bytes(file.read_text(encoding="ascii").strip())
    except ValueError:
        token = b""
    if len(token) != _TOKEN_BYTES:
        raise GgrunError(f"{file}: damaged: remove it, and join again")
    return token


def _check_pair(found: Identity, file: Path) -> None:
    """GgrunError when the private key is not that of the certificate: gRPC would say it less clearly."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    public = x509.load_pem_x509_certificate(found.certificate).public_key()
    try:
        if load_pem_private_key(found.private_key, None).public_key() == public:
            return
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        pass
    raise GgrunError(f"{file}: damaged, or not that of certificate.pem: remove it, and join again")


def client_authorities(file: Path) -> bytes:
    """The certificates (PEM) in a file of --client-ca; GgrunError when there are none."""
    from cryptography import x509

    try:
        found = file.read_bytes()
        x509.load_pem_x509_certificates(found)
    except OSError as error:
        raise GgrunError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise GgrunError(f"{file}: has no certificates, or damaged ones (PEM is needed)") from None
    return found


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
        raise _refused(file, error) from None
    return file


def known_workers() -> dict[str, Key]:
    """The keys of all workers that were joined, by address; those that are damaged are left out."""
    file = config_home() / "workers.json"
    found = {}
    for address, key in _known(file).items():
        try:
            found[address] = _kept(file, address, key)
        except GgrunError as error:
            log.warning("%s", error)
    return found


def known_worker(address: str) -> Key | None:
    """The key of one, if it was joined; GgrunError for a damaged one."""
    file = config_home() / "workers.json"
    key = _known(file).get(address)
    return None if key is None else _kept(file, address, key)


def _kept(file: Path, address: str, key: str) -> Key:
    try:
        return Key.parse(key)
    except UsageError:
        raise GgrunError(f"{file}: the key of {address!r:.60} is damaged: join that worker again") from None


def _known(file: Path) -> Mapping[str, str]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise GgrunError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        raise GgrunError(f"{file}: damaged: remove it, and join the workers again")
    return found


def _write(file: Path, data: bytes) -> None:
    """Write a file that only the user can read; nobody sees half of it."""
    # A new file, whatever others may have put beside it.
    part = file.with_name(f".{file.name}.{secrets.randbits(63)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        error.filename = str(file)
        raise


def _refused(where: Path, error: OSError) -> GgrunError:
    """Why keys cannot be kept, and what helps."""
    return GgrunError(
        f"{error.filename or where}: {error.strerror}: GGRUN_CONFIG names another folder for keys"
    )


def _word(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(word: str) -> bytes:
    return base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
