"""The disk is full at any step: NoSpaceError, nothing half-made is visible, and the same call later succeeds."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import NoSpaceError
from secondsite.journal import Journal
from secondsite.model.ids import Sequence
from secondsite.model.manifest import PointKind
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model
from support.power import unsynced

pytestmark = pytest.mark.fault

SIZES = {VDA: 16 << 10, VDB: 8 << 10}


class Meter:
    """Counts calls that may need space, and refuses one of them."""

    def __init__(self, refused: int | None) -> None:
        self.calls = 0
        self._refused = refused

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self._refused:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call


@contextmanager
def full_at(refused: int | None) -> Iterator[Meter]:
    meter = Meter(refused)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "pwrite", "fsync", "ftruncate"):
            patch.setattr(os, name, meter.wrap(getattr(os, name)))
        yield meter


def seal(journal: Journal, model: Model) -> None:
    parts = {
        VDA: model.parts(VDA, [(0, b"n" * 4096), (4096, 2048)]),
        VDB: model.parts(VDB, [(512, b"m" * 512)]),
    }
    manifest = model.manifest(parts)
    for files in parts.values():
        model.send(journal, files)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def initial(journal: Journal, model: Model) -> None:
    parts = model.parts(VDA, [(0, b"n" * 4608), (8192, 4096)])
    manifest = model.manifest({}, kind=PointKind.INITIAL)
    if journal.status().state == "initial":
        journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def fold(journal: Journal, _: Model) -> None:
    journal.maintain(Policy(retention_points=2), START + timedelta(minutes=9))


def thin(journal: Journal, _: Model) -> None:
    if Sequence(2) in {point.sequence for point in journal.points()}:
        journal.thin([Sequence(2)])


@pytest.mark.parametrize("operation", [initial, seal, fold, thin])
def test_a_full_disk_at_any_step_is_harmless(
    tmp_path: Path, operation: Callable[[Journal, Model], None]
) -> None:
    with unsynced():
        before = Model(SIZES)
        journal = before.create(tmp_path / "prepared")
        if operation is not initial:
            before.replicate_initially(journal, {VDA: [(0, b"A" * 8192)]})
            for number in range(4):
                before.seal(journal, {VDA: [(number * 512, b"%d" % number * 512)]} if number else {})
        journal.close()
        calls = _run_and_repeat(tmp_path, before, operation, None)
        assert calls > 3
        for refused in range(calls):
            _run_and_repeat(tmp_path, before, operation, refused)


def _run_and_repeat(
    folder: Path, before: Model, operation: Callable[[Journal, Model], None], refused: int | None
) -> int:
    shutil.copytree(folder / "prepared", folder / "j")
    model = copy.deepcopy(before)
    with Journal.open(folder / "j", writable=True) as journal:
        with full_at(refused) as meter:
            try:
                operation(journal, model)
            except NoSpaceError:
                assert refused is not None
        assert list((journal.path / "incoming").iterdir()) == []
        _check_offered(journal, model)
        if model.sequence == before.sequence:
            model = copy.deepcopy(before)
            operation(journal, model)
        model.check(journal, verify=True)
    with Journal.open(folder / "j", writable=True) as journal:
        model.check(journal, verify=True)
        assert list(journal.verify()) == []
        journal.maintain(Policy(retention_points=2), START + timedelta(minutes=9))
        model.check(journal, verify=True)
    shutil.rmtree(folder / "j")
    return meter.calls


def _check_offered(journal: Journal, model: Model) -> None:
    """A point may be there whose acknowledgement failed; then it is the one that was to be made."""
    known = copy.deepcopy(model)
    known.contents.setdefault(model.sequence + 1, {disk: bytes(data) for disk, data in model.disks.items()})
    known.check(journal)
