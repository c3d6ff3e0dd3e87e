"""One site's hypervisor: a libvirtd of its own, with all of its state in one folder.

Two of them on one machine are the two sites of the tests and of the demo. `secondsite.lab.recipe` says how each is run;
as which user, and whether it has networks, depends on who asks.

Promises: nothing outside the folder is written (but the shared capability cache); `stop` ends the daemon, its guests
and its dnsmasq, each recognised by more than its number, and nothing else; `start` after a crash works.
It does not care for speed of guests: they run without KVM.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from secondsite import durable
from secondsite.errors import InvalidInputError, TimeoutExceededError, UnavailableError
from secondsite.lab import capabilities, networks, processes
from secondsite.lab.processes import Process
from secondsite.lab.recipe import Mode, recipe_for
from secondsite.lab.tools import find

_PROGRAMS = ("libvirtd", "qemu-system-x86_64")
_POLL_S = 0.02
_START_TIMEOUT_S = 60.0  # a cold start probes every emulator: 4 to 8 s on two cores
_SETTLE_TIMEOUT_S = 40.0  # longer than the 30 s for which libvirt may try a monitor again


class Hypervisor:
    """A libvirtd with its guests. `directory` is its own, is made if missing, and must have a short path.

    Use it as a context manager (stops at the end), or call `start` and `stop`. A second object for the same folder,
    also in another process, takes over what runs there.
    """

    def __init__(
        self, directory: Path, name: str, *, cache: Path | None = None, mode: Mode | None = None
    ) -> None:
        directory = directory.absolute()
        self._recipe = recipe_for(directory, mode)
        longest = self._recipe.path_length_max
        if len(os.fsencode(directory)) > longest:
            raise InvalidInputError(
                f"the hypervisor's folder has too long a path: {directory}",
                hint=f"at most {longest} bytes, for the sake of Unix sockets below it; use a folder in /tmp",
            )
        self.directory = directory
        self.name = name
        self.storage = directory / "disks"
        """Where its guests' disk images lie."""
        self._cache = capabilities.default_cache() if cache is None else cache
        self._child: subprocess.Popen[bytes] | None = None

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Which recipe it runs by."""
        return self._recipe.mode

    @property
    def uri(self) -> str:
        """The libvirt URI; any process of the same user (or root) can open it."""
        return f"qemu+unix:///{self._recipe.driver}?socket={self._recipe.socket}"

    @property
    def has_networks(self) -> bool:
        """Whether this hypervisor can have virtual networks."""
        return self.mode is Mode.NAMESPACE

    @property
    def is_running(self) -> bool:
        """Whether the daemon runs (its guests may run without it)."""
        return self.daemon is not None

    @property
    def daemon(self) -> Process | None:
        """The libvirtd, None if it does not run."""
        with suppress(OSError):
            process = Process.parse(self._pid_file.read_text())
            if process is not None and process.alive:
                return process
        return None

    def guests(self) -> list[Process]:
        """The QEMU processes of this hypervisor, also when its daemon does not run."""
        return [process for process in self._processes() if process != self.daemon and _is_qemu(process)]

    @property
    def log(self) -> Path:
        """The daemon's own log."""
        return self.directory / "libvirtd.log"

    # -- start and stop --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until it answers. Nothing happens if it runs already.

        Raises UnavailableError with the daemon's last words if it ends, TimeoutExceededError if it does not answer.
        """
        if self.is_running:
            return
        kept = capabilities.capability_folder(
            self._cache, self.mode.value, [find(name) for name in _PROGRAMS]
        )
        self.storage.mkdir(parents=True, exist_ok=True)
        durable.write_atomic(self.directory / "mode", self.mode.value.encode())
        self._recipe.write_configuration(self.log)
        restored = capabilities.restore(kept, self._recipe.capabilities)
        self._recipe.give_away()
        # A socket that a killed daemon left would look like one that answers.
        for stale in self._recipe.socket.parent.glob("libvirt-sock*"):
            stale.unlink()
        with (self.directory / "output").open("wb") as output, _on_first_cpu():
            self._child = subprocess.Popen(
                self._recipe.command(next(iter(self._processes()), None)),
                cwd=self.directory,
                env=self._recipe.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Written by us, not by libvirtd: whatever stands before it in the command execs, so the pid stays.
        started = Process.of(self._child.pid)
        self._pid_file.write_text(str(started))
        try:
            self._wait_until_it_answers(self._child, probe=not restored)
            self._wait_until_the_dead_are_noticed()
        except BaseException:
            self.stop()
            raise
        _spread(self._child.pid)
        if not restored:
            capabilities.keep(self._recipe.capabilities, kept)

    def stop(self) -> None:
        """End the daemon with its guests and networks, as a power cut would. Files stay; nothing runs afterwards."""
        daemon = self.daemon
        ours = [process for process in self._processes() if process != daemon]
        left = processes.kill(process for process in ours if _is_qemu(process))
        self.stop_daemon()
        left += processes.end(process for process in ours if not _is_qemu(process))
        # Whatever was started while we were looking.
        left += processes.kill(self._processes())
        if left:
            raise TimeoutExceededError(f"processes of {self.name} do not end: {left}")

    def stop_daemon(self, *, kill: bool = False) -> None:
        """End only libvirtd, at once if `kill`; its guests run on. `start` brings it back to them."""
        daemon = self.daemon
        if daemon is not None:
            (processes.kill if kill else processes.end)([daemon])
        if self._child is not None:
            self._child.wait(5)
            self._child = None

    def remove(self) -> None:
        """Stop, and delete the folder with all that is in it."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- use -------------------------------------------------------------------------------------------------

    def connect(self) -> libvirt.virConnect:
        """Open a connection of one's own to it; the caller closes it."""
        # Errors are raised; libvirt would print each of them, too.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        return libvirt.open(self.uri)

    def define_networks(self) -> list[str]:
        """Define and start the isolated networks of the lab; return their names (none without networks)."""
        if not self.has_networks:
            return []
        connection = self.connect()
        try:
            return networks.define(connection)
        finally:
            connection.close()

    def own(self, path: Path) -> Path:
        """Let this hypervisor's guests use a file that the caller made; return it."""
        self._recipe.own(path)
        return path

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.directory / "daemon"

    def _processes(self) -> Iterator[Process]:
        return (process for process in processes.all_processes() if self._recipe.owns(process))

    def _wait_until_it_answers(self, child: subprocess.Popen[bytes], *, probe: bool) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _accepts(self._recipe.socket):
            if child.poll() is not None:
                raise UnavailableError(f"libvirtd of {self.name} ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutExceededError(f"libvirtd of {self.name} made no socket: {self._last_words()}")
            time.sleep(_POLL_S)
        # It accepts before its drivers are ready, and an open then blocks without a limit of its own.
        failures: list[libvirt.libvirtError] = []
        waiter = threading.Thread(
            target=self._try, args=(failures, probe), daemon=True, name=f"open-{self.name}"
        )
        waiter.start()
        waiter.join(max(0.0, deadline - time.monotonic()))
        if waiter.is_alive():
            raise TimeoutExceededError(f"libvirtd of {self.name} does not answer: {self._last_words()}")
        if failures:
            raise UnavailableError(f"libvirtd of {self.name} refuses: {self._last_words()}") from failures[0]

    def _try(self, failures: list[libvirt.libvirtError], probe: bool) -> None:
        try:
            connection = self.connect()
            if probe:
                connection.getCapabilities()  # libvirt probes QEMU when it is first asked
            connection.close()
        except libvirt.libvirtError as error:
            failures.append(error)

    def _wait_until_the_dead_are_noticed(self) -> None:
        """Wait until every guest that libvirt calls active has its QEMU.

        A daemon that ended before it saw its guest end left a state file; the next one calls the guest active until its
        own thread fails to reconnect, a moment after it answers.
        """
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        connection = self.connect()
        try:
            while True:
                domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
                alive = {_guest_name(process) for process in self.guests()} if domains else set()
                dead = sorted({domain.name() for domain in domains} - alive)
                if not dead:
                    return
                if time.monotonic() > deadline:
                    raise TimeoutExceededError(f"libvirtd of {self.name} calls ended guests active: {dead}")
                time.sleep(_POLL_S)
        finally:
            connection.close()

    def _last_words(self) -> str:
        texts = []
        for path in (self.directory / "output", self.log):
            with suppress(OSError):
                texts.append(path.read_text(errors="replace").strip()[-1500:])
        return "\n".join(text for text in texts if text) or "it said nothing"


@contextmanager
def _on_first_cpu() -> Iterator[None]:
    """Let children that start in here start on the first processor that we may use.

    libvirt compares the CPUID that it reads at its start with the one in the capability cache, and that holds the
    number of the processor it was read on (leaf 0x1f): on another one it would throw the cache away, and probe for 8 s.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _spread(pid: int) -> None:
    """Give the threads of a process that was started on the first processor all processors that we have."""
    for thread in (Path("/proc") / str(pid) / "task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))


def _is_qemu(process: Process) -> bool:
    command = process.command_line
    return bool(command) and Path(command[0]).name.startswith("qemu-system") and "-name" in command


def _guest_name(process: Process) -> str | None:
    """The name of a QEMU process's guest; None if the process is gone."""
    command = process.command_line
    if "-name" not in command[:-1]:
        return None
    options = command[command.index("-name") + 1].split(",")
    return next((option.removeprefix("guest=") for option in options if option.startswith("guest=")), None)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
