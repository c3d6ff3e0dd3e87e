"""How a libvirtd is run so that it has everything to itself: three recipes, one per kind of user who asks.

- `SessionRecipe`, for an ordinary user: a *session* libvirtd with XDG folders of its own. It has no virtual networks.
- `NamespaceRecipe`, for root: a *system* libvirtd in a mount and network namespace of its own, with its folders mounted
  over libvirt's. It has networks, and neither sees nor touches the machine's libvirt. The namespaces vanish with the
  last process in them.
- `NobodyRecipe`, for root where namespaces or tap devices are not permitted: the session recipe, run as "nobody".

A recipe says what to write, what to run, and which processes are its own. It runs nothing itself.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.lab.processes import Process
from secondsite.lab.tools import SYSTEM_PATH

_IN_NAMESPACE: Final = """
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
shift
exec "$@"
"""
# sysfs shows the network namespace that it was mounted in: libvirt looks for its bridges there.

Settings = dict[str, str | int | list[str]]


class Mode(StrEnum):
    """Which recipe a hypervisor runs by."""

    SESSION = "session"
    NAMESPACE = "namespace"
    NOBODY = "nobody"


class Recipe(ABC):
    """How one libvirtd is run, with everything below `directory`."""

    mode: Mode
    driver: str
    """What stands in the libvirt URI: "session" or "system"."""
    account: str | None = None
    """Which user it runs as; None for the one who asks."""
    path_length_max: int
    """In bytes, of the directory: Unix sockets lie below it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    @abstractmethod
    def socket(self) -> Path:
        """Where it listens."""

    @property
    @abstractmethod
    def capabilities(self) -> Path:
        """Its folder of QEMU's capabilities."""

    @abstractmethod
    def write_configuration(self, log: Path) -> None:
        """Make its folders and write its settings anew."""

    def give_away(self) -> None:
        """Give the folders to the user who it runs as, if that is another one than who asks."""
        if self.account is not None:
            self.directory.chmod(0o755)
            for path in [self.directory, *self.directory.rglob("*")]:
                self.own(path)

    def own(self, path: Path) -> None:
        """Let its guests use this file."""
        if self.account is not None:
            account = pwd.getpwnam(self.account)
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    @abstractmethod
    def command(self, survivor: Process | None) -> list[str]:
        """What to run. Every word of it execs, so that the pid stays. `survivor` is a process that an earlier run left."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The whole environment of the command."""

    @abstractmethod
    def owns(self, process: Process) -> bool:
        """Whether the process is the daemon or was started by it.

        More than its pid files know: that of a guest which is just being started is not written yet.
        """


