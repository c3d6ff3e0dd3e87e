"""The network between the sites: real requests of the real client, brought to the real router, or not.

The client is the product's (`ship.client` over `http.client`), up to the socket; the other end is the product's WSGI
application. In between each request has a fate:

- lost: nothing arrives. - cut: the server gets the beginning of it. - unanswered: it is done, the answer is lost.
- late: it arrives some time after its client has given it up. - twice: the client's connection broke, and it was sent again.
- flipped: a bit of a part changes on its way (memory, or a broken TLS offload).

TLS and HTTP parsing of the server (cheroot) are not here; a flip below TLS is a cut.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from secondsite.model.ids import NodeId
from secondsite.ship.admission import SESSION_KEY, checking_peers
from secondsite.ship.certificates import PeerCertificate
from secondsite.ship.client import Endpoint, PeerConnection
from secondsite.ship.peers import Session
from secondsite.ship.routing import CLOSE_KEY, STREAM_KEY, WsgiApp
from support.power import PowerCutError

FATES: Final = ("lost", "cut", "unanswered", "late", "twice", "flipped")
MIXES: Final = (FATES, FATES, ("late", "unanswered"), ("late",), ("flipped", "cut"))
"""A story has one of these: some links only lose, others only delay."""
LATE_MAX: Final = 6


@dataclass(slots=True)
class Here:
    """One side's listener. `running`: what its code runs in; `died`: told when it did not survive a request."""

    app: WsgiApp
    running: Callable[[], AbstractContextManager[None]]
    died: Callable[[], None]


@dataclass(slots=True)
class Message:
    """One request on its way."""

    peer: NodeId
    to: NodeId
    data: bytes


class Network:
    """Listeners by node, and what happens to requests. `trouble`: the chance that a request has a fate."""

    def __init__(self, chance: Random, clock: Callable[[], datetime]) -> None:
        self.chance = chance
        self.trouble = 0.0
        self.mix = chance.choice(MIXES)
        self.down = False
        self.late: list[Message] = []
        self.fates: dict[str, int] = {}
        self.pause: Callable[[], None] = lambda: None
        """Called before each request: other threads of the sender may go on."""
        self._clock = clock
        self._here: dict[NodeId, Here] = {}

    def listen(
        self,
        node: NodeId,
        app: WsgiApp,
        running: Callable[[], AbstractContextManager[None]],
        died: Callable[[], None],
    ) -> None:
        """The node's listener is up."""
        checked = checking_peers(app, is_revoked=None, clock=self._clock)
        self._here[node] = Here(checked, running, died)

    def hang_up(self, node: NodeId) -> None:
        """The node's listener is gone."""
        self._here.pop(node, None)

    def exchange(self, message: Message) -> bytes:
        """Bring a request across and return the answer, or raise as a socket does."""
        self.pause()
        if self.late and not self.down and self.chance.random() < self.trouble / 2:
            self.deliver_late()
        fate = self._fate(message)
        if self.down or fate == "lost":
            raise ConnectionResetError("the connection was reset")
        if fate == "late":
            self.late = [*self.late, message][-LATE_MAX:]
            raise TimeoutError("timed out")
        if fate == "cut":
            head, _, body = message.data.partition(b"\r\n\r\n")
            kept = self.chance.randrange(len(body) + 1) if body else 0
            if kept < len(body):
                self.serve(Message(message.peer, message.to, head + b"\r\n\r\n" + body[:kept]))
            raise ConnectionResetError("the connection was cut")
        if fate == "flipped":
            message = Message(message.peer, message.to, _flipped(message.data, self.chance))
        answer = self.serve(message)
        if fate == "twice" and answer is not None:
            answer = self.serve(message)
        if answer is None or fate == "unanswered":
            raise ConnectionResetError("the connection was reset")
        return answer

    def serve(self, message: Message) -> bytes | None:
        """Have the listener answer; None if nobody listens, or it died over it."""
        here = self._here.get(message.to)
        if here is None:
            return None
        try:
            with here.running():
                return _answer(here.app, message, self._clock())
        except PowerCutError:
            here.died()
            return None

    def deliver_late(self) -> None:
        """One of the requests that were given up arrives after all."""
        if self.late:
            self.serve(self.late.pop(self.chance.randrange(len(self.late))))

    def _fate(self, message: Message) -> str | None:
        if self.chance.random() >= self.trouble:
            return None
        fate = self.chance.choice(self.mix)
        if fate == "flipped" and not message.data.startswith(b"PUT "):
            fate = "cut"
        self.fates[fate] = self.fates.get(fate, 0) + 1
        return fate

    @contextmanager
    def troubled(self, trouble: float) -> Iterator[None]:
        """Let requests have fates meanwhile."""
        before, self.trouble = self.trouble, trouble
        try:
            yield
        finally:
            self.trouble = before


def _flipped(data: bytes, chance: Random) -> bytes:
    body = data.index(b"\r\n\r\n") + 4
    if body >= len(data):
        return data
    at = chance.randrange(body, len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


# -- the client's end ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SimTrust:
    """What a node shows: that it is this node."""

    node: NodeId

    def client_context(self) -> Any:
        """Nothing to verify with."""
        return None


class _Socket:
    """The client's end of a connection: keeps what is sent, and has it answered when the answer is read."""

    def __init__(self, network: Network, peer: NodeId, to: NodeId) -> None:
        self._network, self._peer, self._to = network, peer, to
        self._sent = bytearray()

    def sendall(self, data: Any) -> None:
        self._sent += data

    def makefile(self, *_: object) -> io.BytesIO:
        message = Message(self._peer, self._to, bytes(self._sent))
        self._sent.clear()
        return io.BytesIO(self._network.exchange(message))

    def settimeout(self, _: float | None) -> None:
        return None

    def close(self) -> None:
        return None


def connection_class(network: Network) -> type[PeerConnection]:
    """Return the client's connection class, with this network in place of sockets and TLS."""

    class SimConnection(PeerConnection):
        def __init__(self, endpoint: Endpoint, trust: Any, context: Any, timeout_s: float) -> None:
            super().__init__(endpoint, trust, context, timeout_s)
            self._ends = (trust.node, endpoint.server_name)

        def connect(self) -> None:
            if network.down:
                raise ConnectionRefusedError("nobody listens there")
            self.sock: Any = _Socket(network, *self._ends)

        @property
        def stale(self) -> bool:
            return False

    return SimConnection


# -- the server's end ------------------------------------------------------------------------------------------


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readinto(self, view: memoryview) -> int:
        return self._data.readinto(view)

    def readline(self, limit: int) -> bytes:
        return self._data.readline(limit)


def _answer(app: WsgiApp, message: Message, now: datetime) -> bytes:
    head, _, body = message.data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    split = urlsplit(target)
    ends: list[bool] = []
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": unquote(split.path),
        "QUERY_STRING": split.query,
        "REMOTE_ADDR": "127.0.0.1",
        SESSION_KEY: Session(peer=PeerCertificate(message.peer, 1, now.replace(year=now.year + 1))),
        STREAM_KEY: lambda: _Stream(body),
        CLOSE_KEY: lambda: ends.append(True),
    }
    for line in lines:
        name, _, value = line.partition(": ")
        key = name.upper().replace("-", "_")
        environ[key if key in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{key}"] = value
    started: list[tuple[str, list[tuple[str, str]]]] = []
    body_out = b"".join(app(environ, lambda status, headers: started.append((status, headers))))
    status, headers = started[0]
    if ends:
        headers = [*headers, ("Connection", "close")]
    text = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status}\r\n{text}\r\n".encode("latin-1") + body_out
