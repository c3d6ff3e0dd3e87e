"""What arrived is settled in a thread beside, while more is on its way; the first error of any stage ends all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError
from secondsite.model.ids import Digest
from secondsite.ship.delivery import BATCH_MAX, Outgoing, Run, StoppedError
from secondsite.ship.protocol import PartKind

PATIENCE_S = 10.0


def parts(count: int) -> list[Outgoing]:
    return [Outgoing(Digest(f"{at:064x}"), PartKind.LOG, Path("none"), 1) for at in range(count)]


def test_each_part_is_settled_once_after_it_was_delivered() -> None:
    delivered: set[Digest] = set()
    settled: list[Digest] = []

    def settle(batch: list[Outgoing]) -> None:
        assert 0 < len(batch) <= BATCH_MAX
        assert {part.digest for part in batch} <= delivered
        settled.extend(part.digest for part in batch)

    sent = parts(40)
    Run(None, threading.Event()).through(sent, 2, lambda part: delivered.add(part.digest), settle)
    assert sorted(settled) == [part.digest for part in sent]


def test_parts_are_delivered_while_others_are_settled() -> None:
    second = threading.Event()

    def deliver(part: Outgoing) -> None:
        if part.digest.endswith("1"):
            second.set()

    def settle(batch: list[Outgoing]) -> None:
        assert second.wait(PATIENCE_S), "nothing was delivered meanwhile"

    Run(None, threading.Event()).through(parts(2), 1, deliver, settle)


def test_little_piles_up_before_a_slow_settling() -> None:
    release = threading.Event()
    delivered: list[Outgoing] = []
    run = Run(None, threading.Event())

    def produce() -> Iterator[Outgoing]:
        for at, part in enumerate(parts(100)):
            if at == 60:
                release.set()
            yield part

    def settle(_: list[Outgoing]) -> None:
        # Whatever the threads do meanwhile, the queues are full long before the producer's 60th part.
        assert not release.is_set()
        assert len(delivered) < 40
        raise UnavailableError("seen enough")

    with pytest.raises(UnavailableError, match="seen enough"):
        run.through(produce(), 2, delivered.append, settle)


def test_an_error_of_the_settling_ends_the_transfer() -> None:
    def settle(_: list[Outgoing]) -> None:
        raise UnavailableError("the base is full")

    with pytest.raises(UnavailableError, match="the base is full"):
        Run(None, threading.Event()).through(iter(parts(1000)), 2, lambda _: None, settle)


def test_nothing_is_settled_after_an_error_of_a_delivery() -> None:
    settled: list[Outgoing] = []

    def deliver(_: Outgoing) -> None:
        raise UnavailableError("the line is cut")

    with pytest.raises(UnavailableError, match="the line is cut"):
        Run(None, threading.Event()).through(iter(parts(10)), 2, deliver, settled.extend)
    assert settled == []


def test_a_transfer_that_is_cancelled_amid_its_parts_does_not_end_as_if_all_were_sent() -> None:
    cancelled = threading.Event()

    def produce() -> Iterator[Outgoing]:
        yield parts(1)[0]
        cancelled.set()
        yield from parts(10)[1:]

    with pytest.raises(StoppedError):
        Run(None, cancelled).through(produce(), 1, lambda _: None)
