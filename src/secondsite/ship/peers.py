"""Who is on the other end of a connection: what a certificate or a Kerberos ticket says, for as long as it holds.

Values only. `admission` decides whether they still count at each request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from secondsite.errors import SecondSiteError
from secondsite.model.ids import NodeId
from secondsite.ship.certificates import PeerCertificate


@dataclass(frozen=True, slots=True)
class PeerTicket:
    """What an accepted ticket says of the peer. `principal` is whole, with its realm."""

    node: NodeId
    principal: str
    not_after: datetime


Peer = PeerCertificate | PeerTicket


@dataclass(slots=True)
class Session:
    """What is known of one TLS connection; it lives as long as the connection and no request can write into it.

    own_certificate: ours (DER), which this very connection was opened with; a renewal does not change it.
    peer: who it is; an error is raised at each request.
    """

    own_certificate: bytes = b""
    peer: Peer | SecondSiteError | None = None
