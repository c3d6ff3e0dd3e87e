"""Who is who: the vault's certificate authority, the certificates of nodes and of the service, TLS contexts.

Promises:

- A certificate names exactly one node: its subject's common name, which also stands among the DNS names. Every
  other name is an address for people and must not look like a node's id, so no node can pass for another.
- Clients check the *node id* of the server, whatever address they dialled: an address that moved, or that another
  machine took over, is noticed.
- TLS 1.3 only. No session tickets: each connection proves its key again, so a revocation bites at once.
- Private keys are written with mode 0600 and are never part of an exception or a log line.

It does not decide who may have a certificate (the service does, at enrolment) and keeps no list of revocations
(the server takes a callable).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secondsite.durable import write_atomic
from secondsite.errors import CorruptError, InvalidInputError, UnauthenticatedError
from secondsite.model.ids import NodeId

SERVICE: Final = NodeId("service")
"""The name of the control plane in its own certificate; nodes have other ids."""

CA_VALIDITY: Final = timedelta(days=3653)
NODE_VALIDITY: Final = timedelta(days=397)
"""Longer than a service may stay down: replication must outlive it without a renewal."""
CLOCK_SKEW: Final = timedelta(hours=1)
"""A certificate is valid from so long before it was issued, for machines whose clock is behind."""

_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of this machine; the default clock of this package."""
    return datetime.now(UTC)


def parse_node_id(text: object) -> NodeId:
    """Return `text` as a node id: one DNS label in lower case (a UUID is one)."""
    if not isinstance(text, str) or not _NODE_ID.fullmatch(text) or text == "localhost":
        raise InvalidInputError(f"not a node id: {text!r}", hint="expected one DNS label in lower case")
    return NodeId(text)


# -- keys and requests --------------------------------------------------------------------------------------


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
    return _key_pem(key), csr.public_bytes(serialization.Encoding.PEM)


def save_private(path: Path, pem: bytes) -> None:
    """Write a private key with mode 0600, durably."""
    write_atomic(path, pem, mode=0o600)


# -- the authority ------------------------------------------------------------------------------------------


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
        save_private(key_file, _key_pem(self._key))
        write_atomic(cert_file, self.pem, mode=0o644)

    @property
    def pem(self) -> bytes:
        """The authority's certificate, which everyone may have."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """See `ca_fingerprint`."""
        return _fingerprint(self._certificate)

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


# -- certificates -------------------------------------------------------------------------------------------


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
    return _fingerprint(load_certificate(pem))


def load_certificate(pem: bytes) -> x509.Certificate:
    """Parse the first certificate of `pem`; CorruptError if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CorruptError("this is not a certificate in PEM form") from error


# -- TLS ----------------------------------------------------------------------------------------------------


class ClientCertificates:
    """Whether a server asks for certificates of its clients."""

    REQUIRED: Final = ssl.CERT_REQUIRED
    OPTIONAL: Final = ssl.CERT_OPTIONAL


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's own certificate and key, and the authority it trusts. Files, so that a renewal is a rename."""

    cert_file: Path
    key_file: Path
    ca_file: Path

    @classmethod
    def write(cls, folder: Path, *, key: bytes, certificate: bytes, ca: bytes) -> Credentials:
        """Write node.key (0600), node.pem and ca.pem into `folder` and return them."""
        folder.mkdir(parents=True, exist_ok=True)
        credentials = cls(folder / "node.pem", folder / "node.key", folder / "ca.pem")
        save_private(credentials.key_file, key)
        write_atomic(credentials.ca_file, ca, mode=0o644)
        write_atomic(credentials.cert_file, certificate, mode=0o644)
        return credentials

    @property
    def node(self) -> NodeId:
        """The node that these credentials speak for."""
        return node_id_of(self.cert_file.read_bytes())

    @property
    def not_after(self) -> datetime:
        """When the certificate expires."""
        return load_certificate(self.cert_file.read_bytes()).not_valid_after_utc

    def renewal_due(self, now: datetime) -> bool:
        """Whether less than a third of the certificate's life is left."""
        certificate = load_certificate(self.cert_file.read_bytes())
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now > certificate.not_valid_after_utc - life / 3

    def server_context(
        self, client_certificates: ssl.VerifyMode = ClientCertificates.REQUIRED
    ) -> ssl.SSLContext:
        """Return a context for a listener. OPTIONAL lets clients in without a certificate, never with a bad one."""
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = client_certificates
        context.num_tickets = 0
        self._load_into(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context for dialling a node or the service; pass its node id as `server_hostname`."""
        context = _client_context()
        self._load_into(context)
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        expired = self.not_after
        if expired <= utc_now():
            raise UnauthenticatedError(
                f"the certificate {self.cert_file} expired at {expired:%Y-%m-%d %H:%M} UTC",
                hint="enrol the node again with a new registration key",
                not_after=expired.isoformat(),
            )
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
            context.load_verify_locations(self.ca_file)
        except ssl.SSLError as error:
            raise CorruptError(
                f"{self.cert_file}, {self.key_file} and {self.ca_file} do not belong together",
                reason=str(error),
            ) from error


@dataclass(frozen=True, slots=True)
class CaOnly:
    """Trust in an authority without a certificate of one's own: what a node has before it is enrolled."""

    ca_pem: bytes

    def client_context(self) -> ssl.SSLContext:
        """Return a context that checks the server and shows nothing."""
        context = _client_context()
        try:
            context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise CorruptError("the authority's certificate does not load", reason=str(error)) from error
        return context


def _client_context() -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


# -- small parts --------------------------------------------------------------------------------------------


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ValueError("not exactly one common name")
    return str(names[0].value)


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
