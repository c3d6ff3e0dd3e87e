"""Connections that break at the worst moment: what is kept, what is sent again, exactly."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cheroot.workers.threadpool import ThreadPool

from secondsite.errors import CorruptError, UnavailableError
from secondsite.ship.backoff import NO_RETRIES
from secondsite.ship.client import Endpoint
from secondsite.ship.http import HttpsServer, JsonClient, Limits, Request, Router
from secondsite.ship.identity import CertificateAuthority
from secondsite.ship.protocol import PartKind
from secondsite.ship.sender import Outgoing, StoppedError
from support.ship_site import EPOCH, ITEM, TARGET, ShipSite, manifest, ship_site

pytestmark = pytest.mark.fault
MIB = 1 << 20


class Link:
    """A TCP relay to the listener that can lose things. Bytes are counted from the client's side."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.up = 0
        self.down = bytearray()
        self.cut_up_after: list[int] = []
        """For each connection in turn: cut both ways once so many bytes went up (a huge number: never)."""
        self.swallow_down_after: list[int] = []
        """For each connection in turn: after so many bytes went up, answers are lost and the connection is cut."""
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            index = self.connections
            self.connections += 1
            cut = self.cut_up_after[index] if index < len(self.cut_up_after) else 1 << 60
            swallow = self.swallow_down_after[index] if index < len(self.swallow_down_after) else 1 << 60
            up = [0]
            self._sockets += [client, server]
            for source, sink, upward in ((client, server, True), (server, client, False)):
                thread = threading.Thread(
                    target=self._pump, args=(source, sink, upward, up, cut, swallow), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, upward: bool, up: list[int], cut: int, swallow: int
    ) -> None:
        try:
            while data := source.recv(65536):
                if upward:
                    up[0] += len(data)
                    self.up += len(data)
                    if up[0] > cut:
                        break
                elif up[0] > swallow:
                    break
                else:
                    self.down += data
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the pump that reads it; close alone does not
        for thread in self._threads:
            thread.join(10)
        for sock in self._sockets:
            sock.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, TARGET)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ShipSite]:
    with ship_site(tmp_path, limits=Limits(stop_s=0.3)) as site:
        yield site


@pytest.fixture
def link(site: ShipSite) -> Iterator[Link]:
    link = Link(site.listener.address)
    yield link
    link.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the server's own threads have noticed; bounded."""
    event = threading.Event()
    for _ in range(1000):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("the server did not notice")


def test_cut_upload_leaves_nothing_and_is_sent_again_once(site: ShipSite, link: Link) -> None:
    parts = [site.part(os.urandom(2 * MIB)) for _ in range(3)]
    # One connection: it carries the question and the first part (2 MiB and some), then breaks in the second.
    link.cut_up_after = [3 * MIB]
    sender = site.sender(endpoint=link.endpoint, connections=1, compression=False)
    sender.send(parts)
    assert site.stored() == {part.digest: part.path.read_bytes() for part in parts}
    assert link.connections == 2
    wait_for(lambda: site.receiver.cut >= 1)
    assert site.receiver.cut == 1
    assert link.up < 3 * MIB + 4 * MIB + 100_000, (
        "the cut part was sent from its start again, nothing else was"
    )
    assert sender.progress.view().raw == 6 * MIB


def test_cut_upload_without_a_retry_leaves_nothing(site: ShipSite, link: Link) -> None:
    part = site.part(os.urandom(4 * MIB))
    link.cut_up_after = [MIB]
    with pytest.raises(UnavailableError):
        site.sender(endpoint=link.endpoint, compression=False, retries=NO_RETRIES).send([part])
    wait_for(lambda: site.receiver.cut == 1)
    assert site.stored() == {}


@pytest.mark.parametrize("compression", [True, False])
def test_lost_answer_costs_a_question_not_the_part(site: ShipSite, link: Link, compression: bool) -> None:
    part = site.part(os.urandom(2 * MIB))
    link.swallow_down_after = [2 * MIB]
    done: list[object] = []
    sender = site.sender(endpoint=link.endpoint, connections=1, compression=compression)
    sender.send([part], done.append)
    assert done == [part]
    assert link.connections == 2
    assert site.receiver.received == 2 * MIB, "the part arrived the first time and is not sent again"
    assert sender.progress.view().raw == 2 * MIB


