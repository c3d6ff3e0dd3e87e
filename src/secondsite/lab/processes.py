"""Processes that the lab started: how they are recognised again, and how they are ended.

A bare pid is not an identity: the kernel uses it again. Here a process is its pid and its start time (field 22 of
/proc/PID/stat), so that nothing which merely took over the number is ever killed. No process is looked up by its name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine, as it was seen once. `started` is in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has `pid` now; None if there is none, or only its zombie."""
        try:
            text = (_PROC / str(pid) / "stat").read_text()
        except OSError:
            return None
        # The name stands in parentheses and may hold anything, also spaces and ")".
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Return what `str()` wrote; None if it is something else."""
        try:
            pid, started = text.split()
            return cls(int(pid), int(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.pid} {self.started}"

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return Process.of(self.pid) == self

    @property
    def command_line(self) -> list[str]:
        """Its arguments; empty if it is gone."""
        return self._strings("cmdline")

    @property
    def environment(self) -> list[str]:
        """Its variables as NAME=value; empty if it is gone or not ours to look at."""
        return self._strings("environ")

    def _strings(self, name: str) -> list[str]:
        try:
            data = (_PROC / str(self.pid) / name).read_bytes()
        except OSError:
            return []
        return [os.fsdecode(part) for part in data.split(b"\0") if part]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens if it is gone."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def all_processes() -> Iterator[Process]:
    """Every process that this machine shows us."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (process := Process.of(int(entry.name))) is not None:
            yield process


def wait_until_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until all of them are gone; return those that still run after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if process.alive]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [process for process in left if process.alive]
    return left


def end(processes: Iterable[Process], *, grace_s: float = 5.0) -> list[Process]:
    """Ask the processes to end, kill those that do not within `grace_s`, and return what even that left."""
    wanted = list(processes)
    for process in wanted:
        process.signal(signal.SIGTERM)
    left = wait_until_gone(wanted, grace_s)
    for process in left:
        process.signal(signal.SIGKILL)
    return wait_until_gone(left, grace_s)


def kill(processes: Iterable[Process]) -> list[Process]:
    """Kill the processes at once; return what is left after five seconds (a process in uninterruptible sleep)."""
    wanted = list(processes)
    for process in wanted:
        process.signal(signal.SIGKILL)
    return wait_until_gone(wanted, 5.0)
