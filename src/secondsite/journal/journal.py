"""The journal of one item: its face to the other packages, and the locks.

What it promises: docs/design/journal.md. Every method is safe to repeat, and safe from several threads; one process
writes at a time, any number reads. After an error the next call compares what is on disk before it goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from secondsite import durable
from secondsite.errors import (
    ConflictError,
    CorruptError,
    NoSpaceError,
    NotFoundError,
    OperationRefusedError,
    PinnedError,
    SecondSiteError,
    StaleEpochError,
    UnavailableError,
)
from secondsite.journal import create as creation
from secondsite.journal import folding, garbage, removal, resize, scrub, seal, tables, thin
from secondsite.journal.base import OpenBase, open_raw_base
from secondsite.journal.logs import FileKind, Incoming
from secondsite.journal.opening import find, open_view
from secondsite.journal.pins import Pin
from secondsite.journal.points import PointInfo, StoredPoint
from secondsite.journal.prepared import prepare
from secondsite.journal.store import Store, naming
from secondsite.journal.view import View, open_prepared
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Consistency, Manifest
from secondsite.model.policy import Policy
from secondsite.model.retention import PointAge, points_to_keep


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """What a journal holds now.

    points: how many can be read. base: the oldest of them. damage: the JSON form of the error why later points, or a fold
    that has begun, cannot be used; None in a sound journal.
    """

    item: ItemId
    name: str
    epoch: Epoch
    state: Literal["initial", "ready"]
    last: PointInfo | None
    base: Sequence | None
    points: int
    damage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What `maintain` did. held_by: who pins a point that should have been given up."""

    folded_to: Sequence | None
    points_removed: int
    bytes_freed: int
    held_by: str | None
    points_thinned: int = 0


def _no_progress(_done: int) -> None:
    return None


def _age(point: PointInfo, shared: Mapping[str, Consistency] | None) -> PointAge:
    """Return what retention looks at. A point of a cut that not all members have is one like any other."""
    if point.group is None or (shared is not None and point.group not in shared):
        return PointAge(point.sequence, point.time, point.consistency)
    consistency = point.consistency if shared is None else shared[point.group]
    return PointAge(point.sequence, point.time, consistency, shared=True)


