"""Parts of an initial replication that come twice, or that a failed cycle left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secondsite.errors import NotFoundError
from secondsite.journal import Journal
from secondsite.journal.seal import PASSING_S
from support.journals import VDA, VDB, Model
from support.power import unsynced

BLOCK = 4096


def zeros_twice(model: Model, journal: Journal) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Zeros were applied, data came over them, and the same zeros have arrived again."""
    model.replicate_initially(journal, {VDA: [(0, b"A" * BLOCK)]})
    model.replicate_initially(journal, {VDA: [(0, BLOCK)]})
    model.replicate_initially(journal, {VDA: [(0, b"B" * BLOCK)]})
    zeros = model.parts(VDA, [(0, BLOCK)])
    return zeros, model.send(journal, zeros)  # type: ignore[return-value]


def test_a_list_of_zeros_that_came_again_and_went_with_its_writer_is_not_taken_for_applied(
    tmp_path: Path,
) -> None:
    with unsynced():
        model = Model()
        journal = model.create(tmp_path / "j")
        zeros, digests = zeros_twice(model, journal)
        journal.close()
        with Journal.open(tmp_path / "j", writable=True) as journal:
            with pytest.raises(NotFoundError):
                journal.apply_initial(model.epoch, VDA, digests)  # type: ignore[arg-type]
            model.send(journal, zeros)  # type: ignore[arg-type]
            journal.apply_initial(model.epoch, VDA, digests)  # type: ignore[arg-type]
            manifest = model.manifest({})
            model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
            model.check(journal, verify=True)


def test_what_another_disk_took_is_asked_for_again(tmp_path: Path) -> None:
    """A late request for the other disk applies the list, and unlinks it: the first disk's own call finds none."""
    with unsynced():
        model = Model()
        with model.create(tmp_path / "j") as journal:
            _, digests = zeros_twice(model, journal)
            journal.apply_initial(model.epoch, VDB, digests)  # type: ignore[arg-type]
            with pytest.raises(NotFoundError):
                journal.apply_initial(model.epoch, VDA, digests)  # type: ignore[arg-type]


def test_an_answer_that_was_lost_is_given_again(tmp_path: Path) -> None:
    with unsynced():
        model = Model()
        with model.create(tmp_path / "j") as journal:
            digests = model.send(journal, model.parts(VDA, [(0, b"A" * BLOCK)]))
            for _ in range(2):
                journal.apply_initial(model.epoch, VDA, digests)


def test_logs_that_failed_cycles_left_go_and_the_newest_stay(tmp_path: Path) -> None:
    """Each cycle names its logs anew, so nobody would ever apply them."""
    with unsynced():
        model = Model()
        with model.create(tmp_path / "j") as journal:
            left = [model.send(journal, model.parts(VDA, [(0, b"A" * BLOCK)]))[0] for _ in range(3)]
            for digest in left[:2]:
                path = tmp_path / "j" / "parts" / f"{digest}.hrl"
                long_ago = path.stat().st_mtime - PASSING_S - 1
                os.utime(path, (long_ago, long_ago))
            model.replicate_initially(journal, {VDA: [(0, b"B" * BLOCK)]})
            assert [journal.has_file(digest, "hrl") for digest in left] == [False, False, True]
