"""Writes a copy of a machine's disks to a medium, as of one moment, while the machine runs or is off.

It works beside the node's daemon and asks it nothing. The copy is for the machine's first protection: a machine that this
node protects already is refused, since an export would disturb what its cycles count from.

What it promises: the files are one instant of all disks, durable and under their names only when all of them are whole; if
anything fails, nothing is left on the medium or on the machine. After a kill, files with `.tmp-` in their names stay on
the medium; what was left of the snapshot is ended by the node's daemon within seconds (see cut_exports.py), or by the next
export of this machine. What it does not do: track what the machine writes afterwards (the first cycle compares).
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.blocks import zero_blocks
from secondsite.capture.port import Capture, Snapshot, SnapshotDisk
from secondsite.capture.runs import true_runs
from secondsite.capture.select import capture_for
from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    OperationRefusedError,
    SecondSiteError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.port import Fabric, VmInfo
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import format_time
from secondsite.model.units import BLOCK
from secondsite.node.config import Folders, NodeConfig
from secondsite.node.medium import EXPORT_FILE, ContentDigest, Export, ExportedDisk
from secondsite.node.records import ItemStore

Progress = Callable[[int, int], None]
"""Called with the bytes read and the bytes to read in total."""

SCRATCH_PREFIX: Final = "x-"
LOCK_TIMEOUT_S: Final = 5.0
"""The daemon holds it for a moment when it clears up."""
_TOO_LARGE: Final = "use a file system that holds large files, such as ext4 or XFS"


def export_machine(
    state: Path, vm: str, output: Path, progress: Progress, *, exclude: Collection[str] = ()
) -> Export:
    """Export the machine (a name or a UUID) of the node whose state folder this is, into the folder `output`.

    `exclude`: keys of disks that are left out.

    Raises:
        NotFoundError: no such node, or no such machine.
        OperationRefusedError: it is protected here, or cannot be.
        ConflictError: the folder is not empty, or another export of the machine runs.
        InvalidInputError: the folder cannot be written, or a disk to leave out is none of the machine's.
        NoSpaceError: the medium is full, or the scratch space is.
    """
    config = NodeConfig.load(state)
    folders = Folders(state, Path(config.storage))
    fabric = LibvirtFabric(config.fabric)
    try:
        machine = find_machine(fabric, vm)
    finally:
        fabric.close()
    scratch = scratch_of(folders, machine.uuid)
    exporting = Exporting(
        machine,
        lambda: ItemStore(folders.items),
        lambda disks: capture_for(config.fabric, machine.uuid, disks, scratch),
        frozenset(exclude),
    )
    exporting.require_free()
    folders.run.mkdir(parents=True, exist_ok=True)
    with _locked(folders, scratch, machine.name):
        # QEMU, perhaps another user, must be able to create in it; nobody need list it.
        scratch.mkdir(parents=True, exist_ok=True)
        scratch.chmod(0o733)
        try:
            result = exporting.run(output, progress)
        except BaseException:
            with suppress(SecondSiteError):  # else the daemon does it
                exporting.tidy()
                durable.remove_tree(scratch)
            raise
        durable.remove_tree(scratch)
        return result


def scratch_of(folders: Folders, vm: str) -> Path:
    """Return the scratch folder of a machine's export: while it is there, something may have to be ended."""
    return folders.scratch / f"{SCRATCH_PREFIX}{vm.replace('-', '')[:14]}"


def lock_of(folders: Folders, scratch: Path, *, timeout_s: float = 0.0) -> durable.FileLock:
    """Return the lock that an export holds for as long as it lives."""
    return durable.FileLock(folders.run / f"export-{scratch.name}.lock", timeout_s=timeout_s)


