"""The listener under bytes of strangers and of peers: below TLS, inside TLS without a certificate, and inside it with one. It goes on serving."""

from __future__ import annotations

import json
import random
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.ship.client import JsonClient
from secondsite.ship.http import Limits
from secondsite.ship.identity import CaOnly
from support.fuzz_loop import MIB, own_bugs
from support.fuzz_mutation import mutated
from support.ship_site import EPOCH, ITEM, TARGET, ShipSite, ship_site

ITEM_PATH = f"/ship/v1/items/{ITEM}".encode()
SEEDS = [
    b"GET /ship/v1/session HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST " + ITEM_PATH + b'/missing HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n{"epoch":3,"parts":[]}',
    b"PUT " + ITEM_PATH + b"/parts/" + b"0" * 64 + b"?kind=hrl HTTP/1.1\r\nHost: x\r\nSecondsite-Epoch: 3\r\nSecondsite-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST " + ITEM_PATH + b"/points HTTP/1.1\r\nHost: x\r\nSecondsite-Epoch: 3\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
]  # fmt: skip
WORDS = [b"\r\n", b"\r\n\r\n", b"HTTP/1.1", b"HTTP/9.9", b"Content-Length: 99999999999999", b"Content-Length: -1", b"Transfer-Encoding: chunked\r\n",
         b"fffffffff\r\n", b"%2e%2e/", b"\0", b"Host: " + b"a" * 40_000, b" ", b":", b"\xff\xfe", b"\x16\x03\x01\x02\x00\x01"]  # fmt: skip
TRIES = 600
MEMORY_MAX = 256 * MIB
ANSWER_S = 8.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShipSite]:
    limits = Limits(handshake_s=1.0, head_s=1.0, stall_s=1.0, send_s=2.0, stop_s=0.5)
    with ship_site(tmp_path_factory.mktemp("site"), limits=limits) as site:
        yield site


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send everything, close our end, and read what comes until the other end closes; it must, and soon."""
    sock.settimeout(ANSWER_S)
    answer = b""
    try:
        sock.sendall(data)
        socket.socket.shutdown(sock, socket.SHUT_WR)  # no TLS goodbye: the connection just ends
        while piece := sock.recv(65536):
            answer += piece
    except TimeoutError:
        pytest.fail(f"the listener neither answers nor closes: {data[:200]!r}")
    except OSError:  # refused in the middle of it
        return answer
    return answer


def good(site: ShipSite) -> None:
    assert site.sender().status().epoch == EPOCH


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("layer", ["below TLS", "without a certificate", "as the source"])
def test_any_bytes_end_in_an_answer_or_a_closed_connection(site: ShipSite, layer: str) -> None:
    rng = random.Random(layer)
    before = rss()
    stranger = CaOnly((site.folder / "target" / "ca.pem").read_bytes())
    answers = 0
    with own_bugs() as logged:
        for number in range(TRIES):
            data = rng.choice(SEEDS)
            if number >= len(SEEDS):
                data = mutated(rng, data, rng.choice(SEEDS), WORDS)
            raw = socket.create_connection(site.listener.address, timeout=ANSWER_S)
            with raw:
                if layer == "below TLS":
                    exchange(raw, data if number % 2 else rng.randbytes(rng.randrange(1, 3000)))
                    continue
                trust = site.source if layer == "as the source" else stranger
                context = trust.client_context()
                try:
                    tls = context.wrap_socket(raw, server_hostname=TARGET)
                except OSError:
                    assert layer != "as the source"
                    continue
                with tls:
                    answer = exchange(tls, data)
                    check(answer, layer)
                    answers += answer.startswith(b"HTTP/1.1 ")
    assert not logged, logged[0]
    assert rss() - before < MEMORY_MAX
    assert (answers > TRIES // 2) == (layer == "as the source")
    good(site)


def check(answer: bytes, layer: str) -> None:
    """Whatever comes is HTTP; what is refused by us says why, with a code; a stranger gets nothing at all."""
    if not answer:
        return
    assert layer == "as the source", "a client without a certificate was answered"
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer[:100]
    if b"application/json" in head and head.split()[1][:1] in {b"4", b"5"}:
        error = json.JSONDecoder().raw_decode(body.decode())[0]["error"]
        assert error["code"] not in {"", "internal"}


def test_silent_connections_keep_nobody_out(site: ShipSite) -> None:
    silent = [socket.create_connection(site.listener.address) for _ in range(60)]
    for number, sock in enumerate(silent):
        if number % 2:
            sock.sendall(b"\x16\x03\x01")  # the beginning of a handshake that never goes on
    with JsonClient(site.endpoint, site.source, timeout_s=ANSWER_S) as client:
        assert client.get("/ship/v1/session") == {"node": "node-source"}
    for sock in silent:
        sock.close()


def test_the_targets_folder_holds_nothing_that_was_not_committed(site: ShipSite, tmp_path: Path) -> None:
    assert site.stored() == {}
