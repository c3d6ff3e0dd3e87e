"""The view server, with its real socket and threads, under clients that send anything: it goes on serving the others."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

from secondsite.nbd.server import NbdServer
from support.fuzz_loop import own_bugs
from support.fuzz_mutation import mutated
from support.nbd_wire import Client, MemoryDisk, go, option, request

CONTENT = os.urandom(64 << 10)
HELLO = b"\0\0\0\3"
SEEDS = [
    HELLO + option(7, go("vda")) + request(0, 1, 0, 4096) + request(2, 2),
    HELLO + option(8) + option(7, go("vda")) + request(7, 1, 0, 65536) + request(0, 2, 4096, 8192),
    HELLO + option(3) + option(2),
]
WORDS = [option(number) for number in range(1, 11)] + [request(kind, 3, 0, 512) for kind in range(8)]
TRIES = 250


def test_a_good_client_reads_right_beside_hostile_ones(short_path: Path) -> None:
    rng = random.Random(0)
    wrong: list[str] = []
    over = threading.Event()

    def reads() -> None:
        client = Client.connect(short_path / "s")
        client.go("vda")
        number = 0
        while not over.is_set():
            number += 1
            client.send(request(0, number, 4096, 8192))
            if client.data() != (number, CONTENT[4096:12288]):
                wrong.append(f"read {number}")
        client.close()

    with NbdServer({"vda": MemoryDisk(CONTENT)}, short_path / "s", handshake_timeout_s=5.0) as server:
        reader = threading.Thread(target=reads)
        reader.start()
        with own_bugs() as logged:
            for _ in range(TRIES):
                _hostile(short_path / "s", mutated(rng, rng.choice(SEEDS), rng.choice(SEEDS), WORDS))
        over.set()
        reader.join(20)
        assert not reader.is_alive()
        assert not wrong
        assert not logged, logged[0]
        assert server.connections <= 1, "a hostile connection has stayed"


def _hostile(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 20):
                pass
        except (BrokenPipeError, ConnectionResetError):
            return
