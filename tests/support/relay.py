"""Tells one lab guest what another one has done: the effect follows its cause, over two machines."""

from __future__ import annotations

import re
import threading
import time
from types import TracebackType
from typing import Self

from secondsite.errors import SecondSiteError
from secondsite.lab.console import ConsoleReader

_DID = re.compile(r"SS-DID n=(\d+)")


class Relay:
    """Reads which record `cause` wrote last and types it on the console of `effect`, again and again.

    The next number is sent once the effect of the one before was printed, so the guest's terminal never overflows.
    """

    def __init__(self, cause: ConsoleReader, effect: ConsoleReader) -> None:
        self._cause = cause
        self._effect = effect
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self.delays: list[float] = []
        """Seconds from a number's being read to its effect's being printed."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        told = 0
        while not self._stop.is_set():
            number = last_done(self._cause)
            if number <= told:
                self._stop.wait(0.001)
                continue
            began = time.monotonic()
            try:
                self._effect.send(f"{number}\n")
                while last_done(self._effect) < number and not self._stop.is_set():
                    self._stop.wait(0.001)
            except SecondSiteError:
                return  # the guest is gone
            self.delays.append(time.monotonic() - began)
            told = number


def last_done(console: ConsoleReader) -> int:
    """Return the number of the last record that the guest said it wrote; 0 if none."""
    for line in reversed(console.lines):
        if found := _DID.search(line):
            return int(found[1])
    return 0
