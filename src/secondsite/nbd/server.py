"""A read-only NBD server on a Unix socket, with one thread for each connection.

Promises: the socket appears under its name complete (bound, permitted and listening), replacing a stale one;
nothing that a client sends ends the server or blocks another client; `close` ends all connections and removes the socket
unless a newer server has taken the name. Blocking sockets and threads were measured to be the fastest way in
Python (3.9 GB/s; uvloop 2.2, asyncio 1.1).

It does not authenticate: who may open the socket may read the disks.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from secondsite.errors import InvalidInputError, UnavailableError
from secondsite.nbd.disk import ReadableDisk
from secondsite.nbd.negotiation import Session, negotiate
from secondsite.nbd.protocol import NAME_MAX
from secondsite.nbd.socketpath import SOCKET_PATH_MAX, fits, reachable
from secondsite.nbd.transmission import ConnectionEndedError, Transmission

CONNECTIONS_MAX: Final = 128
HANDSHAKE_TIMEOUT_S: Final = 10.0
"""For the whole handshake; afterwards a client may be idle for ever, as a guest's disk is."""
SEND_BUFFER: Final = 4 << 20
"""Asked for; the kernel grants at most net.core.wmem_max."""
CLOSE_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class NbdServer:
    """Serves `exports` on `path` from `start` until `close`; also a context manager."""

    def __init__(
        self,
        exports: Mapping[str, ReadableDisk],
        path: Path,
        *,
        mode: int = 0o600,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        if not fits(path):
            raise InvalidInputError(
                f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {path}",
                hint="choose a folder with a shorter path; hypervisors cannot open longer ones",
            )
        if any(len(name.encode()) > NAME_MAX for name in exports):
            raise InvalidInputError("the name of an export is too long")
        self.path = path
        self._exports = dict(exports)
        self._mode = mode
        self._handshake_timeout_s = handshake_timeout_s
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._inode = 0
        self._closing = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Create the socket and begin to accept; clients may connect when this returns."""
        self._listener = self._listen()
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._acceptor.start()

    def _listen(self) -> socket.socket:
        # Bound under another name and renamed, so that nobody meets a socket that does not listen yet or still has
        # the wrong mode, and so that the socket of a killed server is replaced instead of being in the way.
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with reachable(temporary) as name:
                listener.bind(name)
            temporary.chmod(self._mode)
            listener.listen(self._connections_max)
            self._inode = temporary.stat().st_ino
            temporary.replace(self.path)
        except OSError as error:
            listener.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise UnavailableError(f"cannot listen on {self.path}: {error.strerror}") from error
        return listener

    def close(self) -> None:
        """End all connections and remove the socket; safe to repeat."""
        with self._lock:
            self._closing = True
            connections = dict(self._connections)
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in (self._acceptor, *connections.values()):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        self._listener = None

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        with self._lock:
            return len(self._connections)

    # -- threads -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._closing:
                    return
                # Out of descriptors or memory: others' connections will end. Waiting here slows nobody else.
                log.warning("cannot accept a connection: %s", error)
                threading.Event().wait(0.1)
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=f"nbd-{connection.fileno()}", daemon=True
            )
            with self._lock:
                admitted = not self._closing and len(self._connections) < self._connections_max
                if admitted:
                    self._connections[connection] = thread
                    thread.start()  # under the lock: close joins what it finds
            if not admitted:
                log.warning("refused a connection: %d are open", self._connections_max)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            session = self._handshake(connection)
            if session is not None:
                log.info("serving %s", session.name)
                Transmission(connection, session).run()
        except (ConnectionEndedError, OSError) as error:
            log.info("a connection ended: %s", error)
        except Exception:  # a bug of ours must not take the other connections with it
            log.exception("a connection failed")
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _handshake(self, connection: socket.socket) -> Session | None:
        deadline = time.monotonic() + self._handshake_timeout_s
        steps = negotiate(self._exports)
        step = next(steps)
        try:
            while True:
                _limit(connection, deadline)
                connection.sendall(step.send)
                step = steps.send(_receive(connection, step.want, deadline))
        except StopIteration as end:
            session: Session | None = end.value
        if session is not None:
            _limit(connection, deadline)
            connection.sendall(session.final)
            connection.settimeout(None)
        return session


def _limit(connection: socket.socket, deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise ConnectionEndedError("the handshake took too long")
    connection.settimeout(remaining)


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        _limit(connection, deadline)
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionEndedError("the client left during the handshake")
        parts += part
    return bytes(parts)