def test_lost_answer_to_seal_is_harmless(site: ShipSite, link: Link) -> None:
    point = manifest([])
    link.swallow_down_after = [2000]
    padded = site.sender(endpoint=link.endpoint)
    padded.status()
    digest = padded.seal(point)
    assert site.receiver.items[ITEM].points == [point]
    last = padded.status().last
    assert last is not None
    assert last.digest == digest


def test_retries_are_bounded(site: ShipSite, link: Link) -> None:
    part = site.part(os.urandom(MIB))
    link.cut_up_after = [200_000] * 100
    waits: list[float] = []
    sender = site.sender(endpoint=link.endpoint, connections=1, compression=False, sleep=waits.append)
    with pytest.raises(UnavailableError):
        sender.send([part])
    assert len(waits) == 3, "four tries in all"
    assert site.stored() == {}


def test_first_error_stops_the_other_connections(site: ShipSite, tmp_path: Path) -> None:
    good = [site.part(os.urandom(100_000)) for _ in range(30)]
    bad = site.part(b"will be gone")
    bad.path.unlink()
    sent: list[object] = []
    with pytest.raises(CorruptError):
        site.sender(connections=2).send(iter([bad, *good]), sent.append)
    assert len(sent) < len(good), "the transfer ended early"


def test_producer_that_waits_for_room_learns_of_the_error(site: ShipSite) -> None:
    gone = site.part(b"will be gone")
    gone.path.unlink()
    sender = site.sender(connections=1)

    def produce() -> Iterator[Outgoing]:
        yield gone
        wait_for(lambda: sender.failing)  # as a spool does that is full of parts that were not sent
        raise StoppedError("no room")

    with pytest.raises(CorruptError):
        sender.send(produce())
    sender.send([site.part(b"next")])
    assert not sender.failing
    assert list(site.stored().values()) == [b"next"]


def test_upload_cut_by_the_listeners_stop_leaves_nothing(site: ShipSite) -> None:
    part = site.part(os.urandom(MIB))
    context = site.source.client_context()
    host, port = site.listener.address
    with (
        socket.create_connection((host, port), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname=TARGET) as tls,
    ):
        head = (
            f"PUT /ship/v1/items/{ITEM}/parts/{part.digest}?kind={PartKind.LOG.value} HTTP/1.1\r\nHost: x\r\n"
            f"Secondsite-Epoch: {EPOCH}\r\nSecondsite-Length: {part.length}\r\nContent-Length: {part.length}\r\n\r\n"
        )
        tls.sendall(head.encode() + part.path.read_bytes()[:500_000])
        wait_for(lambda: site.receiver.begun == 1)
        site.listener.stop()
    wait_for(lambda: site.receiver.cut == 1)
    assert site.stored() == {}


def test_answer_of_a_request_that_outlives_the_server_never_leaves_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, shut = threading.Event(), threading.Event()
    router = Router()

    def slow(_: Request) -> dict[str, str]:
        entered.set()
        assert shut.wait(20)
        return {"secret": "kept between us"}

    force_close = ThreadPool._force_close

    def closing(connection: object) -> None:
        force_close(connection)
        shut.set()

    monkeypatch.setattr(ThreadPool, "_force_close", staticmethod(closing))
    router.add("GET", "/slow", slow)
    authority = CertificateAuthority.create("vault")
    credentials = authority.issue_credentials(TARGET, tmp_path)
    server = HttpsServer(("127.0.0.1", 0), credentials, router, limits=Limits(stop_s=0.2), threads=2)
    server.start()
    link = Link(server.address)
    answers: list[object] = []

    def call() -> None:
        with JsonClient(link.endpoint, credentials, timeout_s=20) as client:
            try:
                answers.append(client.get("/slow"))
            except UnavailableError as error:
                answers.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert entered.wait(20)
    server.stop()
    caller.join(20)
    link.close()
    assert len(answers) == 1
    assert b"kept between us" not in link.down
    assert b"HTTP/1.1" not in link.down
