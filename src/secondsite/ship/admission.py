"""The check at the door of every request: who is it, and does that still hold?

Promises:

- The identity is the connection's: a client certificate that TLS has verified, or a Kerberos ticket that was accepted
  on this very connection. No header but a valid ticket makes one.
- A certificate or ticket that has expired meanwhile, a revoked certificate, a node that was removed from the vault, a principal
  that stands for nobody any more: refused at the next request, also on a connection that is open already; the connection then ends.
- A connection has one identity for its life. A second one on it is refused.

Connection-based authentication (as HTTP's Negotiate is used everywhere) is unsafe behind a proxy that shares its connections
between clients; the required channel binding makes such a proxy impossible: its certificate is not ours.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final, Protocol

from secondsite.errors import ForbiddenError, SecondSiteError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.ship.certificates import Clock, PeerCertificate
from secondsite.ship.peers import Peer, PeerTicket, Session
from secondsite.ship.routing import CLOSE_KEY, PEER_KEY, Environ, StartResponse, WsgiApp, error_response

SESSION_KEY: Final = "secondsite.session"
"""Environment key of the connection's Session."""
_SCHEME: Final = "negotiate"


class Negotiator(Protocol):
    """Takes the tickets of a listener that asks for them (`kerberos.KerberosAcceptor`)."""

    def accept(self, token: bytes, own_certificate: bytes) -> tuple[PeerTicket, bytes | None]:
        """Return who the token is from and what to answer; UnauthenticatedError or ForbiddenError."""
        ...

    def stands(self, peer: PeerTicket) -> bool:
        """Whether the principal still stands for that node."""
        ...


def checking_peers(
    app: WsgiApp,
    *,
    is_revoked: Callable[[int], bool] | None,
    clock: Clock,
    negotiator: Negotiator | None = None,
    is_removed: Callable[[NodeId], bool] | None = None,
) -> WsgiApp:
    """Return `app` behind the check. `is_revoked` gets a certificate's serial, `is_removed` the node; both are asked at every request."""

    def holds(peer: Peer) -> None:
        if is_removed is not None and is_removed(peer.node):
            raise UnauthenticatedError(
                "this node was removed from the vault", hint="enrol the machine again", node=peer.node
            )
        if isinstance(peer, PeerTicket):
            _check_ticket(peer, negotiator, clock)
        else:
            _check_certificate(peer, is_revoked, clock)

    def checked(environ: Environ, start_response: StartResponse) -> Any:
        session: Session = environ[SESSION_KEY]
        answer: bytes | None = None
        start = start_response
        try:
            if negotiator is not None:
                answer = _negotiate(environ, session, negotiator)
                start = _challenging(start_response, answer)
            peer = session.peer
            if isinstance(peer, SecondSiteError):
                raise peer
            if peer is not None:
                holds(peer)
            environ[PEER_KEY] = peer
        except SecondSiteError as error:
            environ[CLOSE_KEY]()
            if negotiator is not None:
                start = _challenging(start_response, None)
            refusal = error_response(error)
            start(refusal.status, [("Content-Type", refusal.content_type)])
            return [refusal.body]
        return app(environ, start)

    return checked


def _check_certificate(peer: PeerCertificate, is_revoked: Callable[[int], bool] | None, clock: Clock) -> None:
    if peer.not_after <= clock():
        raise UnauthenticatedError("the certificate has expired meanwhile", node=peer.node)
    if is_revoked is not None and is_revoked(peer.serial):
        raise UnauthenticatedError("the certificate is revoked", hint="enrol the node again", node=peer.node)


def _check_ticket(peer: PeerTicket, negotiator: Negotiator | None, clock: Clock) -> None:
    if peer.not_after <= clock():
        raise UnauthenticatedError("the ticket has expired meanwhile", principal=peer.principal)
    if negotiator is None or not negotiator.stands(peer):
        raise ForbiddenError(
            f"{peer.principal} does not stand for {peer.node} any more", principal=peer.principal
        )


def _negotiate(environ: Environ, session: Session, negotiator: Negotiator) -> bytes | None:
    """Take the request's ticket, if it has one, as the connection's identity; return the token to answer with."""
    scheme, _, text = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    if scheme.lower() != _SCHEME:
        return None
    try:
        token = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnauthenticatedError("the Authorization header is malformed") from error
    peer, answer = negotiator.accept(token, session.own_certificate)
    known = session.peer
    if isinstance(known, PeerTicket) and known.principal != peer.principal:
        raise UnauthenticatedError(f"this connection is {known.principal}'s already", hint="open another one")
    session.peer = peer
    return answer


def _challenging(start_response: StartResponse, answer: bytes | None) -> StartResponse:
    """Add to each answer what Negotiate wants there: our token, or on a 401 the invitation to send one."""

    def start(status: str, headers: list[tuple[str, str]]) -> Any:
        if answer is not None:
            headers = [*headers, ("WWW-Authenticate", "Negotiate " + base64.b64encode(answer).decode())]
        elif status.startswith("401"):
            headers = [*headers, ("WWW-Authenticate", "Negotiate")]
        return start_response(status, headers)

    return start
