"""A bit flips in any file of a journal: the scrub names it, and no damaged byte is extracted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import CorruptError
from secondsite.journal import Finding, Journal, verify_folder
from secondsite.journal.extract import extract_disk
from secondsite.model.ids import Sequence
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model, filled
from support.power import unsynced

pytestmark = pytest.mark.fault

SAMPLES = 12
NOT_COVERED = {"pins", "incoming", "lock"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Path]]:
    """A journal with all kinds of files: folded once, thinned once, with data, zeros and parts of blocks."""
    path = tmp_path_factory.mktemp("sound") / "j"
    with unsynced():
        model, journal = filled(path, points=9)
        journal.thin([Sequence(5), Sequence(6)])
        journal.maintain(Policy(retention_points=5), START + timedelta(minutes=9))
        journal.close()
        assert [point.sequence for point in journal.points()] == [3, 4, 7, 8, 9]
        yield model, path


@contextmanager
def flipped(path: Path, position: int, bit: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(position)
            (value,) = file.read(1)
            file.seek(position)
            file.write(bytes([value ^ (1 << bit)]))

    flip()
    try:
        yield
    finally:
        flip()


def covered(root: Path) -> list[Path]:
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in NOT_COVERED
    ]


def positions(path: Path, seed: int) -> list[tuple[int, int]]:
    size = path.stat().st_size
    chooser = random.Random(seed)
    chosen = {0, size - 1, *(chooser.randrange(size) for _ in range(SAMPLES))}
    if path.suffix == ".tbl":  # the cells are few
        chosen |= {4096 + chooser.randrange(size - 4096) for _ in range(SAMPLES)}
    return [(position, chooser.randrange(8)) for position in sorted(chosen)]


def kind_of(path: Path, root: Path) -> str:
    return path.suffix if len(path.relative_to(root).parts) > 1 else path.name


def test_a_sound_journal_has_no_finding(sound: tuple[Model, Path]) -> None:
    model, path = sound
    calls: list[tuple[int, int]] = []
    assert list(verify_folder(path, progress=lambda done, total: calls.append((done, total)))) == []
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1]
    kinds = {kind_of(file, path) for file in covered(path)}
    assert kinds == {"journal.json", "epoch.json", "base.json", ".raw", ".tbl", ".hrl", ".zeros", ".point"}
    with Journal.open(path, writable=False) as journal:
        model.check(journal, verify=True)


def test_every_flipped_bit_is_found_and_named(sound: tuple[Model, Path]) -> None:
    _, root = sound
    for seed, path in enumerate(covered(root)):
        for position, bit in positions(path, seed):
            with flipped(path, position, bit):
                findings = list(verify_folder(root))
            where = f"{path.relative_to(root)} byte {position} bit {bit}: {findings}"
            assert findings, where
            assert any(_names(finding, path, root, position) for finding in findings), where


def _names(finding: Finding, path: Path, root: Path, position: int) -> bool:
    if path.suffix == ".point":
        return finding.point == int(path.stem)
    if path.suffix in {".hrl", ".zeros"}:
        return path.name in finding.what and finding.point is not None and finding.disk is not None
    if path.suffix == ".raw":
        return (finding.disk, finding.offset) == (path.stem, position // 4096 * 4096)
    if path.suffix == ".tbl" and position >= 4096:
        return (finding.disk, finding.offset) == (path.stem, (position - 4096) // 8 * 4096)
    return path.name in finding.what


def test_data_in_a_log_are_named_by_their_offset_on_the_disk(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=3)
    ref = journal.manifest(Sequence(3)).disks[VDA].logs[0]
    path = tmp_path / "j" / "logs" / f"{ref.digest}.hrl"
    at = path.read_bytes().index(bytes([67]) * 4096)
    with flipped(path, at + 100, 3):
        (finding,) = journal.verify()
    assert (finding.point, finding.disk, finding.offset) == (3, VDA, 3 * 4096)
    assert model.sequence == 3


def test_no_damaged_byte_is_extracted(sound: tuple[Model, Path], tmp_path: Path) -> None:
    model, root = sound
    refused = 0
    for seed, path in enumerate(covered(root)):
        for position, bit in positions(path, seed)[::3]:
            with flipped(path, position, bit):
                for sequence in (3, 7, 9):
                    for disk in (VDA, VDB):
                        output = tmp_path / "out"
                        try:
                            with (
                                Journal.open(root, writable=False) as journal,
                                journal.view(Sequence(sequence), purpose="test", verify=True) as view,
                            ):
                                extract_disk(view, disk, output)
                            assert output.read_bytes() == model.contents[sequence][disk], (path, position)
                            output.unlink()
                        except CorruptError:
                            refused += 1
                        assert list(tmp_path.iterdir()) == []
    assert refused > 100


def test_a_hole_where_data_should_be_is_found_and_not_extracted(
    sound: tuple[Model, Path], tmp_path: Path
) -> None:
    _, root = sound
    path = root / "base" / "vda.raw"
    data = path.read_bytes()
    try:
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(len(data))
        findings = list(verify_folder(root))
        assert findings
        assert {finding.disk for finding in findings} == {VDA}
        assert all("zeros where" in finding.what for finding in findings)
        with (
            Journal.open(root, writable=False) as journal,
            journal.view(Sequence(3), purpose="test", verify=True) as view,
            pytest.raises(CorruptError) as caught,
        ):
            extract_disk(view, VDA, tmp_path / "out")
        assert caught.value.attributes["disk"] == VDA
        assert caught.value.attributes["point"] == 3
        assert list(tmp_path.iterdir()) == []
    finally:
        path.write_bytes(data)


def test_points_before_a_damaged_manifest_can_still_be_read(sound: tuple[Model, Path]) -> None:
    model, root = sound
    damaged = root / "points" / "0000000000000008.point"
    with flipped(damaged, 200, 1), Journal.open(root, writable=True) as journal:
        status = journal.status()
        assert status.damage is not None
        assert status.damage["attributes"]["point"] == 8
        assert [point.sequence for point in journal.points()] == [3, 4, 7]
        model.check(journal, verify=True)
        for sequence in (None, Sequence(8), Sequence(9)):
            with pytest.raises(CorruptError):
                journal.view(sequence, purpose="test")
        with pytest.raises(CorruptError):
            journal.seal(model.epoch, model.manifest({}).to_bytes())
        before = sorted(path.name for path in (root / "logs").iterdir())
        journal.maintain(Policy(retention_points=100), START + timedelta(minutes=9))
        assert sorted(path.name for path in (root / "logs").iterdir()) == before
    with Journal.open(root, writable=False) as journal:
        model.check(journal)


@pytest.mark.parametrize("name", ["0000000000000004.point", "0000000000000003.point"])
def test_a_missing_point_is_named(sound: tuple[Model, Path], name: str) -> None:
    _, root = sound
    path = root / "points" / name
    data = path.read_bytes()
    path.unlink()
    try:
        assert any("missing" in finding.what for finding in verify_folder(root))
    finally:
        path.write_bytes(data)


def test_a_missing_log_is_named(sound: tuple[Model, Path]) -> None:
    _, root = sound
    with Journal.open(root, writable=False) as journal:
        ref = journal.manifest(Sequence(8)).disks[VDB].logs[0]
    path = root / "logs" / f"{ref.digest}.hrl"
    data = path.read_bytes()
    path.unlink()
    try:
        (finding,) = verify_folder(root)
        assert (finding.point, finding.disk) == (8, VDB)
        assert "missing" in finding.what
    finally:
        path.write_bytes(data)


def test_a_base_before_its_first_point_is_covered(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 4096)]})
    journal.close()
    assert list(verify_folder(tmp_path / "j")) == []
    with flipped(tmp_path / "j" / "base" / "vda.raw", 17, 0):
        (finding,) = verify_folder(tmp_path / "j")
    assert (finding.disk, finding.offset) == (VDA, 0)


def test_a_scrub_beside_a_writer_of_an_initial_replication_accuses_nobody(tmp_path: Path) -> None:
    model = Model()
    journal = model.create(tmp_path / "j")
    model.replicate_initially(journal, {VDA: [(0, b"a" * 4096)]})
    with (tmp_path / "j" / "base" / "vda.raw").open("r+b") as file:
        file.write(b"being written")
    assert list(verify_folder(tmp_path / "j")) == []
