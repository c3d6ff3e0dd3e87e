"""Whether a machine that is shut off here runs at another host: its disks are then not ours to read, and still less to write.

libvirt leaves the definition behind when a machine is migrated (unless it is told to undefine it), and calls it shut off. Its
disks here are either in use over there (shared storage), or what they were when it left (its storage was copied). Points made of
the latter would go on looking fresh while nothing protects the machine. Two signs tell:

- libvirt's reason for its being off, "migrated". libvirtd forgets it when it is restarted, so it is noted in the scratch folder until the
  machine has been captured running here.
- somebody has the image open for writing: QEMU holds a lock on a byte of the file for it, which file systems that two hosts can share
  tell each other of. It is only asked for, not taken: a start of the machine is never refused because of us.

What it does not see: a machine that left before libvirtd was restarted, and whose storage was copied, if no cycle ran between; a shared
block device (its locks are each host's own) after the same. Nor does it stop anything.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite import durable
from secondsite.capture.machine import MachineDisk, is_active, libvirt_errors
from secondsite.errors import SecondSiteError, UnavailableError

_NOTE: Final = "moved"
_FLOCK: Final = "hhqqi0q"  # struct flock of Linux
# QEMU's block/file-posix.c: RAW_LOCK_PERM_BASE + the bit of BLK_PERM_WRITE; who may write holds a shared lock on it.
_WRITERS_BYTE: Final = 101


class MachineMovedError(SecondSiteError):
    """A protected machine is shut off here because it runs, or may run, at another host."""

    code = "machine_moved"
    default_hint = (
        "migrate it back here, or disable the item and protect the machine at the host that it went to; "
        "if it shall run here after all, start it here"
    )


class Elsewhere:
    """Answers for one machine. `scratch`: its folder, in which the note lies."""

    def __init__(self, scratch: Path) -> None:
        self._note = scratch / _NOTE

    def require_here(self, domain: Any, disks: Iterable[MachineDisk]) -> None:
        """Raise unless the machine, which is off, can only run here.

        Raises:
            MachineMovedError: it was migrated away, or another host writes to its disks.
            UnavailableError: it was started here meanwhile; or libvirtd does not answer.
        """
        name = domain.name()
        if self._was_migrated(domain):
            raise MachineMovedError(f"{name} was migrated to another host")
        for disk in disks:
            if disk.path.exists() and is_written(disk.path):
                if is_active(
                    domain
                ):  # asked after: QEMU takes its locks when libvirt has long called it active
                    raise UnavailableError(f"{name} was started while its disks were read")
                raise MachineMovedError(
                    f"{name} is shut off here, but disk {disk.key} is open for writing: it runs at another host, or a tool works on it",
                    disk=disk.key,
                )

    def is_here(self, domain: Any, disks: Iterable[MachineDisk]) -> bool:
        """As `require_here`, for who can do without its disks."""
        try:
            self.require_here(domain, disks)
        except MachineMovedError:
            return False
        return True

    def came_back(self) -> None:
        """It runs here, beyond doubt: what is being migrated in is not."""
        self._note.unlink(missing_ok=True)

    def _was_migrated(self, domain: Any) -> bool:
        if self._note.exists():
            return True
        with libvirt_errors("cannot read the machine's state"):
            state, reason = domain.state()
        if (state, reason) != (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED):
            return False
        self._note.parent.mkdir(parents=True, exist_ok=True)
        durable.write_atomic(self._note, b"")
        return True


def is_written(image: Path) -> bool:
    """Whether a QEMU, of whichever host, has the image open for writing. Where there are no locks nobody can tell: false."""
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _WRITERS_BYTE, 1, 0)
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK  # type: ignore[no-any-return]