class Journal:
    """See the module's docstring. Made by `create`, `adopt` and `open`; a context manager that closes."""

    def __init__(self, store: Store, lock: durable.FileLock | None) -> None:
        self._store = store
        self._lock = lock
        self._mutex = threading.RLock()  # state, points, epoch: short
        self._maintenance = threading.Lock()  # folds, thinning, garbage: long; taken before _mutex
        self._expected = garbage.Expected()
        self._unfinished: SecondSiteError | None = None

    # -- life ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        item: ItemId,
        name: str,
        epoch: Epoch,
        key: bytes,
        disks: Mapping[DiskKey, int],
        open_base: OpenBase = open_raw_base,
    ) -> Self:
        """Make a journal without points, all zeros (`disks` in bytes), and open it for writing.

        Raises:
            ConflictError: there is something at `path`.
            NoSpaceError: nothing was left there.
        """
        creation.create(path, item=item, name=name, epoch=epoch, key=key, disks=disks)
        return cls.open(path, writable=True, open_base=open_base)

    @classmethod
    def adopt(
        cls,
        path: Path,
        *,
        manifest: bytes,
        epoch: Epoch,
        key: bytes,
        images: Mapping[DiskKey, Path],
        tables: Mapping[DiskKey, Path],
        open_base: OpenBase,
        formats: Mapping[DiskKey, str] | None = None,
    ) -> Self:
        """Make a journal whose base is `images`, which hold exactly the manifest's point, and open it for writing.

        `tables` are moved into it. `formats` says what is not qcow2 (never guessed: a guest writes what it likes into a
        raw disk). Repeating it is safe.

        Raises:
            ConflictError: there is something else at `path`.
        """
        creation.adopt(
            path,
            manifest=manifest,
            epoch=epoch,
            key=key,
            images=images,
            tables=tables,
            formats=formats or {},
            open_base=open_base,
        )
        return cls.open(path, writable=True, open_base=open_base)

    @classmethod
    def open(cls, path: Path, *, writable: bool, open_base: OpenBase = open_raw_base) -> Self:
        """Open a journal. A writer finishes what an interrupted one left, so it may take as long as a fold.

        Raises:
            NotFoundError: there is no journal at `path`.
            ConflictError: another process writes it.
            CorruptError: journal.json, or base.json (for a writer), is damaged.
        """
        store = Store.at(path, open_base)
        if not writable:
            return cls(store, None)
        lock = durable.FileLock(store.folder / "lock")
        lock.acquire()
        try:
            journal = cls(store, lock)
            journal._recover()
        except BaseException:
            lock.release()
            raise
        return journal

    def close(self) -> None:
        """Let another process write, when what other threads do has ended. Views stay valid."""
        with self._maintenance, self._mutex:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def delete(self, *, remove_images: bool = False) -> None:
        """Remove the journal, and the images that were adopted as its base if so asked. Closes it.

        What a cut leaves is removed by `finish_deletes`, or by the next journal of this name.

        Raises:
            PinnedError: somebody reads it, or holds a lasting pin. Nothing was removed, and it stays open.
        """
        with self._maintenance, self._mutex:
            self._check_writable()
            with self._store.pins.removing() as pins:
                for pin in pins:
                    raise PinnedError(
                        f"point {pin.sequence} is in use by {pin.owner}",
                        hint="end that use, then delete",
                        owner=pin.owner,
                        point=pin.sequence,
                    )
                doomed = removal.take_name(self._store.folder, remove_images=remove_images)
            self._release()
            removal.finish(doomed)

    # -- facts -----------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._store.folder

    @property
    def writable(self) -> bool:
        return self._lock is not None and self._lock.held

    @property
    def item(self) -> ItemId:
        return self._store.identity.item

    @property
    def name(self) -> str:
        return self._store.identity.name

    @property
    def key(self) -> bytes:
        """The key of the digest tables."""
        return self._store.key

    @property
    def epoch(self) -> Epoch:
        return self._store.epoch()

    @property
    def disks(self) -> Mapping[DiskKey, int]:
        """Sizes in bytes."""
        return {disk: spec.size for disk, spec in self._store.identity.disks.items()}

    def status(self) -> JournalStatus:
        """Return what the journal holds. Cheap."""
        if self.writable and self._store.base_state().sequence is None:
            with suppress(NoSpaceError), self._changing():
                self._settle()  # a first point may be complete but for its last step, and the source asks for it
        state, chain = self._store.chain()
        damage = chain.damage or self._unfinished
        return JournalStatus(
            item=self.item,
            name=self.name,
            epoch=self.epoch,
            state="initial" if state.sequence is None else "ready",
            last=chain.last.info() if chain.last else None,
            base=state.floor if state.sequence is not None else None,
            points=len(chain.offered),
            damage=None if damage is None else damage.to_dict(),
        )

    def points(self) -> list[PointInfo]:
        """Return the points that can be read, oldest first. Cheap after the first call."""
        return [point.info() for point in self._store.chain()[1].offered]

    def point(self, sequence: Sequence | None = None) -> StoredPoint:
        """Return a point, the newest one without a sequence.

        Raises:
            NotFoundError: there is no such point.
            CorruptError: it is damaged, or follows a damaged one.
        """
        chain = self._store.chain()[1]
        return find(chain.offered, sequence, chain.damage)

    def manifest(self, sequence: Sequence | None = None) -> Manifest:
        """Return a point's manifest, the newest one's without a sequence; raises as `point` does."""
        return self.point(sequence).manifest

    def digest(self, sequence: Sequence) -> Digest:
        """Return a point's digest; raises as `point` does."""
        return self.point(sequence).digest

    # -- taking points in ------------------------------------------------------------------------------

    def raise_epoch(self, epoch: Epoch) -> None:
        """Refuse from now on, and after any crash, what is older than `epoch`.

        Raises:
            StaleEpochError: the journal's epoch is newer already.
        """
        with self._changing():
            current = self._store.epoch()
            if epoch < current:
                raise StaleEpochError(f"the epoch is {current} already", epoch=epoch, current=current)
            if epoch > current:
                self._store.write_epoch(epoch)

    def has_file(self, digest: Digest, kind: FileKind) -> bool:
        """Say whether a file is here. If so, it stays for the point that is about to name it."""
        self._expected.add(digest, kind)  # first: garbage collection must not come between
        return self._store.arriving().length(digest, kind) is not None

    def receive(self, digest: Digest, kind: FileKind) -> Incoming:
        """Take a file in: a context manager with `write(bytes)` and `commit()`. Repeating it is safe.

        What was committed is durable; but before the first point it is only here, and may be gone after a crash: durable is
        then what `apply_initial`, or the seal of a point that names it, has laid into the base.

        Raises:
            NoSpaceError: from any of these; nothing of the file remains.
            CorruptError: from `commit`; likewise.
        """
        self._check_writable()
        return self._store.arriving().receive(digest, kind, self._accept)

    def apply_initial(self, epoch: Epoch, disk: DiskKey, digests: Collection[Digest]) -> None:
        """Fold received parts of the initial replication into the base, in this order; durable when it returns.

        Raises:
            OperationRefusedError: there is a point already.
            NotFoundError: a part was neither received nor applied before. Nothing was applied.
            StaleEpochError, CorruptError, NoSpaceError: the call may be repeated.
        """
        with self._changing():
            self._settle()
            seal.check_epoch(self._store, epoch)
            if self._store.base_state().sequence is not None:
                raise OperationRefusedError("the initial replication has ended", hint="seal a point instead")
            seal.apply_parts(self._store, disk, list(digests))

    def seal(self, epoch: Epoch, manifest: bytes) -> Digest:
        """Make a point of files that were received; it is durable when this returns. Returns the manifest's digest.

        The same manifest as the last point's is answered yes.

        Raises:
            StaleEpochError: another side took over.
            OutOfSequenceError: it does not follow the last point; or it is the first and the base holds something
                else than its labels say, which `initial_table` tells.
            NotFoundError: a file that it names was not received.
            CorruptError: its files overlap or are not of these disks, or the journal's last point is damaged.
            UnsupportedError: disks were added or removed, or one is smaller than it was.
        """
        with self._changing():
            self._settle()
            seal.check_epoch(self._store, epoch)
            point = seal.parse(self._store, manifest, epoch)
            digest = seal.digest_of(manifest)
            self._expected.add_all(point)  # no garbage collection between the check and the manifest
            state, chain = self._store.chain()
            if state.sequence is None:
                seal.seal_first(self._store, point, manifest)
            elif chain.damage is not None or chain.last is None:
                raise naming(chain.damage or CorruptError("the last point is missing"))
            elif chain.last.digest == digest:
                self._store.points.persist(point.sequence)
            else:
                seal.seal_next(self._store, point, manifest, chain.last)
            self._expected.sealed(point)
            return digest

    # -- reading ---------------------------------------------------------------------------------------

    def view(
        self,
        sequence: Sequence | None = None,
        *,
        purpose: str,
        verify: bool = False,
        progress: Callable[[int], None] = _no_progress,
        prepared: Path | None = None,
    ) -> View:
        """Open a point (the newest without a sequence) for reading; it is pinned until the view is closed.

        `purpose` is shown to whoever is held up by it. `verify`: compare all that is read with its digests; reads all files of
        the point at once, and tells `progress` the bytes as it goes. `prepared`: where `prepare_view` may have written; it
        saves time if it is there and still holds.

        Raises:
            NotFoundError: there is no such point.
            CorruptError: something that it needs is damaged.
        """
        if prepared is not None and not verify:
            found = open_prepared(self._store, prepared, sequence, purpose)
            if found is not None:
                return found
        return open_view(self._store, sequence, purpose=purpose, verify=verify, progress=progress)

    def prepare_view(self, sequence: Sequence, path: Path) -> None:
        """Write down what opens the view of a point at once; see journal/prepared.py. Quick where this has received the point.

        Raises:
            NotFoundError: there is no such point.
            CorruptError: something that it needs is damaged.
        """
        with self._store.pins.reading():  # nothing that it names goes meanwhile
            state, chain = self._store.chain()
            point = find(chain.offered, sequence, chain.damage)
            prepare(self._store, Sequence(state.sequence or 0), chain, point, path)

    def pin(self, sequence: Sequence, owner: str) -> StoredPoint:
        """Keep a point until `unpin`, also after this process has ended, and return it. Repeating it is safe.

        Raises:
            NotFoundError: there is no such point.
        """
        with self._store.pins.reading(), durable.naming_full_disk(self.path):
            point = self.point(sequence)
            self._store.pins.add_lasting(sequence, owner)
            return point

    def unpin(self, owner: str) -> None:
        """Give up all lasting pins of `owner`; without any nothing happens."""
        self._store.pins.remove_lasting(owner)

    def pins(self) -> list[Pin]:
        """Return who uses what."""
        with self._store.pins.removing() as pins:
            return pins

    def digests_at(self, view: View, disk: DiskKey, path: Path) -> None:
        """Write the digest table of a disk as the view shows it to a new file, durably.

        Raises:
            ConflictError: `path` exists.
            CorruptError: something that was read is damaged.
        """
        tables.write_table(self._store, view, disk, path)

    def initial_table(self, disk: DiskKey, path: Path) -> None:
        """Write the digest table of a base without a point to a new file, durably.

        What a cut or an error left half written is unknown in it. A source whose first seal was refused learns from it
        what the base holds.

        Raises:
            OperationRefusedError: there is a point already.
            ConflictError: `path` exists, or the journal was opened for reading.
            CorruptError: the table is damaged.
        """
        with self._changing():
            self._settle()
            if self._store.base_state().sequence is not None:
                raise OperationRefusedError(
                    "the initial replication has ended", hint="ask for the digests at a point"
                )
            tables.copy_base_table(self._store, disk, path)

    # -- upkeep ----------------------------------------------------------------------------------------

    def maintain(
        self,
        policy: Policy,
        now: datetime,
        progress: Callable[[int], None] = _no_progress,
        *,
        shared: Mapping[str, Consistency] | None = None,
    ) -> Maintenance:
        """Give up what `policy` does not keep: fold what is older, thin what lies between, collect garbage.

        What is pinned stays for a later call. `shared`: the cuts that every member of the machine's group has, with the
        least consistency of their points, so that all members choose alike; None: every cut that is named here.

        Raises:
            CorruptError: something to be folded or merged is damaged; it is kept, and of the points that it would go with
                none was given up.
            NoSpaceError: the fold goes on with the next call.
        """
        with self._maintaining():
            self._tidy(progress)
            before = self._store.base_state().floor
            points = self.points()
            kept = points_to_keep([_age(point, shared) for point in points], policy, now)
            held_by = None
            if kept and kept[0] > before:
                goal, held_by = self._unpinned(kept[0], [point.sequence for point in points])
                try:
                    if goal is not None:
                        folding.fold(self._store, goal, progress)
                except PinnedError as error:  # pinned since we looked
                    held_by = str(error.attributes.get("owner", error.message))
            after = self._store.base_state().floor
            thinned, damage = thin.thin_between(
                self._store, [point.sequence for point in points], kept, self._expected
            )
            freed = self._collect()
            if damage is not None:
                raise damage
            return Maintenance(
                folded_to=after if after > before else None,
                points_removed=sum(before <= point.sequence < after for point in points),
                bytes_freed=freed,
                held_by=held_by,
                points_thinned=thinned,
            )

    def thin(self, sequences: Collection[Sequence]) -> int:
        """Give up points by merging each into the next one that is left; returns the bytes given back.

        Neither the base's point, nor the newest one and the one before it, can be given up.

        Raises:
            PinnedError: one is in use. Runs of points before it may be merged already.
            CorruptError: a file of theirs is damaged. Likewise.
        """
        with self._maintaining():
            self._tidy(_no_progress)
            for group in thin.groups(self._store.chain()[1].offered, sequences):
                thin.merge_group(self._store, group, self._expected)
            return self._collect()

    def verify(
        self, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> Iterator[scrub.Finding]:
        """Compare everything with its digests and yield what is damaged. No fold runs meanwhile.

        `progress` is told the bytes done and to be done.
        """
        return scrub.scrub(self._store, progress, is_writer=self.writable)

    # -- inside ----------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._mutex, durable.naming_full_disk(self.path):
            self._check_writable()
            yield

    @contextmanager
    def _maintaining(self) -> Iterator[None]:
        with self._maintenance, durable.naming_full_disk(self.path):
            self._check_writable()
            yield

    def _accept(self, digest: Digest, kind: FileKind) -> None:
        """A file is about to get its name."""
        self._expected.add(digest, kind)
        self._store.applied.forget(digest)

    def _recover(self) -> None:
        folder = self._store.folder
        for part in (
            folder,
            self._store.incoming,
            folder / "logs",
            folder / "points",
            folder / "pins",
            self._store.bases,
        ):
            durable.remove_temporaries(part)
        durable.fsync_name(
            folder
        )  # what a process that died had named and not synced, also the journal itself
        for part in (folder, folder / "logs", folder / "points"):
            durable.fsync_dir(part)
        self._store.parts.remove()  # they were never synced: what is whole of them, nobody knows
        (folder / "applied").unlink(missing_ok=True)  # written by older versions: it would outlive the parts
        with self._maintaining(), self._changing():
            seal.finish_first(self._store)
            with self._keeping_error():
                resize.finish(self._store)
                self._tidy(_no_progress)

    def _settle(self) -> None:
        """Finish a growth of a disk, and a first seal, that were cut."""
        resize.finish(self._store)
        seal.finish_first(self._store)

    def _tidy(self, progress: Callable[[int], None]) -> None:
        """Finish a growth of a disk, a fold or a thinning that was cut."""
        with suppress(NoSpaceError), self._changing():  # what is collected then may make the room
            resize.finish(self._store)
        folding.finish(self._store, progress)
        self._unfinished = None
        self._store.points.remove(reversed(self._store.chain()[1].leftovers))

    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        """A fold that cannot be finished now takes nothing from the points that are left; `status` shows it, `maintain` raises it."""
        try:
            yield
        except (CorruptError, NoSpaceError, UnavailableError, NotFoundError) as error:
            self._unfinished = error

    def _unpinned(self, due: Sequence, offered: list[Sequence]) -> tuple[Sequence | None, str | None]:
        """Return the point up to which nothing is pinned, at most `due`, and who pins it if that is less."""
        try:
            with self._store.pins.removing() as pins:
                blocker = folding.blocking(pins, due)
        except PinnedError as error:
            return None, error.message
        if blocker is None:
            return due, None
        if blocker.still_base:
            return None, blocker.owner
        below = [sequence for sequence in offered if sequence <= blocker.sequence]
        return (below[-1] if below else None), blocker.owner

    def _collect(self) -> int:
        try:
            with self._store.pins.removing() as pins:
                return garbage.collect(self._store, self._expected, pins)
        except PinnedError:  # a reader of a folder it cannot write; what is garbage stays garbage
            return 0

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _check_writable(self) -> None:
        if not self.writable:
            raise ConflictError("the journal was opened for reading", hint="open it for writing")
