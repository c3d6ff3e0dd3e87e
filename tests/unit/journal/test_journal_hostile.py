"""What the fuzzer found in a journal's files and in points of a hostile source, each with its smallest case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import ConflictError, CorruptError, UnsupportedError
from secondsite.journal import Journal, documents
from secondsite.model.ids import Sequence
from support.journals import VDA, filled

SEQUENCE_MAX = 10**16 - 1
"""A point's file name has 16 digits."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound journal of two points, closed."""
    filled(tmp_path / "item", 2)[1].close()
    return tmp_path / "item"


def rewrite(path: Path, **changes: Any) -> None:
    """Change members of a small document; its checksum is right again."""
    document = documents.load(path)
    path.write_bytes(documents.encode({**document, **changes}))


@pytest.mark.parametrize(
    "where", ["../outside.raw", "/outside.raw", "base/../../outside.raw", "base/vdb.raw", ""]
)
@pytest.mark.parametrize("writable", [True, False])
def test_a_journal_whose_base_lies_elsewhere_is_refused(folder: Path, where: str, writable: bool) -> None:
    outside = folder.parent / "outside.raw"
    outside.write_bytes(bytes(64 << 10))
    disks = documents.load(folder / "journal.json")["disks"]
    disks["vda"]["base"]["path"] = str(outside) if where.startswith("/") else where
    rewrite(folder / "journal.json", disks=disks)
    with pytest.raises(CorruptError):
        Journal.open(folder, writable=writable)
    assert outside.read_bytes() == bytes(64 << 10)


@pytest.mark.parametrize("size", [float("inf"), -512, 0, "65536", 65536.0, True, 1 << 70])
def test_a_journal_with_an_impossible_size_is_refused(folder: Path, size: object) -> None:
    disks = documents.load(folder / "journal.json")["disks"]
    disks["vda"]["size"] = size
    rewrite(folder / "journal.json", disks=disks)
    with pytest.raises(CorruptError):
        Journal.open(folder, writable=False)


def test_a_journal_with_a_short_key_is_refused(folder: Path) -> None:
    rewrite(folder / "journal.json", digest_key="00")
    with pytest.raises(CorruptError):
        Journal.open(folder, writable=False)


@pytest.mark.parametrize("epoch", [float("inf"), -1, 0, "3", None])
def test_an_impossible_epoch_is_refused(folder: Path, epoch: object) -> None:
    rewrite(folder / "epoch.json", epoch=epoch)
    with Journal.open(folder, writable=False) as journal, pytest.raises(CorruptError):
        journal.status()


def test_a_pin_of_endless_brackets_is_refused_by_name(folder: Path) -> None:
    (folder / "pins" / "lasting-0-1.json").write_bytes(b"[" * 100_000)
    with (
        Journal.open(folder, writable=False) as journal,
        pytest.raises(ConflictError, match="cannot be read"),
    ):
        journal.pins()


def test_a_point_whose_sequence_has_no_name_is_refused_and_not_acknowledged(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "item", 2)
    with journal:
        manifest = replace(model.manifest({}), sequence=Sequence(SEQUENCE_MAX + 1))
        with pytest.raises(CorruptError):
            journal.seal(model.epoch, manifest.to_bytes())
        manifest = replace(manifest, sequence=Sequence(SEQUENCE_MAX))
        digest = journal.seal(model.epoch, manifest.to_bytes())
        last = journal.status().last
        assert last is not None
        assert last.digest == digest


@pytest.mark.parametrize("size", [(1 << 57), (1 << 63) - 512])
def test_a_disk_that_no_file_can_hold_is_refused_and_the_journal_still_opens(
    tmp_path: Path, size: int
) -> None:
    model, journal = filled(tmp_path / "item", 2)
    with journal:
        point = model.manifest({})
        grown = {**point.disks, VDA: replace(point.disks[VDA], size=size)}
        with pytest.raises(UnsupportedError):
            journal.seal(model.epoch, replace(point, disks=grown).to_bytes())
        model.check(journal)
    with Journal.open(tmp_path / "item", writable=True) as journal:
        assert (
            json.loads((tmp_path / "item" / "journal.json").read_bytes())["disks"]["vda"]["size"] == 64 << 10
        )
        model.check(journal)
        model.seal(journal, {VDA: [(0, b"x" * 4096)]})
        model.check(journal)
