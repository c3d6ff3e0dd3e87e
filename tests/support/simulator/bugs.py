"""Planted bugs: each takes one rule out of the product, to show that the simulator would notice. None changes the product's files.

A bug is a patch of the real code for the length of a story. Where a whole function had to be written again, it is the
product's own with the one rule left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.capture import parts
from secondsite.capture.pending import PendingRecord
from secondsite.hrl import merge
from secondsite.hrl.index import ExtentIndex
from secondsite.journal import (
    apply,
    folding,
    garbage,
    journal,
    logs,
    pins,
    points,
    proof,
    resize,
    seal,
    store,
    thin,
)
from secondsite.journal.base import RawBase
from secondsite.model.ids import Digest
from secondsite.model.manifest import Manifest
from secondsite.node.records import Role
from secondsite.node.source import belief, commands, cycle, fence, replicator
from secondsite.node.target import adoption, receiver
from secondsite.ship import sender

Plant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug. `breaks`: the rule that it takes out."""

    name: str
    breaks: str
    plant: Plant


BUGS: Final[dict[str, Bug]] = {}


def bug(name: str, breaks: str) -> Callable[[Plant], Plant]:
    """Register what plants a bug."""

    def register(plant: Plant) -> Plant:
        BUGS[name] = Bug(name, breaks, plant)
        return plant

    return register


