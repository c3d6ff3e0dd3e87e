"""Fills a fresh journal from copies of the disks that are here already, so that only what differs has to be shipped.

A seed is a folder on this host with one image per disk, named by the disk's key: `vda.qcow2` or `vda.raw`. A disk without
an image is shipped whole. An export.json (see node/medium.py) says what its files hold.

What it promises: images are only read; memory and spool are bounded (one part); the journal is fed by the path that the
initial replication takes, so a cut leaves a base whose table tells the truth, and the next run goes on: what the base holds
already is read again, but not written. A file that export.json calls damaged is refused by name. What it does not do: it
seals no point, and trusts no image: the source compares everything with what the base holds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.capture.bitmaps import QCOW2, RAW, image_info, raw_size
from secondsite.capture.export import ExportDisk
from secondsite.capture.parts import Mode, Part, produce
from secondsite.capture.port import Extent
from secondsite.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from secondsite.fabric.port import Fabric, PowerState
from secondsite.journal import Journal
from secondsite.model.ids import DiskKey, Epoch, ItemId
from secondsite.model.units import BLOCK, MIB
from secondsite.nbd.image import ImageServer
from secondsite.node.config import Folders
from secondsite.node.executor import Progress
from secondsite.node.medium import ContentDigest, ExportedDisk, load_export
from secondsite.node.records import ItemRecord, ItemStore

SUFFIXES: Final[Mapping[str, str]] = {".qcow2": QCOW2, ".raw": RAW}


@dataclass(frozen=True, slots=True)
class SeedImage:
    """One image of a seed. `exported`: what export.json says of it, if it does."""

    path: Path
    format: str
    exported: ExportedDisk | None


class SeedDisk:
    """A whole image as a disk of `size` bytes, zeros behind its end, digested as it is read. See `SnapshotDisk`."""

    whole = True
    device = False

    def __init__(self, image: ExportDisk, size: int) -> None:
        self._image = image
        self.size = size
        self.content = ContentDigest()

    def changed(self) -> Iterator[Extent]:
        """Yield everything."""
        yield from self._image.changed()
        if self.size > self._image.size:
            yield Extent(self._image.size, self.size - self._image.size, zero=True)

    def read(self, extents: Iterable[tuple[int, int]]) -> Generator[tuple[int, memoryview], None, None]:
        """Yield the bytes of the ranges, in order."""
        end = self._image.size
        inside = ((offset, min(length, end - offset)) for offset, length in extents if offset < end)
        for offset, view in self._image.read(inside):
            self.content.add(offset, view)
            if offset + len(view) == end and end % BLOCK and end < self.size:
                # The block that the image ends in belongs to the disk as a whole.
                missing = min(BLOCK - end % BLOCK, self.size - end)
                yield offset, memoryview(bytes(view) + bytes(missing))
            else:
                yield offset, view


@dataclass(frozen=True, slots=True)
class Seeding:
    """See the module's docstring. `stopping`: whether the node ends; the run is cut then and repeated later."""

    items: ItemStore
    fabric: Fabric
    folders: Folders
    clock: Callable[[], datetime]
    stopping: Callable[[], bool]

    def seed(
        self, record: ItemRecord, journal: Journal, folder: Path, progress: Progress
    ) -> dict[DiskKey, str]:
        """Feed the journal with the folder's images; return their names by disk. Nothing happens once there is a point.

        Raises:
            NotFoundError: there is no such folder, or it holds no image of a disk.
            InvalidInputError: an image is none, larger than its disk, or needs another file.
            ConflictError: a machine uses an image.
            CorruptError: an image is not what was exported.
            UnavailableError: the folder, or an image, cannot be read.
        """
        if journal.status().state != "initial":
            return {}
        try:
            found = images_in(folder, journal.disks)
        except OSError as error:
            raise UnavailableError(
                f"cannot read {folder}: {error.strerror}",
                hint="may the node's user read it?",
                path=str(folder),
            ) from error
        for disk, image in found.items():
            self._check(image, journal.disks[disk])
        work = self.items.folder(record.item) / "seed"
        durable.remove_tree(work)
        work.mkdir(parents=True)
        try:
            for number, (disk, image) in enumerate(found.items()):

                def tell(done: int, total: int, number: int = number, image: SeedImage = image) -> None:
                    part = done / total if total else 1.0
                    text = f"seeding from {image.path.name}"
                    progress((number + part) / len(found), text, bytes_done=done, bytes_total=total)

                self._feed(record, journal, disk, image, work, tell)
        finally:
            durable.remove_tree(work)
        return {disk: image.path.name for disk, image in found.items()}

    def tidy(self, item: ItemId) -> None:
        """End the image servers of a run that was cut."""
        for pid_file in self.folders.run.glob(f"{_prefix(item)}*.sock.pid"):
            socket = pid_file.with_suffix("")
            ImageServer(socket, RAW, socket, writable=False).stop()

    def _check(self, image: SeedImage, size: int) -> None:
        path = image.path
        if image.format == QCOW2:
            try:
                info = image_info(path)
            except UnavailableError as error:
                raise InvalidInputError(
                    f"{path} is not a qcow2 image: {error.message}", path=str(path)
                ) from error
            if info.has_backing:
                raise InvalidInputError(
                    f"{path} is an overlay of another image",
                    hint="make a copy that stands alone: qemu-img convert -O qcow2",
                    path=str(path),
                )
            held = info.size
        else:
            held = raw_size(path)
        if image.exported is not None and image.exported.size != held:
            raise CorruptError(
                f"{path} has {held} bytes, but {image.exported.size} were exported",
                hint="the medium is damaged, or was copied in part: export the machine again",
                path=str(path),
            )
        if held > size:
            raise InvalidInputError(
                f"{path} has {held} bytes, its disk only {size}",
                hint="is it of another machine? Remove it from the folder: its disk is shipped whole then",
                path=str(path),
            )
        self._require_unused(path)

    def _require_unused(self, path: Path) -> None:
        for vm in self.fabric.inventory().vms:
            if vm.power is PowerState.OFF:
                continue
            if any(disk.path is not None and disk.path.resolve() == path.resolve() for disk in vm.disks):
                raise ConflictError(
                    f"{path} is in use by the running machine {vm.name}",
                    hint="seed from a copy, or shut that machine down",
                    path=str(path),
                )

    def _feed(
        self,
        record: ItemRecord,
        journal: Journal,
        disk: DiskKey,
        image: SeedImage,
        work: Path,
        tell: Callable[[int, int], None],
    ) -> None:
        path = work / f"{disk}.tbl"
        journal.initial_table(disk, path)
        socket = self.folders.run / f"{_prefix(record.item)}{disk}.sock"
        server = ImageServer(image.path, image.format, socket, writable=False)
        server.stop()  # of a run that was cut
        with (
            server,
            closing(ExportDisk(server.socket, "")) as export,
            DigestTable.open(path, record.key) as table,
        ):
            source = SeedDisk(export, journal.disks[disk])
            parts = produce(
                source,
                disk,
                table,
                Mode.COMPARE,
                work,
                digest_key=record.key,
                time=self.clock(),
                progress=tell,
                cancelled=self.stopping,
            )
            for part in parts:
                _take(journal, record.epoch, part)
            if image.exported is not None:
                content = source.content.finish(image.exported.size)
                if content != image.exported.blake3:
                    raise CorruptError(
                        f"{image.path} does not hold what was exported",
                        hint="the medium is damaged: disable the item, and export the machine again, or leave this "
                        "file out, and its disk is shipped whole",
                        path=str(image.path),
                    )


