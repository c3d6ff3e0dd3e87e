"""Names, keys and certificates: making requests, reading certificates. No authority and no connection here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secondsite.durable import write_atomic
from secondsite.errors import CorruptError, InvalidInputError, UnauthenticatedError
from secondsite.model.ids import NodeId

SERVICE: Final = NodeId("service")
"""The name of the control plane in its own certificate; nodes have other ids."""

_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of this machine; the default clock of this package."""
    return datetime.now(UTC)


def parse_node_id(text: object) -> NodeId:
    """Return `text` as a node id: one DNS label in lower case (a UUID is one)."""
    if not isinstance(text, str) or not _NODE_ID.fullmatch(text) or text == "localhost":
        raise InvalidInputError(f"not a node id: {text!r}", hint="expected one DNS label in lower case")
    return NodeId(text)


def make_key_and_csr(name: str) -> tuple[bytes, bytes]:
    """Return a new P-256 private key and a request for its certificate, both PEM.

    The request's name is a remark: the authority sets the names itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64] or "node")]))
        .sign(key, hashes.SHA256())
    )
    return key_pem(key), csr.public_bytes(serialization.Encoding.PEM)


def save_private(path: Path, pem: bytes) -> None:
    """Write a private key with mode 0600, durably."""
    write_atomic(path, pem, mode=0o600)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, unencrypted: its file's mode guards it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a verified certificate says of the peer."""

    node: NodeId
    serial: int
    not_after: datetime


def peer_certificate(der: bytes) -> PeerCertificate:
    """Return what the certificate of a peer says.

    Only for bytes that TLS has verified already (`getpeercert(binary_form=True)`): the signature is not looked
    at here. UnauthenticatedError if the certificate names no node in the way that this authority issues them.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        node = parse_node_id(_common_name(certificate))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, InvalidInputError) as error:
        raise UnauthenticatedError("the peer's certificate names no node", reason=str(error)) from error
    if node not in names.get_values_for_type(x509.DNSName):
        raise UnauthenticatedError("the peer's certificate is inconsistent about its node", node=node)
    return PeerCertificate(node, certificate.serial_number, certificate.not_valid_after_utc)


def node_id_of(pem: bytes) -> NodeId:
    """Return the node that a certificate (PEM) was issued to."""
    return peer_certificate(load_certificate(pem).public_bytes(serialization.Encoding.DER)).node


def ca_fingerprint(pem: bytes) -> str:
    """Return the SHA-256 of the certificate's DER form as 64 hexadecimal digits: what a registration key pins."""
    return fingerprint_of(load_certificate(pem))


def load_certificate(pem: bytes) -> x509.Certificate:
    """Parse the first certificate of `pem`; CorruptError if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CorruptError("this is not a certificate in PEM form") from error


def fingerprint_of(certificate: x509.Certificate) -> str:
    """See `ca_fingerprint`."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ValueError("not exactly one common name")
    return str(names[0].value)
