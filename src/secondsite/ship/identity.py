"""Who is who: the vault's certificate authority, the certificates of nodes and of the service, TLS contexts.

Promises:

- A certificate names exactly one node: its subject's common name, which also stands among the DNS names. Every
  other name is an address for people and must not look like a node's id, so no node can pass for another.
- Clients check the *node id* of the server, whatever address they dialled: an address that moved, or that another
  machine took over, is noticed.
- TLS 1.3 only. No session tickets: each connection proves its key again, so a revocation bites at once.
- Private keys are written with mode 0600 and are never part of an exception or a log line.

The parts live in `certificates` (names, keys, reading), `authority` (issuing) and `tls` (credentials, contexts).
It does not decide who may have a certificate (the service does, at enrolment) and keeps no list of revocations
(the server takes a callable).
"""

from __future__ import annotations

from secondsite.ship.authority import (
    CA_VALIDITY,
    NODE_VALIDITY,
    CertificateAuthority,
)
from secondsite.ship.certificates import (
    SERVICE,
    Clock,
    PeerCertificate,
    ca_fingerprint,
    load_certificate,
    make_key_and_csr,
    node_id_of,
    parse_node_id,
    peer_certificate,
    save_private,
    utc_now,
)
from secondsite.ship.tls import (
    CaOnly,
    ClientCertificates,
    Credentials,
)

__all__ = [
    "CA_VALIDITY",
    "NODE_VALIDITY",
    "SERVICE",
    "CaOnly",
    "CertificateAuthority",
    "ClientCertificates",
    "Clock",
    "Credentials",
    "PeerCertificate",
    "ca_fingerprint",
    "load_certificate",
    "make_key_and_csr",
    "node_id_of",
    "parse_node_id",
    "peer_certificate",
    "save_private",
    "utc_now",
]
