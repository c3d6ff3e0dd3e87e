"""The threaded HTTPS server of nodes and of the service: cheroot, with the gaps closed that matter between sites.

Promises:

- A slow or silent client costs little: connections that send nothing, or not yet the next bytes of a handshake, wait in
  a selector, not in a thread; the handshake, the request's head and the pace of its body are bounded in time; headers
  are bounded in size.
- The peer's identity belongs to the very connection, and is checked again on every request (see `admission`).
- `start` returns once the port listens, `stop` returns once its threads have ended.
- New credentials apply to new connections; those that are open go on.

Why not cheroot as it comes: it does the TLS handshake in the thread that accepts, so one client that connects and
says nothing keeps everyone else out (10 s each); it reads an unread body into memory at once; it takes the
client's identity when it accepts.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection
from cheroot.ssl import Adapter
from cheroot.wsgi import Gateway_10, Server

from secondsite.errors import UnauthenticatedError, UnavailableError
from secondsite.model.ids import NodeId
from secondsite.ship.admission import SESSION_KEY, Negotiator, checking_peers
from secondsite.ship.identity import ClientCertificates, Clock, Credentials, peer_certificate, utc_now
from secondsite.ship.peers import Session
from secondsite.ship.routing import CLOSE_KEY, STREAM_KEY, WsgiApp

log = logging.getLogger("secondsite.ship")

LINGER_S: Final = 0.5
_SELECT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Times in seconds, sizes in bytes."""

    handshake_s: float = 10.0
    head_s: float = 10.0
    stall_s: float = 30.0
    """A body must bring `stall_bytes` within so much time spent waiting for it."""
    stall_bytes: int = 16 << 10
    send_s: float = 60.0
    idle_s: int = 75
    head_bytes: int = 32 << 10
    connections: int = 1024
    stop_s: float = 5.0
    """What a running request gets when the server stops, before its socket is closed."""


class HttpsServer:
    """Serves `app` (WSGI, usually a Router) at `address` with `threads` workers.

    A long poll holds a worker: give the control plane as many threads as it has nodes, and some.
    `is_revoked` is called with a certificate's serial number, and `is_removed` with the peer's node, on every
    request, so they must be quick.
    With a `negotiator` the server asks for tickets (`Negotiate`), also from those without a certificate.
    """

    def __init__(
        self,
        address: tuple[str, int],
        credentials: Credentials,
        app: WsgiApp,
        *,
        client_certificates: ssl.VerifyMode = ClientCertificates.REQUIRED,
        threads: int = 16,
        limits: Limits | None = None,
        is_revoked: Callable[[int], bool] | None = None,
        clock: Clock = utc_now,
        negotiator: Negotiator | None = None,
        is_removed: Callable[[NodeId], bool] | None = None,
    ) -> None:
        self._requested = address
        self._credentials = credentials
        self._verify_mode = client_certificates
        limits = limits or Limits()
        app = checking_peers(
            app, is_revoked=is_revoked, clock=clock, negotiator=negotiator, is_removed=is_removed
        )
        self._server = _Server(address, app, threads, limits)
        self._server.ssl_adapter = _Adapter(*self._make_context(), limits)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The bound address; its port is the one that listens, also when 0 was asked for."""
        host, port = self._server.bind_addr[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Bind and serve in the background; UnavailableError if the address can't be bound."""
        # cheroot's workers are as daemonic as the thread that makes them; so a process that ends without `stop`
        # is not held up by them.
        bound = threading.Event()
        failures: list[Exception] = []

        def run() -> None:
            try:
                self._server.prepare()
            except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
                failures.append(error)
                return
            finally:
                bound.set()
            self._server.serve()

        thread = threading.Thread(target=run, name="https-accept", daemon=True)
        thread.start()
        bound.wait()
        if failures:
            thread.join()
            host, port = self._requested
            raise UnavailableError(
                f"cannot listen on {host}:{port}: {failures[0]}", hint="is another process on this port?"
            ) from failures[0]
        self._thread = thread

    def stop(self) -> None:
        """End: no new connections, running requests get a few seconds, then their sockets are closed."""
        self._server.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def reload(self, credentials: Credentials | None = None) -> None:
        """Read the certificate files again (or others); new connections use them."""
        if credentials is not None:
            self._credentials = credentials
        self._server.ssl_adapter.use(*self._make_context())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_context(self) -> tuple[ssl.SSLContext, bytes]:
        context = self._credentials.server_context(self._verify_mode)
        context.sslsocket_class = _Socket
        return context, self._credentials.der


