"""The vault's certificate authority. What its certificates promise stands in `identity`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secondsite.durable import write_atomic
from secondsite.errors import CorruptError, InvalidInputError
from secondsite.model.ids import NodeId
from secondsite.ship.certificates import (
    SERVICE,
    Clock,
    fingerprint_of,
    key_pem,
    load_certificate,
    make_key_and_csr,
    parse_node_id,
    save_private,
    utc_now,
)
from secondsite.ship.tls import Credentials

CA_VALIDITY: Final = timedelta(days=3653)
NODE_VALIDITY: Final = timedelta(days=397)
"""Longer than a service may stay down: replication must outlive it without a renewal."""
CLOCK_SKEW: Final = timedelta(hours=1)
"""A certificate is valid from so long before it was issued, for machines whose clock is behind."""

_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class CertificateAuthority:
    """The vault's authority. Whoever holds its key can be any node: it stays on the service's machine."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def create(
        cls, name: str, *, validity: timedelta = CA_VALIDITY, clock: Clock = utc_now
    ) -> CertificateAuthority:
        """Return a new authority; nothing is written."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Second Site"),
                x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
            ]
        )
        now = clock()
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key, clock)

    @classmethod
    def load(cls, cert_file: Path, key_file: Path, *, clock: Clock = utc_now) -> CertificateAuthority:
        """Read an authority back; CorruptError if the two files are no pair."""
        certificate = load_certificate(cert_file.read_bytes())
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise CorruptError(f"{key_file} holds no usable private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CorruptError(f"{key_file} is not the key of {cert_file}")
        return cls(certificate, key, clock)

    def save(self, cert_file: Path, key_file: Path) -> None:
        """Write both files, the key first and with mode 0600."""
        save_private(key_file, key_pem(self._key))
        write_atomic(cert_file, self.pem, mode=0o644)

    @property
    def pem(self) -> bytes:
        """The authority's certificate, which everyone may have."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """See `ca_fingerprint`."""
        return fingerprint_of(self._certificate)

    def issue(
        self,
        csr: bytes,
        node: NodeId,
        *,
        names: Sequence[str] = (),
        validity: timedelta = NODE_VALIDITY,
    ) -> bytes:
        """Return a certificate (PEM) for the request's key in the name of `node`.

        `names` are further DNS names or IP addresses by which people reach it. The request's own names and
        extensions are ignored: only its key is taken, once its signature proved that the asker holds it.

        Raises:
            InvalidInputError: the request does not parse or is not signed by its key; a name is malformed, or
                could be another node's id.
        """
        request = _load_csr(csr)
        now = self._clock()
        public = request.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, parse_node_id(node))]))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + validity, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(_general_names(node, names)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue_credentials(
        self,
        node: NodeId,
        folder: Path,
        *,
        names: Sequence[str] = (),
        validity: timedelta = NODE_VALIDITY,
    ) -> Credentials:
        """Make a key, issue its certificate and write node.key, node.pem and ca.pem into `folder`."""
        key, csr = make_key_and_csr(node)
        certificate = self.issue(csr, node, names=names, validity=validity)
        return Credentials.write(folder, key=key, certificate=certificate, ca=self.pem)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_csr(pem: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(pem)
        valid = request.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise InvalidInputError("the certificate request does not parse") from error
    key = request.public_key()
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInputError("the certificate request must be signed by its own P-256 key")
    return request


def _general_names(node: NodeId, names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = [x509.DNSName(node)]
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        except ValueError:
            lower = name.lower()
        if lower == node:
            continue
        # A node's id has no dot. Without this rule a node with the name of another could answer in its place.
        if not _DNS_NAME.fullmatch(lower) or (node != SERVICE and "." not in lower and lower != "localhost"):
            raise InvalidInputError(
                f"{name!r} is no name for a node's certificate", hint="use a full host name"
            )
        found.append(x509.DNSName(lower))
    return found
