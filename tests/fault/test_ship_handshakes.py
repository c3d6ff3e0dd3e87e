"""Handshakes that never end, trickle, or are followed by silence: nobody else waits for them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from secondsite.ship.client import JsonClient
from secondsite.ship.http import Limits
from support.ship_site import ShipSite, ship_site

pytestmark = pytest.mark.fault

THREADS = 2
CLIENTS = 8


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ShipSite]:
    # A handshake that held its worker would do so for longer than anybody here waits.
    with ship_site(tmp_path, threads=THREADS, limits=Limits(handshake_s=60, head_s=60, stop_s=0.3)) as site:
        yield site


def client_context(site: ShipSite) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.source.ca_file))
    context.check_hostname = False
    context.load_cert_chain(site.source.cert_file, site.source.key_file)
    return context


class Hello:
    """A client's side of a handshake whose bytes the test carries."""

    def __init__(self, site: ShipSite) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_context(site).wrap_bio(self._in, self._out)
        self.sock = socket.create_connection(site.listener.address, timeout=10)

    def step(self) -> bytes:
        """Return what the client would send next; b"" once it has nothing more to say."""
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    def take(self) -> None:
        """Take in what the server answers."""
        self._in.write(self.sock.recv(65536))

    def finish(self) -> None:
        """Carry the rest until the client is done."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._out.read())
                self.take()
            else:
                self.sock.sendall(self._out.read())
                return

    def ask(self) -> bytes:
        """Send a request and return the first bytes of its answer."""
        self._tls.write(b"GET /ship/v1/session HTTP/1.1\r\nHost: x\r\n\r\n")
        self.sock.sendall(self._out.read())
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                self.take()


def answers(site: ShipSite) -> bool:
    with JsonClient(site.endpoint, site.source, timeout_s=10) as client:
        found: object = client.get("/ship/v1/session")
        return found == {"node": "node-source"}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_handshakes_that_stop_in_the_middle_keep_nobody_out(site: ShipSite, share: float) -> None:
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            hello = Hello(site)
            stack.enter_context(hello.sock)
            data = hello.step()
            hello.sock.sendall(data[: max(1, int(len(data) * share))])
        assert answers(site)


def test_clients_that_say_nothing_after_their_handshake_keep_nobody_out(site: ShipSite) -> None:
    with ExitStack() as stack:
        clients = [Hello(site) for _ in range(CLIENTS)]
        for client in clients:
            stack.enter_context(client.sock)
            client.finish()
        assert answers(site)
        # And they are served once they speak.
        assert clients[-1].ask().startswith(b"HTTP/1.1 200 ")


def test_a_handshake_in_many_small_pieces_succeeds(site: ShipSite) -> None:
    hello = Hello(site)
    with hello.sock:
        hello.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = hello.step()
        for start in range(0, len(data), 40):
            hello.sock.sendall(data[start : start + 40])
            assert start > 200 or answers(site)
        hello.take()
        hello.finish()
        assert hello.ask().startswith(b"HTTP/1.1 200 ")


def test_a_handshake_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with ship_site(tmp_path, threads=THREADS, limits=Limits(handshake_s=0.0, stop_s=0.3)) as site:
        hello = Hello(site)
        with hello.sock:
            data = hello.step()
            hello.sock.sendall(data[:40])
            hello.sock.sendall(data[40:])
            assert hello.sock.recv(65536) == b""
