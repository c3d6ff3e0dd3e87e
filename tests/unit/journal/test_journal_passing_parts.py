"""Parts of an initial replication are never synced as files, so nothing may be built on one that is not in the base."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secondsite.errors import CorruptError, NotFoundError
from secondsite.journal import Journal
from support.journals import VDA, VDB, Model, digest_of, log_bytes


def test_a_part_that_was_received_and_not_applied_is_gone_after_a_restart_and_is_sent_again(
    tmp_path: Path,
) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    parts = model.parts(VDA, [(0, b"a" * 8192), (8192, 512)])
    digests = model.send(journal, parts)
    assert journal.has_file(digests[0], "hrl")
    journal.close()
    with Journal.open(tmp_path / "j", writable=True) as journal:
        assert not journal.has_file(digests[0], "hrl")
        with pytest.raises(NotFoundError):
            journal.apply_initial(model.epoch, VDA, digests)
        journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
        model.seal(journal, {})
        model.check(journal, verify=True)


def test_a_part_that_arrives_when_the_first_point_was_sealed_meanwhile_is_none_of_a_later_point(
    tmp_path: Path,
) -> None:
    """It began as one that only passes, so it was not synced: a point that named it could lose it."""
    model = Model()
    journal = model.create(tmp_path / "j")
    kind, data = "hrl", log_bytes(model.sizes[VDA], [(4096, b"z" * 4096)], unique=99)
    late, digest = [(kind, data)], digest_of(data)
    with journal.receive(digest, kind) as incoming:  # type: ignore[arg-type]
        incoming.write(data)
        model.seal(journal, {})
        incoming.commit()
    assert not journal.has_file(digest, kind)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        journal.seal(model.epoch, model.manifest({VDA: late}).to_bytes())
    model.write(VDA, (4096, b"z" * 4096))
    manifest = model.manifest({VDA: late})
    model.send(journal, late)
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))
    model.check(journal, verify=True)
    assert not (tmp_path / "j" / "parts").exists()


def test_every_file_that_a_later_point_names_was_synced_and_those_that_pass_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    synced: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(os.fstat(fd).st_ino), real(fd))[1])
    passing = model.send(journal, model.parts(VDA, [(0, b"a" * 8192)]))
    assert (tmp_path / "j" / "parts" / f"{passing[0]}.hrl").stat().st_ino not in synced
    journal.apply_initial(model.epoch, VDA, passing)
    assert (tmp_path / "j" / "base" / "vda.raw").stat().st_ino in synced
    model.seal(journal, {})
    kept = model.send(journal, model.parts(VDA, [(0, b"b" * 8192)]))
    assert (tmp_path / "j" / "logs" / f"{kept[0]}.hrl").stat().st_ino in synced


def test_a_part_that_rotted_before_it_was_applied_is_asked_for_again(tmp_path: Path) -> None:
    """The kernel may fail to write what nobody synced, and then shows what is on the disk."""
    model = Model()
    journal = model.create(tmp_path / "j")
    parts = model.parts(VDA, [(0, b"a" * 8192)])
    digests = model.send(journal, parts)
    path = tmp_path / "j" / "parts" / f"{digests[0]}.hrl"
    path.write_bytes(path.read_bytes().replace(b"a" * 512, bytes(512), 1))
    with pytest.raises(CorruptError):
        journal.apply_initial(model.epoch, VDA, digests)
    assert not journal.has_file(digests[0], "hrl")
    journal.apply_initial(model.epoch, VDA, model.send(journal, parts))
    model.seal(journal, {})
    model.check(journal, verify=True)


def test_zeros_may_be_all_that_is_said_of_what_a_disk_gained_before_its_first_point(tmp_path: Path) -> None:
    """The disk grew after its data had arrived. Refused as damaged, such a list stopped the replication for good."""
    model = Model()
    with model.create(tmp_path / "j") as journal:
        model.replicate_initially(journal, {VDA: [(0, b"a" * 4096), (60 << 10, b"z" * 4096)]})
        model.disks[VDA].extend(bytes(40 << 10))
        model.sizes[VDA] += 40 << 10
        model.replicate_initially(
            journal, {VDA: [(64 << 10, 36 << 10)]}
        )  # its last block is not looked at yet
        model.seal(journal, {VDB: [(0, b"b" * 512)]})
        assert journal.disks[VDA] == model.sizes[VDA]
        model.check(journal, verify=True)
        assert list(journal.verify()) == []
