"""The order in which parts that arrived are settled, and how a transfer ends that cannot go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.ids import Digest
from secondsite.ship.delivery import Outgoing, Run
from secondsite.ship.protocol import PartKind


def part(number: int, kind: PartKind = PartKind.LOG) -> Outgoing:
    return Outgoing(Digest(f"{number:064x}"), kind, Path("/nowhere"), 1)


def test_zeros_are_settled_behind_all_logs() -> None:
    """Only a log tells the target that a disk has grown; a list of zeros is small and overtakes it."""
    settled: list[Outgoing] = []
    parts = [part(1, PartKind.ZEROS), part(2), part(3, PartKind.ZEROS), part(4), part(5, PartKind.ZEROS)]
    Run(None, threading.Event()).through(iter(parts), 1, lambda _: None, settled.extend)
    assert settled == [parts[1], parts[3], parts[0], parts[2], parts[4]]


def test_zeros_are_not_settled_behind_a_log_that_failed() -> None:
    settled: list[Outgoing] = []

    def settle(batch: list[Outgoing]) -> None:
        if batch[0].kind is PartKind.LOG:
            raise ConnectionError("lost")
        settled.extend(batch)

    with pytest.raises(ConnectionError):
        Run(None, threading.Event()).through(
            iter([part(1, PartKind.ZEROS), part(2)]), 1, lambda _: None, settle
        )
    assert settled == []


def test_a_worker_that_cannot_be_started_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ship-send":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        Run(None, threading.Event()).through(iter([part(1)]), 2, lambda _: None, lambda _: None)
    assert "ship-settle" not in {thread.name for thread in threading.enumerate()}


def test_a_transfer_that_ends_early_closes_the_producer_before_it_raises() -> None:
    events: list[str] = []

    def produced() -> Iterator[Outgoing]:
        try:
            for number in range(100):
                yield part(number)
        finally:
            events.append("closed")

    def deliver(part: Outgoing) -> None:
        raise ConnectionError("lost")

    try:
        Run(None, threading.Event()).through(produced(), 2, deliver)
    except ConnectionError:
        events.append("raised")
    assert events == ["closed", "raised"]


def test_a_producer_that_cannot_be_closed_is_an_error_unless_there_was_one_before() -> None:
    def produced() -> Iterator[Outgoing]:
        try:
            for number in range(100):
                yield part(number)
        finally:
            raise OSError("no room")

    def deliver(part: Outgoing) -> None:
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError):
        Run(None, threading.Event()).through(produced(), 2, deliver)
