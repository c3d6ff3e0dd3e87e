"""Kerberos instead of a client certificate: `Authorization: Negotiate` inside TLS, bound to the server's certificate.

Promises:

- A ticket counts only if its channel binding (tls-server-end-point, RFC 5929) is there and is that of the certificate which
  this connection was opened with: a ticket that was meant for another server, or passed on by one, is refused.
- A token is taken once: the replay cache is a file of our own, whatever the environment says.
- A principal is somebody only if it was named for a node, with its realm.
- The dialling side sends nothing but its ticket before the target has proved that it knows its own key (mutual
  authentication), on a connection whose certificate was checked before.

The module gssapi (the distribution's, over MIT Kerberos) is imported when it is first needed: a node without
Kerberos runs without it. Names of servers are principals, given whole: no DNS is asked. Which KDC: the machine's krb5.conf.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from secondsite.errors import (
    ForbiddenError,
    InvalidInputError,
    SecondSiteError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.model.ids import NodeId
from secondsite.ship.certificates import Clock, utc_now
from secondsite.ship.client import PeerConnection
from secondsite.ship.failures import raise_refusal
from secondsite.ship.peers import PeerTicket
from secondsite.ship.protocol import SESSION_PATH
from secondsite.ship.tls import CaOnly

CHANNEL_BOUND: Final = 2048  # GSS_C_CHANNEL_BOUND_FLAG: both sides gave a binding, and they are equal
MUTUAL: Final = 2  # GSS_C_MUTUAL_FLAG
_SPNEGO: Final = "1.3.6.1.5.5.2"
_KRB5: Final = "1.2.840.113554.1.2.2"
_UNREACHABLE: Final = {code & 0xFFFFFFFF for code in (-1765328228, -1765328164)}
"""KRB5_KDC_UNREACH and KRB5_REALM_CANT_RESOLVE of krb5.h: later it may work."""
_TICKET: Final = {"fault": "ticket"}
"""An attribute of errors that another ticket may mend; told to the peer, too."""
_QUEUE_S: Final = 15.0
"""A KDC that hangs must not line up all items behind each other for minutes."""
_MARGIN_S: Final = 60.0
"""A connection is given up so long before its ticket ends, so that clocks may differ a little."""


def load_gssapi() -> Any:
    """Return the module; UnsupportedError with the package's name if it is missing."""
    try:
        return importlib.import_module("gssapi")
    except ImportError as error:
        raise UnsupportedError(
            "Kerberos is configured, but Python's module gssapi is missing",
            hint="install the distribution's package python3-gssapi; a virtual environment must see system packages",
            reason=str(error),
        ) from error


def channel_binding(certificate: bytes) -> bytes:
    """Return the tls-server-end-point binding of a server's certificate (DER): RFC 5929, section 4.1."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    name = "sha256" if algorithm is None or algorithm.name in {"md5", "sha1"} else algorithm.name
    return b"tls-server-end-point:" + hashlib.new(name, certificate).digest()


def parse_principal(text: object) -> str:
    """Return a principal's full name, "HTTP/host.example@EXAMPLE"; InvalidInputError if it has no realm."""
    if isinstance(text, str) and text.isprintable() and len(text) <= 512:
        name, _, realm = text.rpartition("@")
        if name and realm and " " not in text:
            return text
    raise InvalidInputError(f"not a Kerberos principal: {text!r}"[:200], hint="expected NAME@REALM")