# -- cheroot, bounded ---------------------------------------------------------------------------------------


class _Socket(ssl.SSLSocket):
    """A TLS socket whose reads are bounded: by a deadline for the head, by a pace for the body."""

    limits = Limits()
    own_certificate = b""
    deadline: float | None = None
    _waited = 0.0
    _got = 0

    def begin_head(self) -> None:
        self.deadline = time.monotonic() + self.limits.head_s

    def begin_body(self) -> None:
        self.deadline = None
        self._waited = 0.0
        self._got = 0

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        start = time.monotonic()
        left = self.limits.stall_s - self._waited if self.deadline is None else self.deadline - start
        if left <= 0:
            raise TimeoutError("timed out")  # cheroot answers 408 to this very text
        if self.gettimeout() != left:  # each setting is a call of the system, and a record has but 16 KiB
            self.settimeout(left)
        count = super().recv_into(buffer, nbytes, flags)
        self._waited += time.monotonic() - start
        self._got += count
        if self._got >= self.limits.stall_bytes:
            self._waited = 0.0
            self._got = 0
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        self.settimeout(self.limits.send_s)
        return super().send(data, flags)

    def shutdown(self, how: int) -> None:
        # ssl's own drops the TLS layer first; when cheroot then shuts a slow request's socket at its stop, the rest
        # of that answer would leave in the clear.
        socket.socket.shutdown(self, how)

    def abandon_tls(self) -> None:
        """Send nothing more and read raw bytes from now on."""
        super().shutdown(socket.SHUT_WR)


class _Adapter(Adapter):
    """Wraps accepted sockets without the handshake, which the worker does."""

    def __init__(self, context: ssl.SSLContext, own_certificate: bytes, limits: Limits) -> None:
        # The base class wants file names and checks nothing; the context holds what they would name.
        super().__init__("", "")
        self.use(context, own_certificate)
        self._limits = limits

    def use(self, context: ssl.SSLContext, own_certificate: bytes) -> None:
        self._using = (
            context,
            own_certificate,
        )  # together: a connection is bound to the one that it was opened with

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[_Socket, dict[str, str]]:
        context, own_certificate = self._using
        wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, _Socket)
        wrapped.own_certificate = own_certificate
        wrapped.limits = self._limits
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: socket.socket, mode: str = "r", bufsize: int = -1) -> Any:
        return MakeFile(sock, mode, bufsize)


class _Connection(HTTPConnection):
    """A connection whose handshake goes on whenever bytes of it are there, and waits for more in the selector, not in a worker."""

    rbufsize = 64 << 10
    admitted = False
    session = Session()  # of a connection without a handshake; nothing is ever written into this one
    _shaken = False
    _shake_by: float | None = None

    def communicate(self) -> bool:
        if not self._shaken:
            try:
                if not (self._shake() and self.socket.pending()):
                    return True  # into the selector: nobody knows when more comes
            except (OSError, ValueError) as error:
                log.info("handshake with %s failed: %s", self.remote_addr, error)
                _linger(self.socket)
                return False
        self.socket.begin_head()
        return bool(super().communicate())  # type: ignore[no-untyped-call]

    def _shake(self) -> bool:
        """Go on with the handshake as far as its bytes are here; return whether it is done, and the peer known."""
        sock: _Socket = self.socket
        if not self._do_handshake(sock):
            return False
        der = sock.getpeercert(binary_form=True)
        self._shaken = True
        self.session = Session(sock.own_certificate)
        if der is not None:
            try:
                self.session.peer = peer_certificate(der)
            except UnauthenticatedError as error:
                self.session.peer = error
        return True

    def _do_handshake(self, sock: _Socket) -> bool:
        """Return whether it is done; TimeoutError if it took longer than it may since its first byte."""
        now = time.monotonic()
        if self._shake_by is None:
            self._shake_by = now + sock.limits.handshake_s
        if now >= self._shake_by:
            raise TimeoutError("the handshake took too long")
        try:
            sock.settimeout(0)
            sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:  # the peer does not take our few KiB: rare, and bounded
            sock.settimeout(self._shake_by - now)
            sock.do_handshake()
        return True