class SessionRecipe(Recipe):
    """A session libvirtd of the user who asks.

    A Unix socket's path holds 107 bytes, and QEMU's lie below the configuration's folder, which is called "c" for that:
    the monitor at c/libvirt/qemu/lib/domain-NN-NAME/monitor.sock, the guest agent's at
    c/libvirt/qemu/channel/target/domain-NN-NAME/org.qemu.guest_agent.0, with up to 20 bytes of the name. So guests with
    an agent need a folder of at most 23 bytes.
    """

    mode = Mode.SESSION
    driver = "session"
    path_length_max = 44

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "libvirt" / "libvirt-sock"

    @property
    def capabilities(self) -> Path:
        return self.directory / "cache" / "libvirt" / "qemu" / "cache" / "capabilities"

    def write_configuration(self, log: Path) -> None:
        # libvirt 9.0 does not start without cache/libvirt/qemu/log.
        for folder in ("home", "run/libvirt", "c/libvirt", "cache/libvirt/qemu/log", "data"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        _write_settings(self.directory / "c" / "libvirt", log, {}, {})

    def command(self, survivor: Process | None) -> list[str]:  # noqa: ARG002
        return ["libvirtd", "--timeout", "0"]

    def environment(self) -> dict[str, str]:
        folders = {"RUNTIME_DIR": "run", "CONFIG_HOME": "c", "CACHE_HOME": "cache", "DATA_HOME": "data"}
        xdg = {f"XDG_{name}": f"{self.directory}/{folder}" for name, folder in folders.items()}
        return _environment() | xdg | {"HOME": f"{self.directory}/home"}

    def owns(self, process: Process) -> bool:
        # Of the environment of what libvirt starts, HOME is what it always hands on as it is.
        return f"HOME={self.directory}/home" in process.environment


class NobodyRecipe(SessionRecipe):
    """A session libvirtd as "nobody": as root, libvirtd would be the system's, whatever its environment says."""

    mode = Mode.NOBODY
    account: str = "nobody"

    def command(self, survivor: Process | None) -> list[str]:
        account = pwd.getpwnam(self.account)
        ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        return ["setpriv", *ids, *super().command(survivor)]


class NamespaceRecipe(Recipe):
    """A system libvirtd in namespaces of its own."""

    mode = Mode.NAMESPACE
    driver = "system"
    path_length_max = 80  # QEMU's sockets are seen below /var/lib/libvirt; only libvirtd's own is seen here

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "libvirt-sock"

    @property
    def capabilities(self) -> Path:
        return self.directory / "cache" / "qemu" / "capabilities"

    def write_configuration(self, log: Path) -> None:
        for folder in ("etc", "lib", "run", "cache/qemu", "log"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        daemon: Settings = {"unix_sock_dir": str(self.directory / "run"), "auth_unix_rw": "none"}
        # Dynamic ownership stays on: disks that anybody owns can be used.
        user: Settings = {"user": "root", "group": "root", "remember_owner": 0}
        _write_settings(
            self.directory / "etc", log, daemon, user | {"namespaces": [], "cgroup_controllers": []}
        )
        self._write_accounts()

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

    def command(self, survivor: Process | None) -> list[str]:
        daemon = ["libvirtd", "-p", f"{self.directory}/run/libvirtd.pid", "-f", "/etc/libvirt/libvirtd.conf"]
        if survivor is not None:
            # Guests that outlived their daemon hold the namespaces: it must come back into the same ones.
            # -r: to enter a mount namespace is to leave a chroot, if the survivor's root is not entered, too.
            return ["nsenter", "-m", "-n", "-r", "-t", str(survivor.pid), *daemon]
        inside = ["sh", "-c", _IN_NAMESPACE, "sh", str(self.directory), *daemon]
        return ["unshare", "-m", "-n", "--propagation", "private", *inside]

    def environment(self) -> dict[str, str]:
        return _environment()

    def owns(self, process: Process) -> bool:
        # What is mounted over /run/libvirt tells the namespace; its number might be used again.
        with suppress(OSError):
            return (Path("/proc") / str(process.pid) / "root/run/libvirt").samefile(self.directory / "run")
        return False


_RECIPES: Final = {recipe.mode: recipe for recipe in (SessionRecipe, NobodyRecipe, NamespaceRecipe)}


def recipe_for(directory: Path, mode: Mode | None) -> Recipe:
    """Return the recipe for this folder: as asked, or as the folder was begun with, or the best that is permitted here."""
    kept = directory / "mode"
    if mode is None:
        try:
            mode = Mode(kept.read_text())
        except FileNotFoundError:
            mode = _best_mode()
        except ValueError as error:
            raise InvalidInputError(
                f"{kept} is damaged", hint="remove the lab, and begin a new one"
            ) from error
    return _RECIPES[mode](directory)


def _best_mode() -> Mode:
    if os.geteuid() != 0:
        return Mode.SESSION
    trial = ["unshare", "-m", "-n", "--propagation", "private", "mount", "-t", "sysfs", "sysfs", "/sys"]
    try:
        permitted = subprocess.run(trial, capture_output=True).returncode == 0
    except FileNotFoundError:
        permitted = False
    return Mode.NAMESPACE if permitted and _has_tun() else Mode.NOBODY


def _has_tun() -> bool:
    # Guests reach a bridge through a tap device; containers may have namespaces and not this.
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    return {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SYSTEM_PATH}", "LC_ALL": "C.UTF-8"}


def _write_settings(folder: Path, log: Path, daemon: Settings, qemu: Settings) -> None:
    # stdio_handler: without virtlogd, which would be one more daemon to start.
    common: Settings = {"security_driver": "none", "stdio_handler": "file"}
    # host_uuid: a host of its own, else guests cannot be migrated from one lab host to another ("the same host").
    host: Settings = {
        "log_outputs": f"3:file:{log}",
        "host_uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, folder.as_uri())),
    }
    (folder / "libvirtd.conf").write_text(_settings(host | daemon))
    (folder / "qemu.conf").write_text(_settings(common | qemu))


def _settings(values: Settings) -> str:
    quoted = {name: f'"{value}"' if isinstance(value, str) else value for name, value in values.items()}
    return "".join(f"{name} = {value}\n" for name, value in quoted.items())
