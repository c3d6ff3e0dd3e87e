"""One site's hypervisor: a libvirtd of its own, with all of its state in one folder.

Two of them on one machine are the two sites of the tests and of the demo. Which recipe is used depends on who asks:

- an ordinary user gets a *session* libvirtd with its own XDG folders. It has no virtual networks.
- root gets a *system* libvirtd in a mount and network namespace of its own, so that it has networks of its own and
  neither sees nor touches the machine's libvirt. Both vanish with the last process in them.
- root where namespaces are not permitted gets the session libvirtd run as "nobody"; `mode` says so.

Promises: nothing outside the folder is written (but the shared capability cache); `stop` ends the daemon, its guests
and its dnsmasq, each recognised by more than its number, and nothing else; `start` after a crash works.
It does not care for speed of guests: they run without KVM.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from secondsite.errors import InvalidInputError, TimeoutExceededError, UnavailableError
from secondsite.lab import capabilities, networks, processes
from secondsite.lab.processes import Process

_FOLDER_LENGTH_MAX = 48
"""A Unix socket's path holds 107 bytes; QEMU's monitor is config/libvirt/qemu/lib/domain-NN-NAME/monitor.sock below us."""
_POLL_S = 0.02
_START_TIMEOUT_S = 60.0  # a cold start probes every emulator: 4 to 8 s on two cores
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

_IN_NAMESPACE = """
set -e
for pair in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
  mkdir -p "${pair#*:}"
  mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
for file in passwd group; do
  if [ -e "$1/$file" ]; then mount --bind "$1/$file" "/etc/$file"; fi