def images_in(folder: Path, disks: Iterable[DiskKey]) -> dict[DiskKey, SeedImage]:
    """Return the images of these disks in a seed's folder.

    Raises:
        InvalidInputError: the path is not absolute, or there are two images of a disk.
        NotFoundError: there is no such folder, or none of the images.
        CorruptError, UnsupportedError: of export.json.
    """
    if not folder.is_absolute():
        raise InvalidInputError(f"the seed's path is not absolute: {folder}", path=str(folder))
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder} on this host",
            hint="mount the medium on the target node's host",
            path=str(folder),
        )
    export = load_export(folder)
    found: dict[DiskKey, SeedImage] = {}
    for disk in sorted(disks):
        paths = [folder / f"{disk}{suffix}" for suffix in SUFFIXES if (folder / f"{disk}{suffix}").exists()]
        if len(paths) > 1:
            raise InvalidInputError(f"{folder} holds two images of disk {disk}", hint="remove one")
        for path in paths:
            if not path.is_file():
                raise InvalidInputError(f"{path} is no image file", path=str(path))
            known = None if export is None else export.disks.get(disk)
            exported = known if known is not None and known.file == path.name else None
            found[disk] = SeedImage(path, SUFFIXES[path.suffix], exported)
    if not found:
        raise NotFoundError(
            f"{folder} holds no image of a disk of this machine",
            hint="expected files that are named by disk, such as vda.qcow2 or vda.raw",
            path=str(folder),
        )
    return found


def _take(journal: Journal, epoch: Epoch, part: Part) -> None:
    with part.path.open("rb") as file, journal.receive(part.digest, part.kind) as incoming:
        while data := file.read(MIB):
            incoming.write(data)
        incoming.commit()
    journal.apply_initial(epoch, part.disk, [part.digest])
    part.path.unlink()


def _prefix(item: ItemId) -> str:
    return f"seed-{item.replace('-', '')[:12]}-"
