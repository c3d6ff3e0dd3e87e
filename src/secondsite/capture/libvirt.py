"""Change tracking of a running machine: libvirt checkpoints, read through a pull-mode backup.

One backup job covers all disks, so they share one instant. The job exports each disk as it was at that instant on a Unix
socket in the scratch folder; a new checkpoint is made in the same step. About 70 ms for a cycle in which nothing
changed, whatever the size of the disks.

Disks whose image cannot hold a bitmap (raw) are in the same job, but not in the checkpoint: bitmaps in QEMU's memory, of
the checkpoint's name, track them (live_bitmaps.py).

What a process that died left is ended before the next job begins, or by `tidy` (leftovers.py); a job of somebody else is
left alone.
"""

from __future__ import annotations

import secrets
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.capture.bitmaps import raw_size
from secondsite.capture.checkpoints import disks_element, forget_checkpoints, require_checkpoint
from secondsite.capture.elsewhere import Elsewhere
from secondsite.capture.export import Checks, ExportDisk
from secondsite.capture.jobs import JOB_END_TIMEOUT_S, end_job, is_ours, job_if_known, running_job
from secondsite.capture.leftovers import FILE_PREFIX, end_leftovers
from secondsite.capture.live_bitmaps import LiveBitmaps
from secondsite.capture.machine import Machine, is_active, libvirt_errors, require_sectors
from secondsite.capture.port import Snapshot, SnapshotDisk, check_checkpoint_name
from secondsite.capture.runs import Runs
from secondsite.capture.watch import (
    ScratchWatch,
    free_space,
    resume_after_abort,
)
from secondsite.errors import (
    InvalidInputError,
    NoSpaceError,
    SecondSiteError,
    TrackingLostError,
    UnavailableError,
)
from secondsite.model.ids import DiskKey
from secondsite.model.units import MIB

SCRATCH_RESERVE: Final = 64 * MIB
_SOCKET_PATH_MAX: Final = 107
_EXPORT_BITMAP: Final = "changed"


def _now() -> datetime:
    return datetime.now(UTC)


