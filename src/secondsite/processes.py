"""Child processes that outlive us, known by a pid file and ended only by their own pid.

Promises: a process that `spawn` started has a pid file before it runs a single instruction of its program, so a
crash between the two leaves nothing behind that nobody knows. The pid file holds the pid, the process's start time and
the boot's id: a pid that was given to somebody else meanwhile is never taken for ours, and signals go through a
pidfd, so that it can't happen in between either. Children run in a session of their own and are adopted with `find` by
whoever comes after us.

It does not restart anything: whoever owns a child decides that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    TimeoutExceededError,
    UnavailableError,
)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_KILL_TIMEOUT_S: Final = 10.0
_LOG_TAIL: Final = 4096

# Waits for a line before it becomes the program: the line is sent when the pid file is durable, and if we die
# before, the read fails and the child ends without having done anything. exec keeps pid and start time.
_GATE: Final = 'read -r go && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process of this boot, for certain. `start_time` is in clock ticks since the boot (proc_pid_stat, 22)."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        state = _stat(self.pid)
        return state is not None and state.start_time == self.start_time and state.letter not in "ZX"


def spawn(
    argv: Sequence[str],
    *,
    pid_file: Path,
    log_file: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> ProcessRef:
    """Start a detached process whose output goes to `log_file` (the previous log becomes `<log_file>.old`).

    Callers that could start the same thing at the same time hold a lock of theirs.

    Raises:
        ConflictError: the process that `pid_file` names is still alive.
        NotFoundError: there is no such program.
    """
    existing = find(pid_file)
    if existing is not None:
        raise ConflictError(f"process {existing.pid} still runs", pid=existing.pid, pid_file=str(pid_file))
    program = shutil.which(argv[0], path=None if env is None else env.get("PATH"))
    if program is None:
        raise NotFoundError(f"{argv[0]} is not installed", hint=f"install the package that has {argv[0]}")
    with contextlib.suppress(FileNotFoundError):
        log_file.replace(log_file.with_name(log_file.name + ".old"))
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "sh", program, *argv[1:]],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    # Reaps the child when it ends while we live; after our death init does.
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    assert process.stdin is not None
    with process.stdin as gate:
        state = _stat(process.pid)
        if state is None:
            raise UnavailableError(f"{argv[0]} ended at once", log=log_tail(log_file))
        ref = ProcessRef(process.pid, state.start_time)
        _write_pid_file(pid_file, ref)
        with contextlib.suppress(BrokenPipeError):  # killed already: the caller's wait_ready finds out
            gate.write(b"go\n")
            gate.flush()
    return ref


def find(pid_file: Path) -> ProcessRef | None:
    """Return the live process that `pid_file` names, or None if it ended (or the file is missing or foreign)."""
    try:
        fields = json.loads(pid_file.read_bytes())
        ref = ProcessRef(int(fields["pid"]), int(fields["start_time"]))
        boot = fields["boot"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return ref if boot == _boot_id() and ref.alive else None


def terminate(ref: ProcessRef, timeout_s: float) -> None:
    """End the process: SIGTERM, and SIGKILL when it still runs after `timeout_s`. Returns when it has ended.

    Raises:
        TimeoutExceededError: not even SIGKILL ended it (it hangs in the kernel).
        ForbiddenError: it belongs to another user.
    """
    with _Watch(ref) as watch:
        for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
            if watch.signal(number, wait_s):
                return
    raise TimeoutExceededError(f"process {ref.pid} does not end", pid=ref.pid)


def wait_ready(
    predicate: Callable[[], bool],
    *,
    ref: ProcessRef,
    what: str,
    log_file: Path,
    timeout_s: float = 10.0,
    interval_s: float = 0.01,
) -> None:
    """Return when `predicate` holds; it is asked every `interval_s` while the process lives.

    Raises:
        UnavailableError: the process ended; its last output is in the message.
        TimeoutExceededError: `timeout_s` passed. The process is left running.
    """
    deadline = time.monotonic() + timeout_s
    with _Watch(ref) as watch:
        while True:
            ended = watch.ended(0)
            if predicate():
                return
            if ended:
                tail = log_tail(log_file)
                raise UnavailableError(f"{what} ended at once: {tail or 'it said nothing'}", log=tail)
            if time.monotonic() >= deadline:
                raise TimeoutExceededError(
                    f"{what} is not ready after {timeout_s:g} s", log=log_tail(log_file)
                )
            watch.ended(interval_s)


def log_tail(log_file: Path) -> str:
    """Return the end of a child's output, for an error message; empty when there is none."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


class _Watch:
    """A pidfd of `ref`, if it is still the process that we mean."""

    def __init__(self, ref: ProcessRef) -> None:
        self._ref = ref
        self._fd = -1

    def __enter__(self) -> _Watch:
        with contextlib.suppress(ProcessLookupError):
            self._fd = os.pidfd_open(self._ref.pid)
        # Checked after the pidfd is open: from here on the pid cannot become somebody else's.
        if self._fd >= 0 and not self._ref.alive:
            self._close()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def ended(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for the end; a pidfd becomes readable then."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def signal(self, number: signal.Signals, wait_s: float) -> bool:
        """Send the signal and return whether the process has ended within `wait_s`."""
        if self._fd < 0:
            return True
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return True
        except PermissionError as error:
            raise ForbiddenError(f"process {self._ref.pid} belongs to another user") from error
        return self.ended(wait_s)


@dataclass(frozen=True, slots=True)
class _Stat:
    letter: str
    start_time: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(letter=fields[0], start_time=int(fields[19]))


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _write_pid_file(pid_file: Path, ref: ProcessRef) -> None:
    # Renamed into place, but not fsynced: after a power cut the process is gone, too.
    temporary = pid_file.with_name(f"{pid_file.name}.{ref.pid}.tmp")
    fields = {"pid": ref.pid, "start_time": ref.start_time, "boot": _boot_id()}
    temporary.write_text(json.dumps(fields) + "\n")
    temporary.replace(pid_file)
