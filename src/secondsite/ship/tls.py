"""TLS 1.3 between nodes: credentials in files, contexts for listeners and for dialling."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from secondsite.durable import write_atomic
from secondsite.errors import CorruptError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.ship.certificates import load_certificate, node_id_of, save_private, utc_now


class ClientCertificates:
    """Whether a server asks for certificates of its clients."""

    NONE: Final = ssl.CERT_NONE
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
    def der(self) -> bytes:
        """The certificate in its DER form."""
        return load_certificate(self.cert_file.read_bytes()).public_bytes(Encoding.DER)

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
        try:
            expired = self.not_after
        except OSError as error:
            raise CorruptError(f"{self.cert_file} cannot be read", reason=str(error)) from error
        if expired <= utc_now():
            raise UnauthenticatedError(
                f"the certificate {self.cert_file} expired at {expired:%Y-%m-%d %H:%M} UTC",
                hint="enrol the node again with a new registration key",
                not_after=expired.isoformat(),
            )
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
            context.load_verify_locations(self.ca_file)
        except OSError as error:  # an SSLError is one, a missing file too
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
