"""How the bugs of crash_bugs are put into the journal's code: one rule broken each, one function at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secondsite import durable
from secondsite.blocks import DigestTable
from secondsite.journal import (
    apply,
    base,
    create,
    documents,
    extract,
    folding,
    logs,
    pins,
    points,
    removal,
    resize,
    seal,
    thin,
)
from secondsite.journal.documents import BaseState
from secondsite.journal.journal import Journal
from secondsite.journal.store import Store

Plant = Callable[[pytest.MonkeyPatch], None]


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _write(path: Path, data: bytes, *, sync_file: bool, sync_folder: bool, late: bool = False) -> None:
    """What durable.write_atomic does, with steps left out or exchanged."""
    temporary = durable.temporary_path(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
        if sync_file and not late:
            os.fsync(fd)
        temporary.replace(path)
        if sync_file and late:
            os.fsync(fd)
    finally:
        os.close(fd)
    if sync_folder:
        durable.fsync_dir(path.parent)


def _careless(**steps: bool) -> Callable[..., None]:
    return lambda path, data, **_: _write(path, bytes(data), **steps)


def data_not_synced(patch: pytest.MonkeyPatch) -> None:
    def adopt(self: Any, temporary: Path, *rest: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "fsync_file", _nothing)
            return whole(self, temporary, *rest, **options)

    whole = logs.LogStore.adopt
    patch.setattr(logs.LogStore, "adopt", adopt)


def log_named_later(patch: pytest.MonkeyPatch) -> None:
    def adopt(self: Any, *rest: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "rename_durable", lambda source, target: source.replace(target))
            return whole(self, *rest, **options)

    whole = logs.LogStore.adopt
    patch.setattr(logs.LogStore, "adopt", adopt)


def logs_not_synced_at_opening(patch: pytest.MonkeyPatch) -> None:
    def recover(self: Journal) -> None:
        left_out = self.path / "logs"
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "fsync_dir", lambda path: None if path == left_out else sync(path))
            whole(self)

    sync = durable.fsync_dir
    whole = Journal._recover
    patch.setattr(Journal, "_recover", recover)


def name_not_synced_at_opening(patch: pytest.MonkeyPatch) -> None:
    def recover(self: Journal) -> None:
        left_out = self.path.parent
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "fsync_dir", lambda path: None if path == left_out else sync(path))
            whole(self)

    sync = durable.fsync_dir
    whole = Journal._recover
    patch.setattr(Journal, "_recover", recover)


def base_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(base.RawBase, "sync", _nothing)


def tables_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DigestTable, "sync", _nothing)


def no_switch_before_the_fold(patch: pytest.MonkeyPatch) -> None:
    def fold(store: Store, goal: Any, progress: Any = _nothing) -> None:
        state, chain = store.chain()
        if state.sequence is None or goal <= state.sequence:
            return
        for disk in store.identity.disks:
            due = [point for point in chain.points if state.sequence < point.sequence <= goal]
            index, sources = store.merged_index(due, disk)
            opened = store.open_base(disk, writable=True)
            with store.open_table(disk, writable=True) as table:
                apply.apply(opened, table, store.key, index, [file for file, _ in sources], store.logs)
            opened.close()
        whole(store, goal, progress)

    whole = folding.fold
    patch.setattr(folding, "fold", fold)


def fold_done_before_it_is(patch: pytest.MonkeyPatch) -> None:
    def finish(store: Store, progress: Any = _nothing) -> None:
        state, chain = store.chain()
        if state.sequence is None or state.folding_to is None:
            return
        goal = next(point for point in chain.points if point.sequence == state.folding_to)
        layers = [point for point in chain.points if state.sequence < point.sequence <= goal.sequence]
        store.write_base_state(BaseState(goal.sequence, goal.digest))
        for disk in store.identity.disks:
            index, sources = store.merged_index(layers, disk)
            opened = store.open_base(disk, writable=True)
            with store.open_table(disk, writable=True) as table:
                apply.apply(opened, table, store.key, index, [file for file, _ in sources], store.logs)
            opened.close()

    patch.setattr(folding, "finish", finish)


def logs_unlinked_before_the_fold_ends(patch: pytest.MonkeyPatch) -> None:
    def finish(store: Store, progress: Any = _nothing) -> None:
        before, chain = store.chain()
        goal = before.folding_to or 0
        write = store.write_base_state

        def late(state: BaseState) -> None:
            folded = {name for point in chain.points if point.sequence <= goal for name in _files(point)}
            kept = {name for point in chain.points if point.sequence > goal for name in _files(point)}
            for name in folded - kept:
                store.logs.unlink(name)
            store.logs.persist()
            write(state)

        store.write_base_state = late  # type: ignore[method-assign]
        try:
            whole(store, progress)
        finally:
            del store.write_base_state

    whole = folding.finish
    patch.setattr(folding, "finish", finish)


def _files(point: points.StoredPoint) -> list[str]:
    return [file.name for disk in point.manifest.disks.values() for file in logs.files_of(disk)]


def points_gone_before_the_merged_one(patch: pytest.MonkeyPatch) -> None:
    def merge(store: Store, group: Any, expected: Any) -> None:
        def write(data: bytes, sequence: Any) -> None:
            store.points.remove([point.sequence for point in reversed(group[:-1])])
            put(data, sequence)

        put = store.points.write
        store.points.write = write  # type: ignore[method-assign]
        try:
            whole(store, group, expected)
        finally:
            del store.points.write

    whole = thin.merge_group
    patch.setattr(thin, "merge_group", merge)


def first_switch_before_its_manifest(patch: pytest.MonkeyPatch) -> None:
    def write(self: points.PointStore, data: bytes, sequence: Any) -> None:
        state = self.folder.parent / "base.json"
        if documents.load_base_state(state).sequence is None:
            documents.replace(state, documents.encode_base_state(BaseState(sequence, seal.digest_of(data))))
        whole(self, data, sequence)

    whole = points.PointStore.write
    patch.setattr(points.PointStore, "write", write)


def cells_not_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(apply, "mark_unknown", _nothing)


def grown_before_it_is_said(patch: pytest.MonkeyPatch) -> None:
    def write(store: Store, disks: Any) -> None:
        for spec in disks.values():
            if spec.grown_from is not None:
                fd = os.open(spec.path, os.O_RDWR)
                os.ftruncate(fd, spec.size)
                os.fsync(fd)
                os.close(fd)
        whole(store, disks)

    whole = resize._write
    patch.setattr(resize, "_write", write)


def documents_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(documents, "replace", _careless(sync_file=False, sync_folder=False))


def deleted_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(removal, "take_name", lambda folder, *, remove_images: folder)

    def finish(doomed: Path, spare: Any = ()) -> None:
        shutil.rmtree(doomed)
        durable.fsync_dir(doomed.parent)

    patch.setattr(removal, "finish", finish)


def tables_gone_before_the_journal(patch: pytest.MonkeyPatch) -> None:
    def take(source: Path, target: Path) -> None:
        source.rename(target)
        durable.fsync_dir(source.parent)

    patch.setattr(create, "_take_table", take)


def extract_not_synced(patch: pytest.MonkeyPatch) -> None:
    def write(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "fsync_file", _nothing)
            whole(*arguments)

    whole = extract._write
    patch.setattr(extract, "_write", write)


def pin_not_durable(patch: pytest.MonkeyPatch) -> None:
    def add(self: pins.PinStore, sequence: Any, owner: str) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "write_atomic", _careless(sync_file=True, sync_folder=False))
            whole(self, sequence, owner)

    whole = pins.PinStore.add_lasting
    patch.setattr(pins.PinStore, "add_lasting", add)


def epoch_not_durable(patch: pytest.MonkeyPatch) -> None:
    def write(self: Store, epoch: Any) -> None:
        _write(self.folder / "epoch.json", documents.encode_epoch(epoch), sync_file=True, sync_folder=False)

    patch.setattr(Store, "write_epoch", write)


def point_write(**steps: bool) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def write(self: points.PointStore, data: bytes, sequence: Any) -> None:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(durable, "write_atomic", _careless(**steps))
                whole(self, data, sequence)

        whole = points.PointStore.write
        patch.setattr(points.PointStore, "write", write)

    return plant