done
mount -t sysfs sysfs /sys
ip link set lo up
exec libvirtd -p "$1/run/libvirtd.pid" -f /etc/libvirt/libvirtd.conf
"""
# sysfs shows the network namespace that it was mounted in: libvirt looks for its bridges there.


class Mode(StrEnum):
    """Which recipe the hypervisor runs by."""

    SESSION = "session"  # as the ordinary user who asked
    NAMESPACE = "namespace"  # as root, with namespaces and networks of its own
    NOBODY = "nobody"  # asked by root, run as nobody: namespaces are not permitted here


class Hypervisor:
    """A libvirtd with its guests. `directory` is its own, is made if missing, and must have a short path.

    Use it as a context manager (stops at the end), or call `start` and `stop`. A second object for the same folder,
    also in another process, takes over what runs there.
    """

    def __init__(
        self, directory: Path, name: str, *, cache: Path | None = None, mode: Mode | None = None
    ) -> None:
        directory = directory.absolute()
        if len(os.fsencode(directory)) > _FOLDER_LENGTH_MAX:
            raise InvalidInputError(
                f"the hypervisor's folder has too long a path: {directory}",
                hint=f"at most {_FOLDER_LENGTH_MAX} bytes, for the sake of Unix sockets below it; use a folder in /tmp",
            )
        self.directory = directory
        self.name = name
        self.mode = choose_mode() if mode is None else mode
        self.storage = directory / "disks"
        """Where its guests' disk images lie."""
        self._cache = capabilities.default_cache() if cache is None else cache
        self._child: subprocess.Popen[bytes] | None = None

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """The libvirt URI; any process of the same user (or root) can open it."""
        driver = "system" if self.mode is Mode.NAMESPACE else "session"
        return f"qemu+unix:///{driver}?socket={self._socket}"

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
        self._prepare()
        restored = capabilities.restore(self._kept_capabilities, self._capabilities)
        self._give_away()
        # A socket that a killed daemon left would look like one that answers.
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        for stale in self._socket.parent.glob("libvirt-sock*"):
            stale.unlink()
        with (self.directory / "output").open("wb") as output, _on_first_cpu():
            self._child = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Written by us, not by libvirtd: unshare, setpriv and sh all exec, so the pid stays that of the daemon.
        started = Process.of(self._child.pid)
        self._pid_file.write_text(str(started))
        try:
            self._wait_until_it_answers(self._child, probe=not restored)
        except BaseException:
            self.stop()
            raise
        _spread(self._child.pid)
        if not restored:
            capabilities.keep(self._capabilities, self._kept_capabilities)

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
        if self.mode is Mode.NOBODY:
            account = pwd.getpwnam("nobody")
            os.chown(path, account.pw_uid, account.pw_gid)
        return path

    # -- the recipes -----------------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.directory / "daemon"

    @property
    def _socket(self) -> Path:
        if self.mode is Mode.NAMESPACE:
            return self.directory / "run" / "libvirt-sock"
        return self.directory / "run" / "libvirt" / "libvirt-sock"

    @property
    def _capabilities(self) -> Path:
        cache = self.directory / "cache"
        if self.mode is Mode.NAMESPACE:
            return cache / "qemu" / "capabilities"
        return cache / "libvirt" / "qemu" / "cache" / "capabilities"

    @property
    def _kept_capabilities(self) -> Path:
        return capabilities.capability_folder(self._cache, self.mode.value, _binaries())

    def _prepare(self) -> None:
        if self.mode is Mode.NAMESPACE:
            folders = ["etc", "lib", "run", "cache/qemu", "log", "disks"]
            config = self.directory / "etc"
        else:
            # libvirt 9.0 does not start without cache/libvirt/qemu/log.
            folders = ["home", "run/libvirt", "config/libvirt", "cache/libvirt/qemu/log", "data", "disks"]
            config = self.directory / "config" / "libvirt"
        for folder in folders:
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        daemon = {"log_outputs": f"3:file:{self.log}"}
        # stdio_handler: without virtlogd, which would be one more daemon to start.
        qemu: dict[str, str | int | list[str]] = {"security_driver": "none", "stdio_handler": "file"}
        if self.mode is Mode.NAMESPACE:
            daemon |= {"unix_sock_dir": str(self.directory / "run"), "auth_unix_rw": "none"}
            # Dynamic ownership stays on: disks that anybody owns can be used.
            qemu |= {"user": "root", "group": "root", "namespaces": [], "cgroup_controllers": []}
            qemu["remember_owner"] = 0
            self._write_accounts()
        (config / "libvirtd.conf").write_text(_settings(daemon))
        (config / "qemu.conf").write_text(_settings(qemu))

    def _write_accounts(self) -> None:
        # libvirt resolves the account that it was built for before it reads qemu.conf, and does not start without.
        # Where the package's own account is missing, it exists in our namespace only.
        for file, entry in (
            ("passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"),
            ("group", "libvirt-qemu:x:64055:\n"),
        ):
            text = (Path("/etc") / file).read_text()
            if not any(line.startswith("libvirt-qemu:") for line in text.splitlines()):
                (self.directory / file).write_text(text.rstrip("\n") + "\n" + entry)

    def _give_away(self) -> None:
        if self.mode is not Mode.NOBODY:
            return
        account = pwd.getpwnam("nobody")
        self.directory.chmod(0o755)
        for path in [self.directory, *self.directory.rglob("*")]:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def _command(self) -> list[str]:
        if self.mode is Mode.NAMESPACE:
            unshare = ["unshare", "-m", "-n", "--propagation", "private"]
            survivor = next(iter(self._processes()), None)
            if survivor is not None:
                # Guests that outlived their daemon hold the namespaces: it must come back into the same ones.
                unshare = ["nsenter", "-m", "-n", "-t", str(survivor.pid)]
                daemon = [
                    "libvirtd",
                    "-p",
                    f"{self.directory}/run/libvirtd.pid",
                    "-f",
                    "/etc/libvirt/libvirtd.conf",
                ]
                return [*unshare, *daemon]
            return [*unshare, "sh", "-c", _IN_NAMESPACE, "sh", str(self.directory)]
        daemon = ["libvirtd", "--timeout", "0"]
        if self.mode is Mode.NOBODY:
            account = pwd.getpwnam("nobody")
            ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
            return ["setpriv", *ids, *daemon]
        return daemon

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}", "LC_ALL": "C.UTF-8"}
        if self.mode is not Mode.NAMESPACE:
            environment |= {
                "HOME": f"{self.directory}/home",
                "XDG_RUNTIME_DIR": f"{self.directory}/run",
                "XDG_CONFIG_HOME": f"{self.directory}/config",
                "XDG_CACHE_HOME": f"{self.directory}/cache",
                "XDG_DATA_HOME": f"{self.directory}/data",
            }
        return environment

    def _wait_until_it_answers(self, child: subprocess.Popen[bytes], *, probe: bool) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _accepts(self._socket):
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
        namespace = Process(child.pid, 0).mount_namespace
        if self.mode is Mode.NAMESPACE and namespace is not None:
            (self.directory / "namespace").write_text(namespace)

    def _try(self, failures: list[libvirt.libvirtError], probe: bool) -> None:
        try:
            connection = self.connect()
            if probe:
                connection.getCapabilities()  # libvirt probes QEMU when it is first asked
            connection.close()
        except libvirt.libvirtError as error:
            failures.append(error)

    def _last_words(self) -> str:
        texts = []
        for path in (self.directory / "output", self.log):
            with suppress(OSError):
                texts.append(path.read_text(errors="replace").strip()[-1500:])
        return "\n".join(text for text in texts if text) or "it said nothing"

    def _processes(self) -> Iterator[Process]:
        """Every process that belongs to this hypervisor: by its mount namespace, or by its own XDG folders.

        More than the pid files know: those of a guest that is just being started are not written yet.
        """
        if self.mode is Mode.NAMESPACE:
            namespace = ""
            daemon = self.daemon
            if daemon is not None:
                namespace = daemon.mount_namespace or ""
            else:
                with suppress(OSError):
                    namespace = (self.directory / "namespace").read_text()
            own = Process(os.getpid(), 0).mount_namespace
            # Never ours: a namespace number may be used again, a process with another root folder than ours may not.
            if not namespace or namespace == own:
                return
            for process in processes.all_processes():
                if process.mount_namespace == namespace and self._is_mounted_in(process):
                    yield process
        else:
            # libvirt points the XDG folders of everything that it starts to below its own.
            mark = f"XDG_CONFIG_HOME={self.directory}/config"
            for process in processes.all_processes():
                if any(line == mark or line.startswith(f"{mark}/") for line in process.environment):
                    yield process

    def _is_mounted_in(self, process: Process) -> bool:
        with suppress(OSError):
            return (Path("/proc") / str(process.pid) / "root/run/libvirt").samefile(self.directory / "run")
        return False


