"""Threads of the sender that take turns: real threads, of which one runs at a time, in an order that the seed decides.

Stands in for the modules `threading` and `queue` of `ship.delivery`. A thread gives its turn up where it would wait, and
where a request goes out; never in between, so a story has one course.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any


class _Seat:
    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True


class Turns:
    """Who runs. The thread that made this object has the first turn."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._seats: dict[int, _Seat] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._local = threading.local()
        self._sit(0)

    def pause(self) -> None:
        """Let another thread go on, perhaps."""
        if len(self._seats) > 1:
            self.wait(lambda: True)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let others go on until `ready`."""
        seat = self._seats[self._local.number]
        seat.ready = ready
        chosen = self._next()
        if chosen is not seat:
            chosen.turn.release()
            seat.turn.acquire()

    def run(self, act: Callable[[], None]) -> Callable[[], bool]:
        """Start a thread that waits for its turn; return what says that it has ended."""
        number = next(self._numbers)
        seat = self._seats[number] = _Seat()

        def body() -> None:
            self._local.number = number
            seat.turn.acquire()
            try:
                act()
            finally:
                del self._seats[number]
                self._next().turn.release()

        threading.Thread(target=body, name=f"turn-{number}", daemon=True).start()
        return lambda: number not in self._seats

    def _sit(self, number: int) -> None:
        self._seats[number] = _Seat()
        self._local.number = number

    def _next(self) -> _Seat:
        ready = [seat for _, seat in sorted(self._seats.items()) if seat.ready()]
        if not ready:
            raise RuntimeError("every thread waits for another")
        return self._chance.choice(ready)


class _Thread:
    def __init__(self, turns: Turns, target: Callable[[], None]) -> None:
        self._turns, self._target = turns, target
        self._ended: Callable[[], bool] = lambda: True

    def start(self) -> None:
        self._ended = self._turns.run(self._target)

    def join(self) -> None:
        if not self._ended():
            self._turns.wait(self._ended)


class _Queue:
    def __init__(self, turns: Turns, maxsize: int) -> None:
        self._turns, self._maxsize = turns, maxsize
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._turns.wait(lambda: len(self._items) < self._maxsize)
        self._items.append(item)

    def empty(self) -> bool:
        return not self._items

    def get(self) -> Any:
        self._turns.wait(lambda: bool(self._items))
        return self._items.popleft()


class ThreadingTurns:
    """What `ship.delivery` uses of `threading`."""

    Event = threading.Event
    Lock = staticmethod(threading.Lock)

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def Thread(self, *, target: Callable[[], None], name: str, daemon: bool) -> _Thread:
        return _Thread(self._turns, target)


class QueueTurns:
    """What `ship.delivery` uses of `queue`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def Queue(self, maxsize: int) -> _Queue:
        return _Queue(self._turns, maxsize)
