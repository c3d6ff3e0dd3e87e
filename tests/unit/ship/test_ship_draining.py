"""An answer is waited for as long as the question leaves, and no longer."""

from __future__ import annotations

import fcntl
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from secondsite.ship import draining

STEP_S = 0.02


class Plain:
    """A socket with the one question that only TLS sockets answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def pending(self) -> int:
        return 0

    def fileno(self) -> int:
        return self._sock.fileno()


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        theirs, _ = server.accept()
        with theirs:
            yield Plain(ours), theirs


def leaving(monkeypatch: pytest.MonkeyPatch, *left: int) -> list[int]:
    """Let the kernel hold so many bytes at each look; the last figure stays."""
    figures = list(left)

    def look(_sock: object) -> int:
        return figures.pop(0) if len(figures) > 1 else figures[0]

    monkeypatch.setattr(draining, "_unacknowledged", look)
    return figures


def test_the_kernel_says_what_the_peer_has_not_taken(pair: tuple[Any, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours._sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours._sock.send(bytes(65536))
    assert draining._unacknowledged(ours) > 0


def test_what_leaves_is_waited_for_until_the_answer_comes(
    pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    looks: list[int] = []

    def look(_sock: object) -> int:
        looks.append(100 - len(looks))
        if len(looks) == 5:
            theirs.sendall(b"answer")
        return looks[-1]

    monkeypatch.setattr(draining, "_unacknowledged", look)
    draining.wait_for_answer(ours, STEP_S)
    assert len(looks) == 5, "four time-outs have passed, and something left in each"


def test_a_full_time_out_is_granted_after_the_last_byte_left(
    pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = leaving(monkeypatch, 50, 0, 0)
    with pytest.raises(TimeoutError):
        draining.wait_for_answer(pair[0], STEP_S)
    assert figures == [0], "it looked again after nothing was left"


@pytest.mark.parametrize("left", [0, 4096])
def test_a_peer_that_takes_nothing_is_given_up_after_one_time_out(
    pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    leaving(monkeypatch, left)
    with pytest.raises(TimeoutError):
        draining.wait_for_answer(pair[0], STEP_S)


def test_a_node_that_holds_more_than_1024_descriptors_waits_as_well(
    pair: tuple[Any, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    theirs.sendall(b"answer")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    try:
        with socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 2000)) as high:
            leaving(monkeypatch, 1)
            draining.wait_for_answer(Plain(high), STEP_S)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