class KerberosAcceptor:
    """The listener's side: see the module. `node_of` says which node a principal stands for, asked at every request."""

    def __init__(
        self,
        service: str,
        keytab: Path,
        node_of: Callable[[str], NodeId | None],
        replay_cache: Path,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._service = parse_principal(service)
        self._keytab = keytab
        self._node_of = node_of
        self._replay_cache = replay_cache
        self._clock = clock

    def check(self) -> None:
        """Raise what would keep every ticket out: no gssapi, no keytab, no key of the service in it."""
        self._credentials(load_gssapi())

    def accept(self, token: bytes, own_certificate: bytes) -> tuple[PeerTicket, bytes | None]:
        """See admission.Negotiator."""
        gss = load_gssapi()
        context = gss.SecurityContext(
            creds=self._credentials(gss),
            usage="accept",
            channel_bindings=_bindings(channel_binding(own_certificate)),
        )
        try:
            answer = context.step(token)
            complete = context.complete  # also raises what step put off because it had a token to send
        except gss.exceptions.GSSError as error:
            raise UnauthenticatedError(
                f"the ticket is refused: {_reason(error)}", hint=_hint(_reason(error)), **_TICKET
            ) from error
        if not complete:
            raise UnauthenticatedError("the ticket needs more than one step", hint="use Kerberos alone")
        if context.mech.dotted_form != _KRB5:
            raise UnauthenticatedError("this is no Kerberos ticket", mechanism=context.mech.dotted_form)
        if not int(context.actual_flags) & CHANNEL_BOUND:
            raise UnauthenticatedError(
                "the ticket is not bound to this connection",
                hint="the client must send the channel binding tls-server-end-point",
            )
        principal = str(context.initiator_name)
        node = self._node_of(principal)
        if node is None:
            raise ForbiddenError(
                f"{principal} stands for no node here",
                hint="name it: secondsite node kerberos --peer PRINCIPAL=NODE",
                principal=principal,
            )
        left = timedelta(seconds=_seconds_left(gss, context))
        return PeerTicket(node, principal, self._clock() + left), answer

    def stands(self, peer: PeerTicket) -> bool:
        """See admission.Negotiator."""
        return self._node_of(peer.principal) == peer.node

    def _credentials(self, gss: Any) -> Any:
        store = {"keytab": str(self._keytab), "rcache": f"file2:{self._replay_cache}"}
        return _acquire(gss, self._service, self._keytab, "accept", store)


@dataclass(frozen=True, slots=True)
class KerberosTrust:
    """The dialling side: see the module. A client's Trust.

    principal, keytab: who we are. service: the target's principal. ccache: the file where tickets are kept; they are fetched
    with the keytab as needed, and anew when half of their life is over. A refusal removes the file: keys change, and an
    old ticket must not keep us out until it ends.
    """

    ca_file: Path
    principal: str
    keytab: Path
    service: str
    ccache: Path

    def client_context(self) -> ssl.SSLContext:
        """Return a context that checks the server's certificate and shows none."""
        return CaOnly(self.ca_file.read_bytes()).client_context()

    def introduce(self, connection: PeerConnection) -> None:
        """Show a ticket on a connection that has just been opened, and check the target's proof.

        It may wait for the KDC, within the bounds of krb5.conf.

        Raises:
            UnavailableError: the KDC does not answer, or a ticket from the file was refused: a new one may do.
            UnauthenticatedError: a new ticket was refused, or the target proved nothing.
        """
        gss = load_gssapi()
        kept = self.ccache.exists()
        try:
            self._introduce(gss, connection)
        except UnauthenticatedError as error:
            self.ccache.unlink(missing_ok=True)
            if not kept or error.attributes.get("fault") != "ticket":
                raise
            raise UnavailableError(
                f"{error.message} (with a ticket from before; the next try takes a new one)",
                hint=error.hint,
                service=self.service,
            ) from error

    def _introduce(self, gss: Any, connection: PeerConnection) -> None:
        assert isinstance(connection.sock, ssl.SSLSocket)
        binding = channel_binding(connection.sock.getpeercert(binary_form=True) or b"")
        with self._locked():  # the library fills an empty cache in several steps
            context = self._begin(gss, binding)
            token = _step(gss, context, None, self.service)
        text = base64.b64encode(token or b"").decode()
        connection.request("GET", SESSION_PATH, headers={"Authorization": f"Negotiate {text}"})
        response = connection.getresponse()
        raise_refusal(response)
        response.read()
        answer = _answer_token(response.getheader("WWW-Authenticate"))
        if answer is not None:
            _step(gss, context, answer, self.service)
        if answer is None or not context.complete or not int(context.actual_flags) & MUTUAL:
            raise UnauthenticatedError(
                f"the target did not prove that it is {self.service}",
                hint="check its keytab, and the name of its service",
                service=self.service,
            )
        connection.good_until = time.monotonic() + _seconds_left(gss, context) - _MARGIN_S

    def _begin(self, gss: Any, binding: bytes) -> Any:
        store = {"client_keytab": str(self.keytab), "ccache": f"FILE:{self.ccache}"}
        return gss.SecurityContext(
            name=_name(gss, self.service),
            creds=_acquire(gss, self.principal, self.keytab, "initiate", store),
            usage="initiate",
            mech=gss.OID.from_int_seq(_SPNEGO),
            flags=gss.RequirementFlag.mutual_authentication | gss.RequirementFlag.integrity,
            channel_bindings=_bindings(binding),
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = _CACHES.setdefault(self.ccache, threading.Lock())
        if not lock.acquire(timeout=_QUEUE_S):
            raise UnavailableError(
                "other connections wait for the KDC", hint="is it up, and named in krb5.conf?"
            )
        try:
            yield
        finally:
            lock.release()


_CACHES: Final[dict[Path, threading.Lock]] = {}


def _step(gss: Any, context: Any, token: bytes | None, service: str) -> bytes | None:
    try:
        answer: bytes | None = context.step(token)
        _ = context.complete
    except gss.exceptions.GSSError as error:
        raise _no_ticket(error, f"no ticket for {service}", service=service) from error
    return answer


def _acquire(gss: Any, principal: str, keytab: Path, usage: str, store: dict[str, str]) -> Any:
    if not os.access(keytab, os.R_OK):
        raise InvalidInputError(
            f"the keytab {keytab} cannot be read",
            hint=f"it must hold the keys of {principal}: kadmin ktadd -k {keytab} {principal}",
            principal=principal,
        )
    try:
        return gss.Credentials(name=_name(gss, principal), usage=usage, store=store)
    except gss.exceptions.GSSError as error:
        raise _no_ticket(error, f"{keytab} does not serve for {principal}", principal=principal) from error


def _no_ticket(error: Any, message: str, **attributes: Any) -> SecondSiteError:
    reason = _reason(error)
    if (error.min_code & 0xFFFFFFFF) in _UNREACHABLE:
        return UnavailableError(
            f"{message}: {reason}", hint="is the KDC up, and named in krb5.conf?", **attributes
        )
    return UnauthenticatedError(f"{message}: {reason}", hint=_hint(reason), **_TICKET, **attributes)


def _reason(error: Any) -> str:
    """Return the more telling one of the library's two texts."""
    for text in error.get_all_statuses(error.min_code, False) if error.min_code else ():
        if text and text != "Success" and not text.startswith("Unknown error"):
            return str(text)
    return str(next(iter(error.get_all_statuses(error.maj_code, True)), "no reason given"))


def _hint(reason: str) -> str:
    if "channel binding" in reason:
        return "the client spoke to another certificate than ours: somebody sits in between, or it was just renewed"
    return "compare the clocks, the realms, the keytabs and the names of the principals on both ends"


def _seconds_left(gss: Any, context: Any) -> int:
    try:
        return min(int(context.lifetime or 0), 1 << 31)
    except gss.exceptions.GSSError:  # it ended in this very second
        return 0


def _name(gss: Any, principal: str) -> Any:
    return gss.Name(principal, gss.NameType.kerberos_principal)


def _bindings(data: bytes) -> Any:
    return importlib.import_module("gssapi.raw").ChannelBindings(application_data=data)


def _answer_token(header: str | None) -> bytes | None:
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "negotiate" or not text:
        return None
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