class LibvirtCapture:
    """`Capture` of a running machine. See the module's docstring.

    scratch: a folder of this machine alone, in which the QEMU process may create files and sockets: it belongs to
        QEMU's user, and its path is short (Unix sockets have at most 107 characters).
    reopen: returns the machine's domain by a new connection, for the watch after libvirtd was restarted; not needed if
        `connection` is a URI.
    scratch_reserve: bytes that must stay free there; the snapshot is given up rather than the guest stopped.
    """

    def __init__(
        self,
        connection: Any,
        domain: str,
        disks: Collection[DiskKey],
        scratch: Path,
        *,
        clock: Callable[[], datetime] = _now,
        scratch_reserve: int = SCRATCH_RESERVE,
        job_end_timeout_s: float = JOB_END_TIMEOUT_S,
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        self._machine = Machine(connection, domain, disks)
        self._reopen = reopen
        if reopen is None and isinstance(connection, str):
            self._reopen = Machine(
                connection, domain, disks
            ).domain  # of its own: it is used by another thread
        self._scratch = scratch.absolute()
        self._clock = clock
        self._reserve = scratch_reserve
        self._job_end_timeout_s = job_end_timeout_s
        self.instant: Callable[[], AbstractContextManager[None]] = nullcontext
        """See `port.HasInstant`."""
        if len(bytes(self._scratch)) + len(f"/{FILE_PREFIX}01234567.sock") > _SOCKET_PATH_MAX:
            raise InvalidInputError(f"the path of the scratch folder is too long: {scratch}")

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See the port."""
        check_checkpoint_name(new)
        machine = self._machine
        domain = machine.domain()
        if not is_active(domain):
            raise UnavailableError(f"{machine.name} is shut off", hint="the next cycle reads it offline")
        found = machine.disks(domain).values()
        kept = [disk.key for disk in found if disk.keeps_bitmaps]
        plain = [disk for disk in found if not disk.keeps_bitmaps]
        for disk in plain:
            require_sectors(disk.key, raw_size(disk.path))
        live = LiveBitmaps(domain)
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        free = free_space(self._scratch)
        if free < self._reserve:
            raise NoSpaceError(f"only {free} bytes are free for scratch files", path=str(self._scratch))
        definition = machine.definition(domain)
        token = secrets.token_hex(4)
        backup = self._backup_xml(domain, token, since, kept)
        checkpoint = self._checkpoint_xml(domain, new) if kept else None
        try:
            if since is not None:
                if kept:
                    require_checkpoint(domain, since, kept)
                live.require(plain, since)
            with self.instant():
                instant = self._clock()
                # Before the job begins, so that nothing that is written after its instant escapes them.
                live.add(plain, new)
                with libvirt_errors(f"cannot begin a snapshot of {machine.name}"):
                    domain.backupBegin(backup, checkpoint, 0)
        except TrackingLostError:
            # What is broken would stand in the way of the checkpoint that comes next.
            forget_checkpoints(machine, keep=())
            raise
        job = _Job(domain, self._scratch, token, self._reserve, self._job_end_timeout_s, self._reopen)
        try:
            Elsewhere(self._scratch).came_back()
            changed: dict[DiskKey, Runs | None] = dict.fromkeys(machine.keys)
            if since is not None:
                # After the job has begun, so that nothing that was written before its instant is missing.
                changed |= {disk.key: live.marked(disk, since, job.socket) for disk in plain}
            devices = [disk.key for disk in plain if disk.path.is_block_device()]
            disks = job.open_disks(changed, () if since is None else kept, devices)
        except BaseException:
            job.close()
            raise
        return Snapshot(instant, disks, definition, new, closer=job.close)

    def forget(self, keep: Collection[str]) -> None:
        """See the port."""
        forget_checkpoints(self._machine, keep)

    def tidy(self) -> None:
        """See the port."""
        end_leftovers(self._machine, self._scratch, self._job_end_timeout_s)

    def _clear_leftovers(self) -> None:
        if end_leftovers(self._machine, self._scratch, self._job_end_timeout_s) is not None:
            raise UnavailableError(
                f"another backup job of {self._machine.name} runs",
                hint="it is not ours: wait for it to end, or end it with virsh domjobabort",
            )

    def _backup_xml(self, domain: Any, token: str, since: str | None, kept: Collection[DiskKey]) -> str:
        root = ET.Element("domainbackup", mode="pull")
        ET.SubElement(root, "server", transport="unix", socket=str(_socket(self._scratch, token)))
        disks = ET.SubElement(root, "disks")
        for key in self._machine.keys:
            disk = ET.SubElement(disks, "disk", name=key, backup="yes", type="file", exportname=key)
            if since is not None and key in kept:
                disk.attrib.update(backupmode="incremental", incremental=since, exportbitmap=_EXPORT_BITMAP)
            ET.SubElement(disk, "scratch", file=str(self._scratch / f"{FILE_PREFIX}{token}-{key}"))
        for other in self._machine.other_disks(domain):
            ET.SubElement(disks, "disk", name=other, backup="no")
        return ET.tostring(root, encoding="unicode")

    def _checkpoint_xml(self, domain: Any, name: str) -> str:
        root = ET.Element("domaincheckpoint")
        ET.SubElement(root, "name").text = name
        root.append(disks_element(self._machine, domain))
        return ET.tostring(root, encoding="unicode")


class _Job:
    """The backup job behind one open snapshot."""

    def __init__(
        self,
        domain: Any,
        scratch: Path,
        token: str,
        reserve: int,
        end_timeout_s: float,
        reopen: Callable[[], Any] | None,
    ) -> None:
        self._domain = domain
        self._scratch = scratch
        self._token = token
        self._end_timeout_s = end_timeout_s
        self._disks: list[ExportDisk] = []
        self._watch = ScratchWatch(domain, scratch, reserve, self._give_up, reopen)
        self._watch.start()

    @property
    def socket(self) -> Path:
        """Where the job's NBD server listens."""
        return _socket(self._scratch, self._token)

    def open_disks(
        self,
        changed: Mapping[DiskKey, Runs | None],
        with_bitmap: Collection[DiskKey],
        devices: Collection[DiskKey],
    ) -> dict[DiskKey, SnapshotDisk]:
        """Connect to the export of each disk: with what changed on it, where that is known without its export."""
        checks = Checks(explain=self._explain)
        disks: dict[DiskKey, SnapshotDisk] = {}
        for key, only in changed.items():
            bitmap = _EXPORT_BITMAP if key in with_bitmap else None
            disk = ExportDisk(
                self.socket, key, bitmap=bitmap, only=only, device=key in devices, checks=checks
            )
            self._disks.append(disk)
            disks[key] = disk
        return disks

    def close(self) -> None:
        """End the job and the watch, and give the scratch space back."""
        self._watch.stop()
        with ExitStack() as stack:
            stack.callback(self._remove_files)
            for disk in self._disks:
                stack.callback(disk.close)
            self._end()

    def _explain(self, error: UnavailableError) -> SecondSiteError:
        # The watch ends the job first and says why after; but its reason is set before.
        return self._watch.error or error

    def _give_up(self, domain: Any) -> None:
        """End the job for certain, by whatever connection there is now."""
        for disk in self._disks:
            disk.finish()
        job = running_job(domain)
        if job is not None and is_ours(job, self._scratch):
            end_job(domain, self._end_timeout_s)
        with libvirt_errors("cannot let the guest go on"):
            domain.isActive()  # `end_job` takes silence for the end
            resume_after_abort(domain)
        self._domain = domain

    def _end(self) -> None:
        for disk in self._disks:
            disk.finish()
        job = job_if_known(self._domain)
        if job is not None and is_ours(job, self._scratch):
            end_job(self._domain, self._end_timeout_s)
        with suppress(libvirt.libvirtError):  # it was shut off, or the operator resumed it
            resume_after_abort(self._domain)

    def _remove_files(self) -> None:
        for path in self._scratch.glob(f"{FILE_PREFIX}{self._token}*"):
            path.unlink(missing_ok=True)


def _socket(scratch: Path, token: str) -> Path:
    return scratch / f"{FILE_PREFIX}{token}.sock"
