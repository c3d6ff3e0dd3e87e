"""What all operations on a journal share: its paths, its documents, its points and its files, and the lock under which disks grow.

No decisions. `growth` is the innermost lock but for the table's own: who holds it asks for no other of the journal's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from secondsite.errors import CorruptError, NotFoundError
from secondsite.journal import documents
from secondsite.journal.applied import AppliedParts
from secondsite.journal.base import Base, BaseSpec, OpenBase
from secondsite.journal.documents import BaseState, Identity
from secondsite.journal.logs import LogStore, StoredFile, files_of
from secondsite.journal.pins import PinStore
from secondsite.journal.points import Chain, PointStore, StoredPoint
from secondsite.model.ids import DiskKey, Epoch, Sequence
from secondsite.model.units import BLOCK

if TYPE_CHECKING:
    from secondsite.blocks import DigestTable
    from secondsite.hrl.index import ExtentIndex


class Store:
    """A journal's folder, opened."""

    def __init__(self, folder: Path, identity: Identity, open_base: OpenBase) -> None:
        self.folder = folder
        self.identity = identity
        self._open_base = open_base
        self.points = PointStore(folder / "points")
        sizes = [spec.size for spec in identity.disks.values()]
        self.logs = LogStore(folder / "logs", self.incoming, sizes)
        self.parts = LogStore(folder / "parts", self.incoming, sizes, passing=True)
        self.pins = PinStore(folder / "pins")
        self.applied = AppliedParts()
        self.growth = threading.Lock()

    @classmethod
    def at(cls, path: Path, open_base: OpenBase) -> Self:
        """Open the journal in that folder.

        Raises:
            NotFoundError: there is none.
            CorruptError: journal.json is damaged.
        """
        if not (path / "journal.json").is_file():
            raise NotFoundError(
                f"there is no journal in {path}", hint="give an item's folder", path=str(path)
            )
        path = path.absolute()
        return cls(path, documents.load_identity(path / "journal.json"), open_base)

    def take_identity(self, identity: Identity) -> None:
        """The disks have grown: go on with their new sizes."""
        self.identity = identity
        self.logs.sizes = self.parts.sizes = frozenset(spec.size for spec in identity.disks.values())

    def arriving(self) -> LogStore:
        """Return where a file belongs that is received now: before the first point, files only pass on their way into the base."""
        return self.parts if self.base_state().sequence is None else self.logs

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def bases(self) -> Path:
        return self.folder / "base"

    @property
    def key(self) -> bytes:
        return self.identity.key

    def size(self, disk: DiskKey) -> int:
        """Return a disk's size in bytes, or raise NotFoundError."""
        return self._spec(disk).size

    def epoch(self) -> Epoch:
        return documents.load_epoch(self.folder / "epoch.json")

    def write_epoch(self, epoch: Epoch) -> None:
        documents.replace(self.folder / "epoch.json", documents.encode_epoch(epoch))

    def base_state(self) -> BaseState:
        return documents.load_base_state(self.folder / "base.json")

    def write_base_state(self, state: BaseState) -> None:
        documents.replace(self.folder / "base.json", documents.encode_base_state(state))

    def chain(self) -> tuple[BaseState, Chain]:
        """Return the state of the base and the chain on it, as they were at one instant."""
        state = self.base_state()
        while True:
            chain = self.points.chain(state)
            again = self.base_state()
            if again == state:
                return state, chain
            state = again

    def open_base(self, disk: DiskKey, *, writable: bool) -> Base:
        """Open a disk's base. Who reads finds it as it is now, also if the disk grew since the journal was opened."""
        spec = self._spec(disk)
        try:
            return self._open_base(spec, writable)
        except CorruptError:
            now = None if writable else self._spec_now(disk)
            if now is None or now == spec:
                raise
            return self._open_base(now, writable)

    def open_table(self, disk: DiskKey, *, writable: bool) -> DigestTable:
        """Open a disk's digest table; a missing one, or one of another disk's size, is damage.

        While a disk grows, who reads may find the table of its old size: nothing that can be read is behind that. Who began to read
        before it grew may find that of its new size.
        """
        from secondsite.blocks import DigestTable  # with numpy: a view that was prepared opens none

        path = self.table_path(disk)
        try:
            table = DigestTable.open(path, self.key, writable=writable)
        except FileNotFoundError as error:
            raise CorruptError(f"the digest table {path.name} is missing", path=str(path)) from error
        if table.disk_size != self.size(disk) and (writable or not self._may_read(table, disk)):
            table.close()
            raise CorruptError(
                f"the digest table {path.name} is one of {table.disk_size} bytes", path=str(path)
            )
        return table

    def table_path(self, disk: DiskKey) -> Path:
        return self.bases / f"{disk}.tbl"

    def doubtful(self, disk: DiskKey, blocks: Iterable[int] = ()) -> Doubtful:
        """Return the blocks, those of `blocks` included, at which a base that is opened after this may differ from its table."""
        spec = self._spec(disk)
        ends = (spec.size,) if spec.grown_from is None else (spec.grown_from, spec.size)
        return Doubtful(frozenset(blocks), ends, lambda: self._size_now(disk))

    def merged_index(
        self, points: Iterable[StoredPoint], disk: DiskKey
    ) -> tuple[ExtentIndex, list[tuple[StoredFile, Sequence]]]:
        """Return what `points` (oldest first) changed on a disk, and the files by source number, with their points.

        Raises:
            CorruptError: a file is missing or malformed; has the attributes `point` and `disk`.
        """
        from secondsite.hrl.index import ExtentIndex  # with numpy: a view that was prepared merges nothing

        layers: list[ExtentIndex] = []
        sources: list[tuple[StoredFile, Sequence]] = []
        for point in points:
            for file in files_of(point.manifest.disks[disk]):
                try:
                    layers.append(self.logs.index(file, point.manifest.disks[disk].size, len(sources)))
                except CorruptError as error:
                    raise naming(error, point=point.sequence, disk=disk) from error
                sources.append((file, point.sequence))
        return ExtentIndex.merge(layers), sources

    def _size_now(self, disk: DiskKey) -> int:
        """Return the size that journal.json names, which another process may have written; 0 if that is another journal's."""
        spec = self._spec_now(disk)
        return 0 if spec is None else spec.size

    def _spec_now(self, disk: DiskKey) -> BaseSpec | None:
        return documents.load_identity(self.folder / "journal.json").disks.get(disk)

    def _may_read(self, table: DigestTable, disk: DiskKey) -> bool:
        """Whether a table of another size than ours is one of a disk that grows, or did since."""
        specs = (self._spec(disk), self._spec_now(disk))
        return any(spec and table.disk_size in {spec.size, spec.grown_from} for spec in specs)

    def _spec(self, disk: DiskKey) -> BaseSpec:
        try:
            return self.identity.disks[disk]
        except KeyError:
            raise NotFoundError(
                f"the item has no disk {disk}",
                hint="its disks are " + ", ".join(sorted(self.identity.disks)),
                disk=disk,
            ) from None


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Blocks whose digest is no proof of damage, to be asked when a block was found to differ from its cell.

    `blocks`: a fold writes them. `ends`: sizes that the disk had; when it grows, the block that its old end cuts through gets another
    digest, after journal.json (`size_now`) has the new size.
    """

    blocks: frozenset[int]
    ends: tuple[int, ...]
    size_now: Callable[[], int]

    def __contains__(self, block: int) -> bool:
        """Raises as reading journal.json does."""
        return block in self.blocks or any(
            end % BLOCK and block == end // BLOCK and end != self.size_now() for end in self.ends
        )


def naming(error: CorruptError, **attributes: object) -> CorruptError:
    """Return the same error with more of the facts; those that it has count."""
    text = error.message
    if "point" in attributes and "point" not in error.attributes:
        text = f"point {attributes['point']}, disk {attributes.get('disk')}: {text}"
    named = type(error)(text, hint=error.hint)
    named.attributes = {**attributes, **error.attributes}
    return named


def points_after(chain: Chain, base: Sequence, last: Sequence) -> list[StoredPoint]:
    """Return the points of (base, last]."""
    return [point for point in chain.points if base < point.sequence <= last]
