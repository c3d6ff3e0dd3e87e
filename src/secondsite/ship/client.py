"""The HTTPS client of nodes: kept connections, bounded answers, errors as exceptions.

Promises:

- The server is checked by its node id, not by its address; nothing is sent before that.
- No proxy, no redirect, no cookie: it speaks to the peer that it was given and to nobody else.
- Thread-safe: each call takes a connection of its own from the pool.
- Every failure is one of UnavailableError (try later), UnauthenticatedError (certificates) or RemoteError (the
  peer said so, with the peer's code).

A kept connection that the peer has closed meanwhile is noticed before it is used; should it close in between, the
call is made once more on a new one. All calls of the protocol may be repeated. Beyond that nothing is retried here.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from cryptography.hazmat.primitives.serialization import Encoding

from secondsite.errors import (
    CorruptError,
    InvalidInputError,
    UnauthenticatedError,
    UnavailableError,
)
from secondsite.model.ids import NodeId
from secondsite.ship.draining import wait_for_answer
from secondsite.ship.failures import BROKEN, is_alert, raise_refusal, translated
from secondsite.ship.identity import ca_fingerprint, load_certificate
from secondsite.ship.routing import Router, parse_object

CA_PATH: Final = "/node/v1/ca"
ANSWER_MAX: Final = 64 << 20
_ERROR_MAX: Final = 1 << 20
_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to dial, and which node must answer there."""

    host: str
    port: int
    server_name: NodeId


class Trust(Protocol):
    """What the client shows and whom it trusts: Credentials, CaOnly or KerberosTrust."""

    def client_context(self) -> ssl.SSLContext:
        """Return a context that verifies the server."""
        ...


@runtime_checkable
class Introducing(Trust, Protocol):
    """A trust that has to say who we are after TLS, on each new connection, before any call."""

    def introduce(self, connection: PeerConnection) -> None:
        """Prove it, or raise; the connection is then closed."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; UnavailableError if the peer speaks something else."""
        try:
            return parse_object(self.body)
        except InvalidInputError as error:
            raise UnavailableError("the peer's answer is not JSON", reason=error.message) from error


class PeerConnection(http.client.HTTPConnection):
    """One connection: dials the address, checks the node id."""

    good_until: float | None = None
    """On the monotonic clock: when what was shown on it ends."""

    def __init__(self, endpoint: Endpoint, trust: Trust, context: ssl.SSLContext, timeout_s: float) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=timeout_s, blocksize=1 << 20)
        self._endpoint = endpoint
        self._trust = trust
        self._context = context

    def connect(self) -> None:
        """Dial and shake hands; within the connection's own time-out, but at most _CONNECT_S per step."""
        timeout = min(_CONNECT_S, self.timeout or _CONNECT_S)
        raw = socket.create_connection((self._endpoint.host, self._endpoint.port), timeout=timeout)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A dead peer is noticed within a minute, also while it works on a long call and nothing is sent.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            self.sock = self._context.wrap_socket(raw, server_hostname=self._endpoint.server_name)
        except BaseException:
            raw.close()
            raise
        self.sock.settimeout(self.timeout)

    def open(self) -> None:
        """Dial if that was not done, and say who we are."""
        if self.fresh:
            self.connect()
            if isinstance(self._trust, Introducing):
                self._trust.introduce(self)

    def set_timeout(self, timeout_s: float) -> None:
        """Bound every following step of the connection."""
        self.timeout = timeout_s
        if self.sock is not None:
            self.sock.settimeout(timeout_s)

    @property
    def fresh(self) -> bool:
        """Whether it has never been dialled."""
        return self.sock is None

    @property
    def stale(self) -> bool:
        """Whether the peer has closed it, or sent something nobody asked for, or what we showed on it ends."""
        if self.good_until is not None and time.monotonic() >= self.good_until:
            return True
        return self.sock is not None and bool(select.select([self.sock], [], [], 0)[0])