def choose_mode() -> Mode:
    """Return the best recipe that this user may use here."""
    if os.geteuid() != 0:
        return Mode.SESSION
    trial = ["unshare", "-m", "-n", "--propagation", "private", "mount", "-t", "sysfs", "sysfs", "/sys"]
    try:
        permitted = subprocess.run(trial, capture_output=True).returncode == 0
    except FileNotFoundError:
        permitted = False
    return Mode.NAMESPACE if permitted else Mode.NOBODY


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


def _binaries() -> list[Path]:
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    found = []
    for name, package in (("libvirtd", "libvirt-daemon"), ("qemu-system-x86_64", "qemu-system-x86")):
        binary = shutil.which(name, path=path)
        if binary is None:
            raise UnavailableError(f"{name} is not installed", hint=f"install the package {package}")
        found.append(Path(binary))
    return found


def _settings(values: dict[str, str] | dict[str, str | int | list[str]]) -> str:
    lines = []
    for name, value in values.items():
        text = f'"{value}"' if isinstance(value, str) else str(value)
        lines.append(f"{name} = {text}\n")
    return "".join(lines)


def _is_qemu(process: Process) -> bool:
    command = process.command_line
    return bool(command) and Path(command[0]).name.startswith("qemu-system") and "-name" in command


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