def _linger(sock: _Socket) -> None:
    """Let the peer read the alert that says why: closing with unread bytes would reset the connection."""
    with suppress(OSError, ValueError):
        sock.abandon_tls()
        end = time.monotonic() + LINGER_S
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(65536):
                return


class _Stream:
    """The connection's bytes after the head: what the reader has buffered, then straight from TLS into the buffer.

    cheroot's own way makes and joins a bytes object for each TLS record (16 KiB).
    """

    def __init__(self, connection: _Connection) -> None:
        self._buffered = connection.rfile
        self._socket: _Socket = connection.socket

    def readinto(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end of the connection."""
        done = 0
        while done < len(view):
            if self._buffered.has_data():
                data = self._buffered.read1(len(view) - done)
                view[done : done + len(data)] = data
                count = len(data)
            else:
                count = self._socket.recv_into(view[done:])
            if count == 0:
                break
            done += count
        return done

    def readline(self, limit: int) -> bytes:
        """Return bytes up to and with the next line feed, at most `limit`."""
        line: bytes = self._buffered.readline(limit)
        return line


class _Gateway(Gateway_10):
    """Hands the peer, the body's stream and the right to close to the application."""

    def get_environ(self) -> dict[str, Any]:  # type: ignore[override]
        connection: _Connection = self.req.conn
        connection.socket.begin_body()
        environ: dict[str, Any] = super().get_environ()  # type: ignore[no-untyped-call]
        environ[SESSION_KEY] = connection.session
        environ[STREAM_KEY] = self._take_stream
        environ[CLOSE_KEY] = self._close
        return environ

    def _take_stream(self) -> _Stream:
        # From now on the application reads the body to its end, or closes: cheroot must not drain it as well.
        self.req.rfile = None
        return _Stream(self.req.conn)

    def _close(self) -> None:
        self.req.close_connection = True


class _Server(Server):
    """cheroot's server with our connections, our log and a bound on how many are open."""

    ConnectionClass = _Connection
    expiration_interval = _SELECT_S

    def __init__(self, address: tuple[str, int], app: WsgiApp, threads: int, limits: Limits) -> None:
        super().__init__(
            address,
            app,
            numthreads=threads,
            max=threads,
            request_queue_size=128,
            timeout=limits.idle_s,
            server_name="secondsite",
        )
        self.gateway = _Gateway
        self.max_request_header_size = limits.head_bytes
        self.keep_alive_conn_limit = limits.connections
        self.shutdown_timeout = limits.stop_s
        self._limits = limits

    def process_conn(self, conn: _Connection) -> None:
        """Queue a connection that has something to say; a new one first waits in the selector until it has."""
        if conn.admitted:
            super().process_conn(conn)
            return
        manager: Any = self._connections  # type: ignore[attr-defined]
        if manager._num_connections >= self._limits.connections:
            conn.close()
            return
        conn.admitted = True
        manager.put(conn)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        if isinstance(sys.exc_info()[1], OSError):  # a peer that went away is no event worth a trace
            level, traceback = logging.INFO, False
        log.log(level, "%s", msg, exc_info=traceback)
