"""Opens a view of a point in the ordinary way: finds it in the chain, pins it, and lays its logs over each other.

What it promises: what a view needs is pinned before it is looked at; with `verify` its files were compared with their digests.
"""

from __future__ import annotations

from collections.abc import Callable

from secondsite.errors import CorruptError, NotFoundError
from secondsite.journal.apply import partial_blocks
from secondsite.journal.logs import OpenFiles, files_of
from secondsite.journal.points import StoredPoint
from secondsite.journal.store import Doubtful, Store, naming, points_after
from secondsite.journal.view import DiskView, Sources, View, open_disk
from secondsite.model.ids import DiskKey, Sequence


def open_view(
    store: Store,
    sequence: Sequence | None,
    *,
    purpose: str,
    verify: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> View:
    """Open a point, the newest if `sequence` is None.

    Raises:
        NotFoundError: there is no such point (any more).
        CorruptError: the point, or a file that it needs, is damaged.
    """
    with store.pins.reading() as reading:
        state, chain = store.chain()
        point = find(chain.offered, sequence, chain.damage)
        layers = points_after(chain, Sequence(state.sequence or 0), point.sequence)
        names = {
            file.name for layer in layers for disk in layer.manifest.disks.values() for file in files_of(disk)
        }
        folding = points_after(chain, Sequence(state.sequence or 0), Sequence(state.folding_to or 0))
        pin = reading.pin(point.sequence, purpose, names, still_base=verify)
    disks: dict[DiskKey, DiskView] = {}
    files = OpenFiles()
    try:
        for key in point.manifest.disks:
            if verify:
                _check_files(store, key, layers, progress)
            doubtful = doubtful_blocks(store, key, folding) if verify else None
            index, found = store.merged_index(layers, key)
            sources = Sources(store.logs, [file for file, _ in found])
            disks[key] = open_disk(store, key, point, index, sources, files, doubtful)
    except BaseException:
        for disk in disks.values():
            disk.close()
        pin.release()
        raise
    return View(point, disks, files, pin)


def find(offered: list[StoredPoint], sequence: Sequence | None, damage: CorruptError | None) -> StoredPoint:
    """Return the point of that sequence, or the newest; a damaged newest is refused, never skipped."""
    for point in reversed(offered):
        if point.sequence == sequence or (sequence is None and damage is None):
            return point
    if damage is not None and (sequence is None or sequence >= int(damage.attributes.get("point", 0))):
        raise naming(damage)  # a fresh one: the chain's is kept
    if sequence is None:
        raise NotFoundError("there is no recovery point yet", hint="wait for the initial replication to end")
    raise NotFoundError(
        f"there is no point {sequence}", hint="list the points that there are", point=sequence
    )


def doubtful_blocks(store: Store, key: DiskKey, folding: list[StoredPoint]) -> Doubtful:
    """Return the blocks that a fold of these points covers in part, and the one that a growth cuts through."""
    if not folding:
        return store.doubtful(key)
    return store.doubtful(key, partial_blocks(store.merged_index(folding, key)[0], store.size(key)))


def _check_files(
    store: Store, key: DiskKey, layers: list[StoredPoint], progress: Callable[[int], None]
) -> None:
    for point in layers:
        for file in files_of(point.manifest.disks[key]):
            try:
                store.logs.check_contents(file, progress)
            except CorruptError as error:
                raise naming(error, point=point.sequence, disk=key) from error
