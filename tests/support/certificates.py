"""A certificate authority for the tests and the fault injection; it signs valid and invalid certificates."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

Key: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
DAY = datetime.timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Files:
    """PEM files of a certificate and its private key."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """The server flags that select this certificate."""
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def replace(self, other: Files) -> None:
        """Replaces both files as an operator does: one after the other, each atomically."""
        for current, replacement in ((self.cert, other.cert), (self.key, other.key)):
            fresh = current.with_suffix(".fresh")
            fresh.write_bytes(replacement.read_bytes())
            fresh.rename(current)


class Authority:
    """Issues certificates for 127.0.0.1 and localhost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._builder(self._name, self._key, -DAY, 30 * DAY).add_extension(constraints, critical=True)
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        self.cert = folder / "authority.pem"
        self.cert.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 30 * DAY,
        password: bytes | None = None,
        key: Key | None = None,
    ) -> Files:
        """Issues a certificate.

        Args:
            name: Common name, and the stem of the files.
            begins: Start of its validity, relative to now.
            ends: End of its validity, relative to now.
            password: Encrypts the key file.
            key: Private key; by default a new P-256 key.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        builder = self._builder(subject, key, begins, ends).add_extension(names, critical=False)
        files = Files(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        files.cert.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files.key.touch(0o600)
        files.key.write_bytes(key.private_bytes(encoding, form, protection))
        return files

    def _builder(
        self,
        subject: x509.Name,
        key: Key,
        begins: datetime.timedelta,
        ends: datetime.timedelta,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            # Required by the strict verification of Python 3.13.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
