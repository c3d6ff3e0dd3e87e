"""The spool's budget: waits for room, never for ever."""

from __future__ import annotations

import threading

import pytest

from secondsite.capture.port import CancelledError
from secondsite.capture.spool import SpoolBudget


def test_one_part_larger_than_the_budget_is_let_through() -> None:
    budget = SpoolBudget(10)
    budget.acquire(100)
    assert budget.used == 100


def test_acquiring_waits_until_somebody_releases() -> None:
    budget = SpoolBudget(10)
    budget.acquire(8)
    acquired = threading.Event()

    def take() -> None:
        budget.acquire(5)
        acquired.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not acquired.wait(0.05)
    budget.release(8)
    assert acquired.wait(10)
    thread.join(10)
    assert budget.used == 5


def test_cancelling_ends_the_wait_and_acquires_nothing() -> None:
    budget = SpoolBudget(10)
    budget.acquire(8)
    with pytest.raises(CancelledError):
        budget.acquire(5, cancelled=lambda: True)
    assert budget.used == 8