class JsonClient:
    """Calls to one endpoint. Close it when done."""

    def __init__(self, endpoint: Endpoint, trust: Trust, *, timeout_s: float = 30.0) -> None:
        self.endpoint = endpoint
        self._trust = trust
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: list[PeerConnection] = []
        self._context: ssl.SSLContext | None = None

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """GET a JSON object."""
        return self.request("GET", path, timeout_s=timeout_s).json()

    def post(
        self, path: str, document: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """POST a JSON object and return the answer's. For a long poll pass a time-out above the poll's."""
        body = json.dumps(document, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        return self.request("POST", path, body=body, headers=headers, timeout_s=timeout_s).json()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        answer_max: int = ANSWER_MAX,
    ) -> Answer:
        """Make one call. The time-out bounds each step on the socket (connecting, a send, a read), not the sum."""
        with self.exchange(method, path, body, len(body), headers, timeout_s=timeout_s) as response:
            data = _read_bounded(response, answer_max)
        return Answer(response.status, response.headers, data)

    @contextmanager
    def exchange(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes | memoryview],
        length: int | None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Make one call with a streamed body and yield the successful response for reading.

        A `body` that is no `bytes` can be sent once only: it is then not sent again on a new connection. With
        `length` None it goes out in chunks, for its length is known at its end only.
        """
        connection, response = self._exchange(method, path, body, length, headers or {}, timeout_s)
        try:
            with self._translated():
                yield response
        except BaseException:
            connection.close()
            raise
        self._give_back(connection, response)

    def reload(self, trust: Trust | None = None) -> None:
        """Use renewed (or other) credentials for new connections and drop the idle ones."""
        with self._lock:
            self._trust = trust or self._trust
            self._context = None
        self.close()

    def close(self) -> None:
        """Close the idle connections. A later call opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> JsonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes | memoryview],
        length: int | None,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> tuple[PeerConnection, http.client.HTTPResponse]:
        timeout_s = timeout_s or self._timeout_s
        while True:
            connection = self._take(timeout_s)
            kept = not connection.fresh
            try:
                with self._translated():
                    try:
                        connection.open()
                        response = _talk(connection, method, path, body, length, headers)
                    except (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError):
                        if kept and isinstance(body, bytes):
                            connection.close()
                            continue
                        raise
                    raise_refusal(response)
            except BaseException:
                connection.close()
                raise
            return connection, response

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.endpoint.host, self.endpoint.port, self.endpoint.server_name)

    def _take(self, timeout_s: float) -> PeerConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
                if connection is None:
                    if self._context is None:
                        self._context = self._trust.client_context()
                    connection = PeerConnection(self.endpoint, self._trust, self._context, timeout_s)
            if not connection.stale:
                connection.set_timeout(timeout_s)
                return connection
            connection.close()

    def _give_back(self, connection: PeerConnection, response: http.client.HTTPResponse) -> None:
        reusable = response.isclosed() and not response.will_close
        with self._lock:
            if reusable and connection._context is self._context:
                self._idle.append(connection)
                return
        connection.close()


def _talk(
    connection: PeerConnection,
    method: str,
    path: str,
    body: bytes | Iterable[bytes | memoryview],
    length: int | None,
    headers: Mapping[str, str],
) -> http.client.HTTPResponse:
    connection.putrequest(method, path, skip_accept_encoding=True)
    if length is None:
        connection.putheader("Transfer-Encoding", "chunked")
    elif length or method in {"POST", "PUT"}:
        connection.putheader("Content-Length", str(length))
    for name, value in headers.items():
        connection.putheader(name, value)
    try:
        if isinstance(body, bytes):
            connection.endheaders(body or None)
        else:
            connection.endheaders()
            for piece in body:
                if length is not None:
                    connection.send(piece)
                elif piece:
                    connection.send(b"".join((b"%x\r\n" % len(piece), piece, b"\r\n")))
            if length is None:
                connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as broken:
        # The peer may have answered before it read everything: its refusal says more than a broken pipe.
        return _early_answer(connection, broken)
    if length != 0 and isinstance(connection.sock, ssl.SSLSocket) and connection.timeout is not None:
        wait_for_answer(connection.sock, connection.timeout)
    return connection.getresponse()


def _early_answer(connection: PeerConnection, broken: OSError) -> http.client.HTTPResponse:
    if connection.sock is None:
        raise broken
    try:
        response = connection.getresponse()
    except BROKEN as error:
        if is_alert(error):
            raise
        raise broken from None
    if response.status // 100 == 2:
        raise broken
    return response


def _read_bounded(response: http.client.HTTPResponse, limit: int) -> bytes:
    data = response.read(limit + 1)
    if len(data) > limit:
        raise UnavailableError("the peer's answer is too large", limit=limit)
    if response.length:
        raise http.client.IncompleteRead(data, response.length)
    if not response.isclosed():
        response.read()  # at the end already: lets http.client see it, so that the connection can be kept
    return data


# -- the first contact --------------------------------------------------------------------------------------


def add_ca_route(router: Router, ca_pem: bytes) -> None:
    """Serve the authority's certificate to everyone: a client that knows its fingerprint can then trust it."""
    router.add("GET", CA_PATH, lambda _: {"ca": ca_pem.decode("ascii")}, peer_required=False)


@dataclass(frozen=True, slots=True)
class _Nobody:
    """Trust for the one call whose answer proves itself."""

    def client_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


def fetch_ca(host: str, port: int, fingerprint: str, *, timeout_s: float = 10.0) -> bytes:
    """Return the authority's certificate (PEM) whose SHA-256 is `fingerprint`.

    It comes over a connection that nobody has verified, which is safe: it is taken only if its hash is the pinned
    one, and nothing secret is sent. Use it with CaOnly for the enrolment proper.

    Raises:
        UnauthenticatedError: what answered has another authority.
    """
    endpoint = Endpoint(host, port, NodeId("unverified"))
    with JsonClient(endpoint, _Nobody(), timeout_s=timeout_s) as client:
        text = client.request("GET", CA_PATH, answer_max=65536).json().get("ca")
    try:
        pem = str(text).encode("ascii")
        found = ca_fingerprint(pem)
    except (CorruptError, UnicodeEncodeError) as error:
        raise UnauthenticatedError("the service sent no certificate", host=host, port=port) from error
    if found != fingerprint.lower():
        raise UnauthenticatedError(
            "the service's authority is not the one that the registration key pins",
            hint="check the address; if it is right, somebody sits in between",
            found=found,
            host=host,
            port=port,
        )
    # Only the certificate that was hashed, not what may stand behind it in the text.
    return load_certificate(pem).public_bytes(Encoding.PEM)
