"""The processes that serve views: one per machine that still reads from the journal.

A view outlives this daemon, so a restart of the node does not disturb a running machine: it is found again by its
pid file. One that died is started again on the same socket, and the machine that paused for it is resumed.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite import processes
from secondsite.errors import SecondSiteError
from secondsite.model.ids import Sequence

READY_S: Final = 60.0
_POLL_S: Final = 0.002
"""A machine waits for the answer; asking takes 20 microseconds."""


@dataclass(frozen=True, slots=True)
class ViewPlace:
    """Where a view's process leaves its traces; the name is the socket's, unguessable."""

    run: Path
    name: str

    @property
    def socket(self) -> Path:
        return self.run / f"{self.name}.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.run / f"{self.name}.log"

    @property
    def prepared(self) -> Path:
        return self.run / f"{self.name}.prepared"


class Views:
    """Starts, finds again and ends view processes in one `run` folder. Thread-safe."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._lock = threading.Lock()

    @staticmethod
    def new_name() -> str:
        """Return a fresh, unguessable name: whoever may enter the folder still has to know it."""
        return f"v{secrets.token_hex(8)}"

    def place(self, name: str) -> ViewPlace:
        """Return where the view of that name is."""
        return ViewPlace(self._run, name)

    def ensure(
        self, name: str, journal: Path, sequence: Sequence, prepare: Callable[[Path], None] | None = None
    ) -> Path:
        """Have the point served; return the socket once it answers. Starting it twice is harmless.

        `prepare` writes what this process knows of the point already (`Journal.prepare_view`), so that the view opens sooner.
        Where it fails the view finds out by itself, and says why it cannot be served if it cannot.

        Raises:
            UnavailableError: it ended at once; the message ends with its last words.
            TimeoutExceededError: it does not answer.
        """
        place = self.place(name)
        with self._lock:
            running = processes.find(place.pid_file)
            if running is None:
                argv = [sys.executable, "-m", "secondsite.nbd.view", "--journal", str(journal)]
                argv += ["--sequence", str(sequence), "--socket", str(place.socket), "--mode", "0666"]
                argv += ["--run-dir", str(self._run)]
                if prepare is not None or place.prepared.exists():
                    argv += ["--prepared", str(place.prepared)]
                running = processes.spawn(argv, pid_file=place.pid_file, log_file=place.log_file)
                if prepare is not None:
                    _prepare(prepare, place.prepared)  # while the process starts; it waits for that
            processes.wait_ready(
                lambda: _answers(place.socket),
                ref=running,
                what=f"the view of point {sequence}",
                log_file=place.log_file,
                timeout_s=READY_S,
                interval_s=_POLL_S,
            )
        return place.socket

    def alive(self, name: str) -> bool:
        """Whether the view's process runs."""
        return processes.find(self.place(name).pid_file) is not None

    def end(self, name: str) -> None:
        """End the view and remove its traces. Idempotent."""
        if not name:
            return
        place = self.place(name)
        with self._lock:
            running = processes.find(place.pid_file)
            if running is not None:
                processes.terminate(running, timeout_s=10)
            # One that was started again has the log of its first run beside its own.
            older = place.log_file.with_name(place.log_file.name + ".old")
            for path in (place.socket, place.pid_file, place.log_file, older, place.prepared):
                path.unlink(missing_ok=True)


def _prepare(prepare: Callable[[Path], None], path: Path) -> None:
    """Have the file written; an empty one tells the view that there is nothing to wait for."""
    try:
        prepare(path)
    except (SecondSiteError, OSError):
        with suppress(OSError):
            path.write_bytes(b"")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            return client.recv(8) == b"NBDMAGIC"
        except OSError:
            return False
