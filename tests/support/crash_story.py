"""A short life of a real journal, with what it has promised at each moment: what a power cut then may not take.

`Story` is the source of the points, the operator, and the reader of one journal below `place`. Before it does what may take
something away it lowers the promise; when the journal has answered it raises it. `Promise` at the moment of a cut is what
`crash_check` holds a state against.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final

from secondsite.journal import Base, BaseSpec, Journal, RawBase, finish_deletes
from secondsite.journal.extract import extract_all, extract_disk
from secondsite.model import ids
from secondsite.model.manifest import Manifest, PointKind
from secondsite.model.policy import Policy
from support.crash_recorder import Recorder
from support.journals import ITEM, KEY, START, VDA, VDB, Model, Write, digest_of

SIZES: Final = {VDA: 24 << 10, VDB: 9 << 10}
NOW: Final = START + timedelta(minutes=30)
JOURNAL: Final = "store/j"

Changes = Mapping[ids.DiskKey, Sequence[Write]]


class Presence(Enum):
    """Whether there is a journal of that name."""

    MUST = "must"
    MAY = "may"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Promise:
    """points: acknowledged and not given up. pins, unpinned: what was acknowledged of lasting pins. outputs: files or folders
    that an extract has delivered."""

    presence: Presence = Presence.MUST
    points: frozenset[int] = frozenset()
    epoch: int = 1
    pins: frozenset[tuple[str, int]] = frozenset()
    unpinned: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    damaged: tuple[tuple[str, bytes], ...] = ()
    """(kind, bytes) of files that were damaged before: the journal is checked when it got them once more."""


def open_images(spec: BaseSpec, writable: bool) -> Base:
    """Images of the format raw, without qemu-nbd."""
    assert spec.format == "raw"
    return RawBase(spec.path, spec.size, writable=writable, grown_from=spec.grown_from)


class Story:
    """See the module's docstring. `promises`: from which entry of the recorder's log on each holds."""

    def __init__(self, place: Path, sizes: Mapping[ids.DiskKey, int] = SIZES) -> None:
        self.place = place
        self.path = place / JOURNAL
        self.model = Model(sizes)
        self.promise = Promise()
        self.promises: list[tuple[int, Promise]] = []
        self.outputs: set[str] = set()
        """What may be there of an extract, acknowledged or not."""
        self.recorder: Recorder | None = None
        self.make_again: Callable[[Story], Promise] = Story.create_again
        """What is done again if the answer to the making of the journal did not come; returns what is promised then."""
        self.pending: Manifest | None = None
        """A point that the source could not yet learn to be sealed, and its files."""
        self.pending_files: dict[ids.DiskKey, list[tuple[str, bytes]]] = {}
        self.adoption: bytes = b""
        """The manifest of the point that the images hold."""
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        assert self._journal is not None
        return self._journal

    @journal.setter
    def journal(self, journal: Journal) -> None:
        self._journal = journal

    def fresh(self) -> Story:
        """The same story, with its own memory and nothing open."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other.promises, other.outputs = [], set(self.outputs)
        other._journal, other.recorder = None, None
        return other

    # -- promises --------------------------------------------------------------------------------------

    def promises_now(self, **changes: Any) -> None:
        self.promise = replace(self.promise, **changes)
        if self.recorder is not None:
            self.promises.append((len(self.recorder.log), self.promise))

    def may_lose(self, sequences: Collection[int]) -> None:
        """These points are about to be given up."""
        self.promises_now(points=self.promise.points - set(sequences))

    # -- the journal's life ----------------------------------------------------------------------------

    def created(self) -> Journal:
        return Journal.create(
            self.path,
            item=ITEM,
            name="web",
            epoch=ids.Epoch(1),
            key=KEY,
            disks=self.model.sizes,
            open_base=open_images,
        )

    def create(self) -> None:
        self.promises_now(presence=Presence.MAY)
        self.journal = self.created()
        self.promises_now(presence=Presence.MUST)

    def create_again(self) -> Promise:
        """What a node does that does not know whether it made the journal."""
        if not self.path.exists():
            finish_deletes(self.path.parent)
            self.created().close()
        return Promise()

    def adopted(self) -> Journal:
        images = {disk: self.place / "images" / f"{disk}.img" for disk in self.model.sizes}
        return Journal.adopt(
            self.path,
            manifest=self.adoption,
            epoch=self.model.epoch,
            key=KEY,
            images=images,
            tables={disk: image.with_suffix(".tbl") for disk, image in images.items()},
            open_base=open_images,
            formats=dict.fromkeys(images, "raw"),
        )

    def adopt(self) -> None:
        self.promises_now(presence=Presence.MAY)
        self.journal = self.adopted()
        self.promises_now(presence=Presence.MUST, points=frozenset({int(self.model.sequence)}))

    def adopt_again(self) -> Promise:
        self.adopted().close()
        return Promise(points=frozenset({int(Manifest.from_bytes(self.adoption).sequence)}))

    def open(self) -> None:
        self.journal = Journal.open(self.path, writable=True, open_base=open_images)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def killed(self) -> None:
        """Its process died: the system closes what it had open."""
        if self._journal is not None and self._journal._lock is not None:
            self._journal._lock.release()

    def delete(self, *, remove_images: bool = False) -> None:
        self.promises_now(presence=Presence.MAY)
        self.journal.delete(remove_images=remove_images)
        self.promises_now(presence=Presence.GONE, points=frozenset())

    # -- points ----------------------------------------------------------------------------------------

    def initially(self, changes: Changes) -> None:
        self.model.replicate_initially(self.journal, changes)

    def seal(self, changes: Changes, *, kind: PointKind | None = None, time: datetime | None = None) -> None:
        """Change the disks, send what changed, seal."""
        self.cut_point(changes, kind=kind, time=time)
        self.send_and_seal()

    def cut_point(
        self, changes: Changes, *, kind: PointKind | None = None, time: datetime | None = None
    ) -> None:
        """The source's disks change, and it keeps what it is going to send."""
        self.pending_files = {disk: self.model.parts(disk, writes) for disk, writes in changes.items()}
        self.pending = self.model.manifest(self.pending_files, kind=kind, time=time)
        contents = {disk: bytes(data) for disk, data in self.model.disks.items()}
        self.model.contents[self.pending.sequence] = contents

    def send_and_seal(self) -> None:
        """What a source does with a pending point, at first and again: it sends what is not here."""
        assert self.pending is not None
        for parts in self.pending_files.values():
            for kind, data in parts:
                if not self.journal.has_file(digest_of(data), kind):  # type: ignore[arg-type]
                    self.model.send(self.journal, [(kind, data)])
        self.model.sealed(self.pending, self.journal.seal(self.model.epoch, self.pending.to_bytes()))
        self.promises_now(points=self.promise.points | {int(self.pending.sequence)})

    def grow(self, disk: ids.DiskKey, size: int) -> None:
        """The source's disk grows; the next point tells."""
        self.model.disks[disk].extend(bytes(size - len(self.model.disks[disk])))
        self.model.sizes[disk] = size

    def raise_epoch(self, epoch: int) -> None:
        self.journal.raise_epoch(ids.Epoch(epoch))
        self.model.epoch = ids.Epoch(epoch)
        self.promises_now(epoch=epoch)

    # -- upkeep ----------------------------------------------------------------------------------------

    def maintain(
        self,
        keep: int = 2,
        *,
        policy: Policy | None = None,
        given_up: Collection[int],
        now: datetime = NOW,
    ) -> None:
        """`given_up`: the points that may go, by the policy and the pins."""
        self.may_lose(given_up)
        self.journal.maintain(policy or Policy(retention_points=keep), now)

    def thin(self, *sequences: int) -> None:
        self.may_lose(sequences)
        self.journal.thin([ids.Sequence(number) for number in sequences])

    def pin(self, sequence: int, owner: str) -> None:
        self.promises_now(unpinned=self.promise.unpinned - {owner})
        self.journal.pin(ids.Sequence(sequence), owner)
        self.promises_now(pins=self.promise.pins | {(owner, sequence)})

    def unpin(self, owner: str) -> None:
        self.promises_now(pins=frozenset(pin for pin in self.promise.pins if pin[0] != owner))
        self.journal.unpin(owner)
        self.promises_now(unpinned=self.promise.unpinned | {owner})

    # -- what is written for others ----------------------------------------------------------------------

    def extract(self, name: str, sequence: int, disk: ids.DiskKey = VDA) -> None:
        self.outputs.add(name)
        with self.journal.view(ids.Sequence(sequence), purpose="extract", verify=True) as view:
            extract_disk(view, disk, self.place / name)
        self.delivered(name)

    def extract_all(self, name: str, sequence: int) -> None:
        self.outputs.add(name)
        with self.journal.view(ids.Sequence(sequence), purpose="extract", verify=True) as view:
            extract_all(view, sorted(view.disks), self.place / name, suffix="raw")
        self.delivered(name)

    def write_digests(self, name: str, sequence: int, disk: ids.DiskKey = VDA) -> None:
        self.outputs.add(name)
        with self.journal.view(ids.Sequence(sequence), purpose="table") as view:
            self.journal.digests_at(view, disk, self.place / name)
        self.delivered(name)

    def write_initial_table(self, name: str, disk: ids.DiskKey = VDA) -> None:
        self.outputs.add(name)
        self.journal.initial_table(disk, self.place / name)
        self.delivered(name)

    def delivered(self, name: str) -> None:
        self.promises_now(outputs=self.promise.outputs | {name})
