"""Reads a guest's serial console through libvirt, on whichever hypervisor the guest runs.

The console is a pty on the hypervisor's side: what the guest prints while nobody reads is lost. So the workload says
each second how far it is, and a reader that comes late has missed nothing that it needs. To see all of a boot, start
the guest paused, attach, and resume.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

import libvirt

from secondsite.errors import TimeoutExceededError, UnavailableError
from secondsite.lab.hypervisor import Hypervisor

_CHUNK = 4096


class ConsoleReader:
    """Collects the lines of one run of a guest, from when it is made until the guest ends or `close` is called.

    It has a connection of its own, so a reader that waits holds up nobody else. Made while the guest does not run, it raises
    UnavailableError. Only one reader per guest at a time: a second one ends the first.
    """

    def __init__(self, hypervisor: Hypervisor, name: str) -> None:
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._partial = ""
        self._ended = False
        self._closing = False
        self._name = name
        self._connection = hypervisor.connect()
        try:
            self._stream = self._connection.newStream(0)
            domain = self._connection.lookupByName(name)
            domain.openConsole(None, self._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        except libvirt.libvirtError as error:
            self._connection.close()
            raise UnavailableError(f"the console of {name} cannot be read: {error}") from error
        self._thread = threading.Thread(target=self._collect, name=f"console-{name}", daemon=True)
        self._thread.start()

    @property
    def lines(self) -> list[str]:
        """All whole lines so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, pattern: str, timeout_s: float = 30.0, *, after: int = 0) -> re.Match[str]:
        """Wait for a line in which `pattern` is found, looking from line number `after` on; return the match.

        Raises TimeoutExceededError, with the last lines, when time is up or the console ended without it.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            place = after
            while True:
                for line in self._lines[place:]:
                    if found := re.search(pattern, line):
                        return found
                place = max(place, len(self._lines))
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "ended" if self._ended else f"was silent about it for {timeout_s:g} s"
                    raise TimeoutExceededError(
                        f"the console of {self._name} {why}: no {pattern!r} in {self._lines[-15:]}"
                    )
                self._changed.wait(left)

    def wait_for_end(self, timeout_s: float = 30.0) -> list[str]:
        """Wait until the guest is gone; return all lines."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout_s):
                raise TimeoutExceededError(
                    f"{self._name} still runs after {timeout_s:g} s: {self._lines[-15:]}"
                )
            return list(self._lines)

    def record(self, timeout_s: float = 30.0) -> int:
        """Wait until the guest says, from now on, which record it is at; return its number."""
        return int(self.wait_for(r"SS-AT n=(\d+)", timeout_s, after=len(self.lines))[1])

    def first_record(self, timeout_s: float = 30.0) -> int:
        """Wait until the guest has said which record it wrote first in this run; return its number."""
        return int(self.wait_for(r"SS-FIRST n=(\d+)|SS-AT n=\d+ first=(\d+)", timeout_s).expand(r"\1\2"))

    def send(self, text: str) -> None:
        """Type `text` on the guest's console. A line of more than 4095 bytes, or many that nobody reads, are cut by its kernel."""
        data = text.encode()
        while data:
            try:
                data = data[max(0, self._stream.send(data)) :]
            except libvirt.libvirtError as error:
                raise UnavailableError(f"the console of {self._name} takes nothing: {error}") from error

    def close(self) -> None:
        """Stop reading; the lines stay. Safe to call twice."""
        with self._changed:
            already, self._closing = self._closing, True
        if already:
            return
        with suppress(libvirt.libvirtError):  # the guest may be gone, and the stream with it
            self._stream.abort()
        self._thread.join(5.0)
        with suppress(libvirt.libvirtError):  # the hypervisor may be gone
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self) -> None:
        while True:
            try:
                data = self._stream.recv(_CHUNK)
            except libvirt.libvirtError:
                data = b""  # ended: the guest or the hypervisor is gone, or close() was called
            if not isinstance(data, bytes) or not data:
                break
            self._take(data.decode("utf-8", errors="replace"))
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, text: str) -> None:
        with self._changed:
            *whole, self._partial = (self._partial + text).split("\n")
            self._lines += [line.rstrip("\r") for line in whole]
            if whole:
                self._changed.notify_all()
