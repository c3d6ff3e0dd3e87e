"""Folding: the base moves forward to a later point, and the points before that are given up.

What it promises, and why each step is where it is: docs/design/journal.md, "fold". In short: one switch in base.json gives the old
points up before the first byte of the base changes, one names the new base after the last byte is durable, and all
that is written between is shadowed by the logs of every point that is left. A damaged file is never folded. What it does
not do: it does not choose the goal; `Journal.maintain` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from secondsite.blocks import DigestTable
from secondsite.errors import CorruptError, InvalidInputError, PinnedError, UnavailableError
from secondsite.hrl.index import ExtentIndex
from secondsite.journal import apply
from secondsite.journal.base import Base
from secondsite.journal.documents import BaseState
from secondsite.journal.pins import Pin
from secondsite.journal.points import Chain, StoredPoint
from secondsite.journal.store import Store, naming, points_after
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.units import BLOCK


def fold(store: Store, goal: Sequence, progress: apply.Progress = lambda _: None) -> None:
    """Fold the base up to `goal`, a retained point. Nothing happens if it is there already.

    Raises:
        PinnedError: somebody reads a point before it. Nothing has changed.
        UnavailableError: a growth of a disk was begun and is to be finished first; the fold goes on with the next call.
        CorruptError: a file or a touched part of the base is damaged. Nothing has changed, unless the damage came
            about during the fold: then the base stays between two points, which no reader sees.
    """
    state, chain = store.chain()
    if state.folding_to is not None:
        finish(store, progress)
        state, chain = store.chain()
    if state.sequence is None or goal <= state.sequence:
        return
    if all(point.sequence != goal for point in chain.offered):
        raise InvalidInputError(f"point {goal} is not retained, so the base cannot be folded to it")
    _check_sources(store, points_after(chain, state.sequence, goal))
    with store.pins.removing() as pins:
        blocker = blocking(pins, goal)
        if blocker is not None:
            raise PinnedError(
                f"point {blocker.sequence} is in use by {blocker.owner}",
                hint="the fold goes on when that has ended",
                point=blocker.sequence,
                owner=blocker.owner,
            )
        store.write_base_state(replace(state, folding_to=goal))
    finish(store, progress)


def finish(store: Store, progress: apply.Progress = lambda _: None) -> None:
    """Carry a fold that has begun to its end; without one nothing happens."""
    state, chain = store.chain()
    if state.sequence is None or state.folding_to is None:
        return
    goal = _goal(chain, state.folding_to)
    for disk in store.identity.disks:
        index, sources = store.merged_index(points_after(chain, state.sequence, goal.sequence), disk)
        with _opened(store, disk, writable=True) as (base, table):
            apply.apply(base, table, store.key, index, [file for file, _ in sources], store.logs, progress)
    store.write_base_state(BaseState(goal.sequence, goal.digest))
    store.points.remove(sequence for sequence in store.points.sequences() if sequence < goal.sequence)


def blocking(pins: list[Pin], goal: Sequence) -> Pin | None:
    """Return a pin that forbids a fold to `goal`, the oldest point first, or None."""
    for pin in sorted(pins, key=lambda pin: pin.sequence):
        if pin.sequence < goal or pin.still_base:
            return pin
    return None


def _goal(chain: Chain, sequence: Sequence) -> StoredPoint:
    for point in chain.points:
        if point.sequence == sequence:
            return point
    raise (
        naming(chain.damage)
        if chain.damage
        else CorruptError(f"point {sequence}, to which the base is being folded, is missing")
    )


def _check_sources(store: Store, points: list[StoredPoint]) -> None:
    """Compare all that will be folded with its digests, and the rest of partly covered blocks with theirs."""
    for disk in store.identity.disks:
        index, sources = store.merged_index(points, disk)
        for file, point in sources:
            try:
                store.logs.check_contents(file)
            except CorruptError as error:
                raise naming(error, point=point, disk=disk) from error
        _check_rest(store, disk, index)


def _check_rest(store: Store, disk: DiskKey, index: ExtentIndex) -> None:
    if not apply.partial_blocks(index, store.size(disk)):
        return
    with _opened(store, disk, writable=False) as (base, table):
        try:
            apply.check_partial(base, table, store.key, apply.partial_blocks(index, base.size))
        except CorruptError as error:
            raise naming(error, point=store.base_state().sequence, disk=disk) from error


@contextmanager
def _opened(store: Store, disk: DiskKey, *, writable: bool) -> Iterator[tuple[Base, DigestTable]]:
    """Open a disk's base and table at one size. A seal may let a disk grow meanwhile, since it waits for no fold; but not while
    one is open that ends within a block, whose digest is another when the disk is larger.
    """
    with ExitStack() as files, ExitStack() as lock:
        lock.enter_context(store.growth)
        if store.identity.disks[disk].grown_from is not None:
            raise UnavailableError(
                f"disk {disk} grows, and that did not come to its end",
                hint="the next seal or maintenance finishes it",
                disk=disk,
            )
        base = store.open_base(disk, writable=writable)
        files.callback(base.close)
        table = files.enter_context(store.open_table(disk, writable=writable))
        if base.size % BLOCK == 0:
            lock.close()
        yield base, table
