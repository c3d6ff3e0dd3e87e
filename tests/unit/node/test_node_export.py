"""An export is one instant of a machine's disks, whole or not there; what a killed one leaves is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from secondsite.capture.fake import FakeCapture
from secondsite.capture.port import Snapshot
from secondsite.errors import ConflictError, InvalidInputError, SecondSiteError, UnavailableError
from secondsite.fabric.fake import FakeFabric
from secondsite.fabric.port import VmInfo
from secondsite.model.ids import DiskKey, Epoch, ItemId
from secondsite.model.policy import Policy
from secondsite.model.units import KIB, MIB
from secondsite.node.config import Folders
from secondsite.node.medium import ContentDigest, load_export
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.cut_exports import CutExports
from secondsite.node.source.export import Exporting, lock_of, scratch_of
from secondsite.node.target.seeding import images_in
from support.journals import ITEM, KEY, VDA, VDB
from support.power import unsynced
from support.seeds import CONTENT, SIZES


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


class Exporter:
    """A machine in memory with CONTENT on its disks, and the exports of it. `during` is called when bytes were read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = Folders(root / "state", root / "storage")
        self.folders.state.mkdir()
        self.folders.storage.mkdir()
        self.folders.make()
        self.items = ItemStore(self.folders.items)
        self.fabric = FakeFabric()
        disks = {disk: (root / f"{disk}.qcow2", size) for disk, size in SIZES.items()}
        self.vm: VmInfo = self.fabric.add_vm("web", disks)
        self.capture = FakeCapture(SIZES)
        for disk, content in CONTENT.items():
            self.capture.write(disk, 0, content)
        self.during: Callable[[], object] = lambda: None
        self.exclude: frozenset[str] = frozenset()

    def exporting(self) -> Exporting:
        def capture(disks: tuple[DiskKey, ...]) -> FakeCapture:
            self.capture.disks = {key: disk for key, disk in self.capture.disks.items() if key in disks}
            return self.capture

        return Exporting(self.vm, lambda: self.items, capture, self.exclude)

    def run(self, output: Path) -> Any:
        def tell(done: int, total: int) -> None:
            assert 0 < done <= total
            self.during()

        exporting = self.exporting()
        exporting.require_free()
        return exporting.run(output, tell)

    def protect(self, role: Role = Role.SOURCE) -> None:
        self.items.put(
            ItemRecord(ITEM, "web", Epoch(1), role, KEY.hex(), Policy(), (VDA, VDB), vm=self.vm.uuid)
        )


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    return Exporter(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files_are_the_disks_and_say_so(exporter: Exporter, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    export = exporter.run(medium)
    assert names(medium) == ["export.json", "vda.raw", "vdb.raw"]
    assert {disk: (medium / f"{disk}.raw").read_bytes() for disk in CONTENT} == CONTENT
    assert load_export(medium) == export
    assert (export.name, export.vm) == ("web", exporter.vm.uuid)
    for disk, content in CONTENT.items():
        assert (export.disks[disk].size, export.disks[disk].blake3) == (
            len(content),
            blake3(content).hexdigest(),
        )
    assert (medium / "vda.raw").stat().st_mode & 0o077 == 0
    assert set(images_in(medium, SIZES)) == {VDA, VDB}, "it is a seed"


def test_all_files_are_of_one_instant_while_the_machine_writes(exporter: Exporter, tmp_path: Path) -> None:
    def write() -> None:
        for disk in SIZES:
            exporter.capture.write(disk, 0, b"later" * 1000)

    exporter.during = write
    exporter.run(tmp_path / "medium")
    assert {disk: (tmp_path / "medium" / f"{disk}.raw").read_bytes() for disk in CONTENT} == CONTENT


def test_nothing_is_left_on_the_machine(exporter: Exporter, tmp_path: Path) -> None:
    exporter.run(tmp_path / "medium")
    assert exporter.capture.checkpoints == set()
    assert exporter.capture.open_snapshots == 0


def test_zeros_take_no_space_on_the_medium(exporter: Exporter, tmp_path: Path) -> None:
    exporter.run(tmp_path / "medium")
    blocks = np.frombuffer(CONTENT[VDA], np.uint8).reshape(-1, 4096).any(axis=1)
    assert (tmp_path / "medium" / "vda.raw").stat().st_blocks * 512 <= blocks.sum() * 4096 + 4096


def test_disks_can_be_left_out(exporter: Exporter, tmp_path: Path) -> None:
    exporter.exclude = frozenset({"vda"})
    exporter.run(tmp_path / "medium")
    assert names(tmp_path / "medium") == ["export.json", "vdb.raw"]


@pytest.mark.parametrize(
    ("exclude", "said"), [({"vdx"}, "web has no disk vdx"), ({"vda", "vdb"}, "no disk would be left")]
)
def test_what_cannot_be_left_out_is_told_before_anything_is_done(
    exporter: Exporter, tmp_path: Path, exclude: set[str], said: str
) -> None:
    exporter.exclude = frozenset(exclude)
    with pytest.raises(InvalidInputError, match=said):
        exporter.run(tmp_path / "medium")
    assert not (tmp_path / "medium").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_in_the_middle_leaves_nothing(exporter: Exporter, tmp_path: Path, there: bool) -> None:
    medium = tmp_path / "medium"
    if there:
        medium.mkdir()

    def fail() -> None:
        raise UnavailableError("the medium was pulled out")

    exporter.during = fail
    with pytest.raises(UnavailableError, match="pulled out"):
        exporter.run(medium)
    assert medium.exists() is there
    assert not there or names(medium) == []
    assert exporter.capture.checkpoints == set()
    assert exporter.capture.open_snapshots == 0
    exporter.during = lambda: None
    exporter.run(medium)
    assert load_export(medium) is not None


def test_a_folder_with_something_in_it_is_left_alone(exporter: Exporter, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    (medium / "vda.raw").write_bytes(b"of somebody")
    with pytest.raises(ConflictError, match="is not empty"):
        exporter.run(medium)
    assert (medium / "vda.raw").read_bytes() == b"of somebody"


def test_a_medium_that_is_not_mounted_is_named(exporter: Exporter, tmp_path: Path) -> None:
    with pytest.raises(SecondSiteError, match="there is no folder") as caught:
        exporter.run(tmp_path / "nowhere" / "web")
    assert caught.value.hint == "is the medium mounted?"


@pytest.mark.parametrize("role", [Role.SOURCE, Role.PREPARED, Role.STANDBY])
def test_a_protected_machine_is_not_exported(exporter: Exporter, tmp_path: Path, role: Role) -> None:
    exporter.protect(role)
    exporter.capture.snapshot(since=None, new="ss-base")
    with pytest.raises(SecondSiteError, match="web is protected by this node already"):
        exporter.run(tmp_path / "medium")
    assert exporter.capture.checkpoints == {"ss-base"}, "what its cycles count from"


def test_a_damaged_record_forbids_an_export(exporter: Exporter, tmp_path: Path) -> None:
    exporter.protect()
    (exporter.items.folder(ITEM) / "record.json").write_text("{")
    exporter.items = ItemStore(exporter.folders.items)
    with pytest.raises(SecondSiteError, match="does not parse"):
        exporter.run(tmp_path / "medium")


def test_a_machine_that_is_protected_meanwhile_keeps_what_its_cycles_count_from(
    exporter: Exporter, tmp_path: Path
) -> None:
    exporter.during = exporter.protect
    exporter.run(tmp_path / "medium")
    assert len(exporter.capture.checkpoints) == 1


# -- what a killed one leaves --------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """A capture whose process is killed: nothing is cleaned up after that."""

    def __init__(self, capture: FakeCapture) -> None:
        self._capture = capture

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        self._capture.snapshot(since=since, new=new)
        raise Killed

    def forget(self, keep: Collection[str]) -> None:
        raise Killed

    def tidy(self) -> None:
        self._capture.tidy()


def cut(exporter: Exporter, tmp_path: Path) -> Path:
    """Kill an export; return its scratch folder."""
    scratch = scratch_of(exporter.folders, exporter.vm.uuid)
    scratch.mkdir()
    dying = Exporting(exporter.vm, lambda: exporter.items, lambda _disks: Dying(exporter.capture))
    with pytest.raises(Killed):
        dying.run(tmp_path / "medium", lambda _done, _total: None)
    assert exporter.capture.open_snapshots == 1
    assert len(exporter.capture.checkpoints) == 1
    return scratch


def sweeper(exporter: Exporter) -> CutExports:
    return CutExports(
        exporter.items, exporter.fabric, exporter.folders, lambda _vm, _disks, _scratch: exporter.capture
    )


def test_the_daemon_ends_what_a_killed_export_left(exporter: Exporter, tmp_path: Path) -> None:
    scratch = cut(exporter, tmp_path)
    exporter.capture.reachable = False
    sweeper(exporter).look()
    assert scratch.exists(), "it cannot be ended now: tried again"
    exporter.capture.reachable = True
    sweeper(exporter).look()
    assert exporter.capture.open_snapshots == 0
    assert exporter.capture.checkpoints == set()
    assert not scratch.exists()


def test_a_daemon_that_starts_looks_at_once(exporter: Exporter, tmp_path: Path) -> None:
    scratch = cut(exporter, tmp_path)
    ended = threading.Event()
    daemon = CutExports(
        exporter.items,
        exporter.fabric,
        exporter.folders,
        lambda _vm, _disks, _scratch: _Telling(exporter.capture, ended),
    )
    daemon.start()
    assert ended.wait(20)
    daemon.close()
    assert not scratch.exists()


def test_an_export_that_runs_is_left_alone(exporter: Exporter, tmp_path: Path) -> None:
    scratch = cut(exporter, tmp_path)
    with lock_of(exporter.folders, scratch):
        sweeper(exporter).look()
        assert exporter.capture.open_snapshots == 1
        assert scratch.exists()


def test_the_scratch_of_a_machine_that_is_gone_goes(exporter: Exporter, tmp_path: Path) -> None:
    scratch = cut(exporter, tmp_path)
    exporter.fabric.power_off(exporter.vm.uuid)
    exporter.fabric.undefine(exporter.vm.uuid, keep_disks=True)
    sweeper(exporter).look()
    assert not scratch.exists()


def test_the_scratch_of_items_is_not_touched(exporter: Exporter, tmp_path: Path) -> None:
    other = exporter.folders.scratch / ItemId("0b6c7e9a0000400080").replace("-", "")[:16]
    other.mkdir()
    sweeper(exporter).look()
    assert other.exists()


def test_the_next_export_ends_what_a_killed_one_left(exporter: Exporter, tmp_path: Path) -> None:
    cut(exporter, tmp_path)
    exporter.run(tmp_path / "again")
    assert exporter.capture.open_snapshots == 0
    assert exporter.capture.checkpoints == set()


class _Telling:
    def __init__(self, capture: FakeCapture, ended: threading.Event) -> None:
        self._capture, self._ended = capture, ended

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        raise AssertionError

    def tidy(self) -> None:
        self._capture.tidy()

    def forget(self, keep: Collection[str]) -> None:
        self._capture.forget(keep)
        self._ended.set()


# -- the digest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [[], [(0, 4096)], [(4096, 8192), (40 * KIB, 512)], [(16 * MIB + 5, 3)]])
def test_the_digest_is_of_all_bytes_holes_included(runs: list[tuple[int, int]]) -> None:
    size = 17 * MIB
    whole = bytearray(size)
    digest = ContentDigest()
    for offset, length in runs:
        data = bytes([offset % 255 + 1]) * length
        whole[offset : offset + length] = data
        digest.add(offset, memoryview(data))
    assert digest.finish(size) == blake3(whole).hexdigest()


def test_data_out_of_order_has_no_digest() -> None:
    digest = ContentDigest()
    digest.add(4096, memoryview(bytes(4096)))
    with pytest.raises(ValueError, match="ascending"):
        digest.add(0, memoryview(bytes(4096)))