def _put(owner: Any, name: str, value: Any) -> AbstractContextManager[Any]:
    return mock.patch.object(owner, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    return None


# -- what is synced, and when ------------------------------------------------------------------------------------


@bug("skipped-fsync", "a document's bytes are on the disk before its name is")
def _() -> Any:
    def write_atomic(path: Path, data: Any, *, mode: int = 0o600) -> None:
        temporary = durable.temporary_path(path)
        with temporary.open("xb", buffering=0) as file:
            file.write(data)
        durable.rename_durable(temporary, path)

    return _put(durable, "write_atomic", write_atomic)


@bug("skipped-name-sync", "a renamed file's name is durable before anything relies on it")
def _() -> Any:
    return _put(durable, "rename_durable", lambda source, target: source.replace(target))


@bug("skipped-log-sync", "a part's bytes are on the disk before its sender hears that it has arrived")
def _() -> Any:
    real = durable.fsync_file

    def fsync_file(file: Path | int) -> None:
        if isinstance(file, int) or "incoming" not in file.parts:
            real(file)

    return _put(durable, "fsync_file", fsync_file)


@bug("skipped-base-sync", "the base is on the disk before base.json says so")
def _() -> Any:
    return _put(RawBase, "sync", _nothing)


@bug("skipped-table-sync", "digest tables are on the disk before anything relies on them")
def _() -> Any:
    return _put(DigestTable, "sync", _nothing)


# -- sealing -----------------------------------------------------------------------------------------------------


@bug("acknowledged-before-sealed", "a point is sealed when it is acknowledged")
def _() -> Any:
    real, waiting = journal.Journal.seal, []

    def later(self: journal.Journal, epoch: Any, manifest: bytes) -> Digest:
        if self.status().last is None or self.status().last.digest == seal.digest_of(manifest):  # type: ignore[union-attr]
            return real(self, epoch, manifest)
        waiting.append(manifest)
        if len(waiting) % 3:
            return real(self, epoch, manifest)
        return seal.digest_of(manifest)

    return _put(journal.Journal, "seal", later)


@bug("sequence-not-checked", "a point follows the last one")
def _() -> Any:
    def seal_next(there: Any, manifest: Any, data: bytes, _last: Any) -> None:
        seal._check_files(there, manifest)
        resize.grow(there, seal._sizes(manifest))
        there.points.write(data, manifest.sequence)

    return _put(seal, "seal_next", seal_next)


@bug(
    "first-base-believed",
    "what of the first replication may have been lost is shipped again, and the base is compared",
)
@contextmanager
def _() -> Iterator[None]:
    """Two rules at once: each of them finds what the other lets through."""
    with (
        _put(seal, "table_label", lambda disk: f"another.{disk}"),
        _put(PendingRecord, "mark_unknown", _nothing),
    ):
        yield


@bug("digest-not-checked", "a part that changed on its way is refused")
def _() -> Any:
    def commit(self: logs.Incoming) -> None:
        self._file.close()
        self._accepted(self.digest, self.kind)
        self._store.adopt(self._path, self.digest, self.kind)
        self._committed = True

    return _put(logs.Incoming, "commit", commit)


@bug("torn-manifest-accepted", "a manifest is read only if its digest matches")
def _() -> Any:
    real = points.PointStore.write

    def write(self: points.PointStore, data: bytes, sequence: Any) -> None:
        """In place, and not synced: what is torn is to be noticed by the reader."""
        real(self, data, sequence)
        path = self.path(sequence)
        path.unlink()
        with path.open("xb", buffering=0) as file:
            file.write(data + f"\n{seal.digest_of(data)}\n".encode())

    return _put(points.PointStore, "write", write)


# -- reading -----------------------------------------------------------------------------------------------------


@bug("swapped-extent-order", "of two points' data the later counts")
def _() -> Any:
    real = ExtentIndex.merge
    return _put(ExtentIndex, "merge", staticmethod(lambda layers: real(list(layers)[::-1])))


@bug("lost-zero-extent", "what became zero hides what was there before")
def _() -> Any:
    return _put(ExtentIndex, "from_zeros", classmethod(lambda cls, _: cls.empty()))


@bug("files-not-proven", "a view that compares notices a damaged log")
def _() -> Any:
    return _put(
        logs.LogStore, "check_contents", lambda self, file, _progress=_nothing: self.check_presence(file)
    )


@bug("base-not-compared", "a view that compares notices a damaged base")
def _() -> Any:
    return _put(proof.BaseProof, "_compare", _nothing)


# -- folding, thinning, garbage ----------------------------------------------------------------------------------


@bug("fold-before-pin", "a fold leaves what is pinned")
def _() -> Any:
    return _put(folding, "blocking", lambda _pins, _goal: None)


@bug("thin-ignores-pins", "a point that is pinned is not merged away")
@contextmanager
def _() -> Iterator[None]:
    real_merge, real_between = thin.merge_group, thin.thin_between

    @contextmanager
    def none(_: Any) -> Iterator[list[Any]]:
        yield []

    def blind(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with _put(pins.PinStore, "removing", none):
                return real(*args)

        return call

    with _put(thin, "merge_group", blind(real_merge)), _put(thin, "thin_between", blind(real_between)):
        yield


@bug("garbage-ignores-readers", "a file that an open view reads stays")
def _() -> Any:
    real = garbage.collect
    return _put(garbage, "collect", lambda there, expected, _pins: real(there, expected, []))


@bug("fold-not-announced", "the points before a fold's goal are given up before the base changes")
@contextmanager
def _() -> Iterator[None]:
    write, read = store.Store.write_base_state, store.Store.base_state
    kept: dict[int, Any] = {}

    def write_late(self: store.Store, state: Any) -> None:
        if state.folding_to is not None:
            kept[id(self)] = state
            return
        write(self, state)
        kept.pop(id(self), None)

    with (
        _put(store.Store, "write_base_state", write_late),
        _put(store.Store, "base_state", lambda self: kept.get(id(self)) or read(self)),
    ):
        yield


@bug("prune-before-fold", "manifests go after the base is durable at the fold's goal")
def _() -> Any:
    real = folding.finish

    def finish(there: Any, progress: Any = _nothing) -> None:
        state = there.base_state()
        if state.folding_to is not None:
            there.points.remove(
                sequence
                for sequence in there.points.sequences()
                if state.sequence < sequence < state.folding_to
            )
        real(there, progress)

    return _put(folding, "finish", finish)


@bug("fold-wrong-order", "a fold writes the latest data of each block")
def _() -> Any:
    real = store.points_after
    return _put(folding, "points_after", lambda *args: real(*args)[::-1])


@bug("wrong-end-of-disk", "a disk's short last block counts as whole")
def _() -> Any:
    def whole(self: Any, start: int, length: int) -> tuple[int, int]:
        return -(-start // 4096), (start + length) // 4096

    return _put(apply._Cells, "_whole_blocks", whole)


@bug("thin-loses-zeros", "merged points keep what became zero")
def _() -> Any:
    real = merge.merge_layers

    def without_zeros(*args: Any) -> Any:
        real(*args)
        return np.empty((0, 2), np.int64)

    return _put(thin, "merge_layers", without_zeros)


@bug("thin-forgets-digests", "a merged point names the digests that it replaces")
def _() -> Any:
    real = points.PointStore.write

    def write(self: points.PointStore, data: bytes, sequence: Any) -> None:
        manifest = Manifest.from_bytes(data)
        real(self, replace(manifest, replaces=()).to_bytes() if manifest.replaces else data, sequence)

    return _put(points.PointStore, "write", write)


@bug("grown-block-not-computed", "the block that a disk's old end cut through gets its digest anew")
def _() -> Any:
    real = DigestTable.resize

    def keeping(self: DigestTable, disk_size: int) -> None:
        with _put(DigestTable, "mark_unknown", _nothing):
            real(self, disk_size)

    return _put(DigestTable, "resize", keeping)


# -- the source --------------------------------------------------------------------------------------------------


@bug("table-before-acknowledgement", "the source believes only what the target has acknowledged")
def _() -> Any:
    real = cycle.Cycle._ship_changes

    def ship(self: Any, record: Any, link: Any, snapshot: Any, tables: Any, suspects: Any) -> Any:
        kept, result = real(self, record, link, snapshot, tables, suspects)
        for part in kept:
            part.pending.apply(tables[part.disk])
        return kept, result

    return _put(cycle.Cycle, "_ship_changes", ship)


@bug("compare-skips-a-block", "a compare looks at every block")
def _() -> Any:
    real = parts._blocks_of

    def skipping(extents: Any, disk_size: int) -> Any:
        data, holes = real(extents, disk_size)
        last = -(-disk_size // 4096)
        return np.array(
            [[first, min(end, last - 1)] for first, end in data.tolist() if first < last - 1], np.int64
        ).reshape(-1, 2), holes

    return _put(parts, "_blocks_of", skipping)


@bug("wrong-extent-length", "the last extent ends where the disk ends")
def _() -> Any:
    real = parts._Ranges.__init__

    def shorter(self: Any, runs: Any, disk_size: int) -> None:
        real(self, runs, disk_size)
        at_end = (self._pairs[:, 0] + self._pairs[:, 1] == disk_size) & (self._pairs[:, 1] > 512)
        self._pairs[at_end, 1] -= 512

    return _put(parts._Ranges, "__init__", shorter)


@bug("part-counted-twice", "each part is named once")
def _() -> Any:
    real = parts.produce

    def twice(*args: Any, **fields: Any) -> Iterator[Any]:
        for number, part in enumerate(real(*args, **fields)):
            yield part
            if number == 1:
                yield part

    return _put(cycle, "produce", twice)


@bug("part-believed-there", "a part is there when the target says so")
def _() -> Any:
    return _put(sender.Sender, "missing_now", lambda _self, part: part.length % 3 != 0)


@bug("suspects-forgotten", "what the bitmap cannot know is looked at")
def _() -> Any:
    return _put(belief.Belief, "suspects", lambda _self: {})


@bug("checkpoint-before-seal", "changes are counted from the last acknowledged point")
def _() -> Any:
    real = belief.Belief.promise_point

    def promise(self: Any, manifest: Any, checkpoint: str, kept: Any) -> Any:
        record = self._items.get(manifest.item)
        if record.acked is not None and checkpoint:
            self._items.change(manifest.item, acked=replace(record.acked, checkpoint=checkpoint))
        return real(self, manifest, checkpoint, kept)

    return _put(belief.Belief, "promise_point", promise)


# -- role changes ------------------------------------------------------------------------------------------------


@bug("stale-epoch-accepted", "nothing with an older epoch gets in, however late it arrives")
@contextmanager
def _() -> Iterator[None]:
    admit = receiver.JournalReceiver._admit
    with (
        _put(seal, "check_epoch", _nothing),
        _put(
            receiver.JournalReceiver, "_admit", lambda self, item, peer, _epoch: admit(self, item, peer, None)
        ),
    ):
        yield


@bug("epoch-not-durable", "a raised epoch survives a crash")
@contextmanager
def _() -> Iterator[None]:
    read = store.Store.epoch
    kept: dict[int, Any] = {}
    with (
        _put(store.Store, "write_epoch", lambda self, epoch: kept.update({id(self): epoch})),
        _put(store.Store, "epoch", lambda self: kept.get(id(self)) or read(self)),
    ):
        yield


@bug("runs-after-stepping-down", "a side that stepped down is off")
def _() -> Any:
    return _put(fence.Fence, "ensure", lambda _self, record: record)


@bug("last-changes-not-shipped", "a planned failover ships what was written last")
def _() -> Any:
    return _put(replicator.Replicator, "run_once", _nothing)


@bug("old-disks-believed", "old disks are a point only if nobody wrote to them since")
def _() -> Any:
    real = adoption.Adoption._look
    return _put(adoption.Adoption, "_look", lambda *args: (real(*args)[0], None))


@bug("replica-bitmap-ignored", "the way back ships what the replica wrote since its boot")
def _() -> Any:
    real = commands.SourceCommands._resume

    def resume(self: commands.SourceCommands, command: Any, item: Any) -> None:
        known = self.items.get(item).role is Role.SOURCE
        real(self, command, item)
        record = self.items.get(item)
        if known or record.acked is None or not record.acked.checkpoint:
            return
        machine: Any = self.replicators._site.machine  # type: ignore[attr-defined]
        for disk in machine.capture.disks.values():
            disk.changed[record.acked.checkpoint] = set()

    return _put(commands.SourceCommands, "_resume", resume)