@contextmanager
def _locked(folders: Folders, scratch: Path, name: str) -> Iterator[None]:
    lock = lock_of(folders, scratch, timeout_s=LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except UnavailableError as error:
        raise ConflictError(f"another export of {name} runs", hint="wait for it to end") from error
    try:
        yield
    finally:
        lock.release()


def find_machine(fabric: Fabric, vm: str) -> VmInfo:
    """Return the machine of this name or UUID, if it could be protected."""
    named = [found for found in fabric.inventory().vms if found.name == vm]
    machine = named[0] if len(named) == 1 else fabric.find(vm)
    if not machine.protectable:
        problems = "; ".join(problem.message for problem in machine.problems if problem.forbids)
        raise OperationRefusedError(
            f"{machine.name} cannot be protected: {problems or 'it has no usable disk'}",
            hint="secondsite item protectable shows what stands in the way",
        )
    return machine


@dataclass(frozen=True, slots=True)
class Exporting:
    """One export. `reread`: the node's records as they are now; `capture`: the capture of these disks."""

    machine: VmInfo
    reread: Callable[[], ItemStore]
    capture: Callable[[tuple[DiskKey, ...]], Capture]
    exclude: frozenset[str] = frozenset()

    @property
    def disks(self) -> tuple[DiskKey, ...]:
        """The disks that are exported."""
        keys = {disk.key for disk in self.machine.replicable_disks}
        if unknown := self.exclude - keys:
            raise InvalidInputError(
                f"{self.machine.name} has no disk {', '.join(sorted(unknown))} that could be left out",
                hint=f"its disks are {', '.join(sorted(keys))}",
            )
        if not keys - self.exclude:
            raise InvalidInputError("no disk would be left to export")
        return tuple(sorted(keys - self.exclude))

    def require_free(self) -> None:
        """Raise OperationRefusedError if this node keeps a record of the machine."""
        items = self.reread()
        for error in items.damaged.values():
            raise error  # whose record it is, nobody knows
        if self._is_protected(items):
            raise OperationRefusedError(
                f"{self.machine.name} is protected by this node already",
                hint="an export is for the first copy: export it before you protect it, or disable it first",
            )

    def run(self, output: Path, progress: Progress) -> Export:
        """Take the snapshot and write it."""
        capture = self.capture(self.disks)
        capture.tidy()
        with _folder(output) as written:
            name = f"ss-x{uuid.uuid4().hex[:12]}"
            try:
                with capture.snapshot(since=None, new=name) as snapshot:
                    disks = self._write(snapshot, output, written, progress)
            finally:
                self.forget()
            export = Export(self.machine.name, self.machine.uuid, format_time(snapshot.time), disks)
            for key, temporary in list(written.items()):
                final = output / disks[DiskKey(key)].file
                written[key] = final
                temporary.rename(final)
            durable.fsync_dir(output)
            text = json.dumps(export.to_dict(), indent=1, sort_keys=True)
            durable.write_atomic(output / EXPORT_FILE, text.encode() + b"\n")
        return export

    def tidy(self) -> None:
        """End what an export left that was killed. Safe to repeat."""
        self.capture(self.disks).tidy()
        self.forget()

    def forget(self) -> None:
        """Remove the checkpoint. What an export makes is the only one of ours on the machine, unless it was protected
        meanwhile: then its replication clears up.
        """
        if not self._is_protected(self.reread()):
            self.capture(self.disks).forget(keep=())

    def _is_protected(self, items: ItemStore) -> bool:
        for record in items.all():
            replicas = (record.test, record.failover)
            machines = {record.vm, *(replica.vm for replica in replicas if replica is not None)}
            if self.machine.uuid in machines:
                return True
        return False

    def _write(
        self, snapshot: Snapshot, output: Path, written: dict[str, Path], progress: Progress
    ) -> Mapping[DiskKey, ExportedDisk]:
        ranges = {
            key: [(extent.offset, extent.length) for extent in disk.changed() if not extent.zero]
            for key, disk in sorted(snapshot.disks.items())
        }
        total = sum(length for some in ranges.values() for _, length in some)
        done = 0
        disks = {}
        for key, some in ranges.items():
            disk = snapshot.disks[key]
            final = output / f"{key}.raw"
            written[key] = temporary = durable.temporary_path(final)

            def tell(count: int, before: int = done) -> None:
                progress(before + count, total)

            content = _write_disk(disk, some, temporary, tell)
            disks[key] = ExportedDisk(final.name, disk.size, content)
            done += sum(length for _, length in some)
        return disks


def _write_disk(
    disk: SnapshotDisk, ranges: list[tuple[int, int]], path: Path, tell: Callable[[int], None]
) -> str:
    content = ContentDigest()
    done = 0
    with (
        durable.naming_full_disk(path),
        path.open("xb", buffering=0) as file,
        closing(disk.read(ranges)) as found,
    ):
        path.chmod(0o600)
        os.ftruncate(file.fileno(), disk.size)
        for offset, view in found:
            content.add(offset, view)
            for start, end in true_runs(~zero_blocks(view)).tolist():
                _write_all(file.fileno(), view[start * BLOCK : end * BLOCK], offset + start * BLOCK)
            done += len(view)
            tell(done)
        os.fsync(file.fileno())
    return content.finish(disk.size)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@contextmanager
def _folder(output: Path) -> Iterator[dict[str, Path]]:
    """The medium's folder; yields the files in it, by disk, which are removed if the enclosed fails."""
    files: dict[str, Path] = {}
    made = not output.exists()
    with ExitStack() as stack:
        try:
            if not output.parent.is_dir():
                raise InvalidInputError(
                    f"there is no folder {output.parent}", hint="is the medium mounted?", path=str(output)
                )
            output.mkdir(mode=0o700, exist_ok=True)
            if any(output.iterdir()):
                made = False
                raise ConflictError(
                    f"{output} is not empty",
                    hint="give a new folder; a cut export leaves files with .tmp- in their names, which may go",
                    path=str(output),
                )
            stack.callback(_remove, files, output if made else None)
            yield files
            stack.pop_all()
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise UnsupportedError(f"the files are too large for {output}", hint=_TOO_LARGE) from error
            raise InvalidInputError(
                f"cannot write to {output}: {error.strerror}",
                hint="is the medium mounted, and writable?",
                path=str(output),
            ) from error


def _remove(files: Mapping[str, Path], folder: Path | None) -> None:
    for path in files.values():
        path.unlink(missing_ok=True)
    if folder is not None:
        with suppress(OSError):  # what stands in the way is not ours, and hides no error
            folder.rmdir()
