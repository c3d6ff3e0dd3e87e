"""What the fake has beside the port: a test's hold on the outside world."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.errors import NotFoundError, UnavailableError
from secondsite.fabric.fake import FakeFabric, FakeImage
from secondsite.fabric.port import DiskSource, Labels, NbdBacking, PowerState, ReplicaRole, ReplicaSpec
from secondsite.model.ids import DiskKey, Epoch, ItemId

VDA = DiskKey("vda")
LABELS = Labels(ItemId("11111111-2222-3333-4444-555555555555"), Epoch(2), ReplicaRole.REPLICA)
MIB = 1 << 20


@pytest.fixture
def fabric() -> FakeFabric:
    return FakeFabric()


def replica(fabric: FakeFabric, folder: Path) -> tuple[str, NbdBacking]:
    """Define a replica of a machine of another fake, and start it."""
    elsewhere = FakeFabric()
    elsewhere.add_vm("web01", {VDA: (folder / "elsewhere.qcow2", MIB)}, networks=["servers"])
    backing = NbdBacking(folder / "view.sock", "vda")
    source = DiskSource(folder / "overlay.qcow2", backing)
    fabric.create_overlay(source.overlay, size=MIB, backing=backing, bitmap="start")
    spec = ReplicaSpec("web01", elsewhere.definition("web01"), {VDA: source}, {}, LABELS)
    uuid = fabric.define_replica(spec).uuid
    fabric.start(uuid)
    return uuid, backing


def test_a_machine_pauses_while_its_view_is_away(fabric: FakeFabric, tmp_path: Path) -> None:
    uuid, backing = replica(fabric, tmp_path)
    fabric.unserve(backing.socket)
    assert (fabric.power(uuid), fabric.find(uuid).io_error) == (PowerState.PAUSED, True)
    assert fabric.resume_if_io_error(uuid) is False
    with pytest.raises(UnavailableError):
        fabric.make_standalone(uuid)
    fabric.serve(backing.socket)
    assert fabric.resume_if_io_error(uuid) is True
    assert fabric.power(uuid) is PowerState.RUNNING
    assert fabric.resume_if_io_error(uuid) is False


def test_neither_overlay_nor_start_without_a_view(fabric: FakeFabric, tmp_path: Path) -> None:
    uuid, backing = replica(fabric, tmp_path)
    fabric.power_off(uuid)
    fabric.unserve(backing.socket)
    with pytest.raises(UnavailableError):
        fabric.start(uuid)
    with pytest.raises(UnavailableError):
        fabric.create_overlay(tmp_path / "other.qcow2", size=MIB, backing=backing, bitmap="b")


def test_a_failure_is_raised_once_before_anything_happens(fabric: FakeFabric, tmp_path: Path) -> None:
    vm = fabric.add_vm("web01", {VDA: (tmp_path / "a.qcow2", MIB)}, power=PowerState.OFF)
    fabric.fail("start", UnavailableError("the host burns"))
    with pytest.raises(UnavailableError, match="burns"):
        fabric.start(vm.uuid)
    assert fabric.power(vm.uuid) is PowerState.OFF
    assert fabric.calls == []
    fabric.start(vm.uuid)
    assert fabric.calls == [("start", vm.uuid)]


def test_a_guest_obeys_its_power_button_unless_it_is_deaf(fabric: FakeFabric, tmp_path: Path) -> None:
    vm = fabric.add_vm("web01", {VDA: (tmp_path / "a.qcow2", MIB)})
    fabric.deaf.add("web01")
    assert fabric.shutdown(vm.uuid, timeout_s=60) is False
    fabric.deaf.clear()
    assert fabric.shutdown(vm.uuid, timeout_s=60) is True
    assert fabric.power(vm.uuid) is PowerState.OFF


def test_images_are_files_that_others_can_look_for(fabric: FakeFabric, tmp_path: Path) -> None:
    path = tmp_path / "images" / "a.qcow2"
    fabric.add_vm("web01", {VDA: (path, MIB)}, power=PowerState.OFF)
    assert FakeImage.read(path) == FakeImage(MIB)
    fabric.delete_disks([path])
    with pytest.raises(NotFoundError):
        FakeImage.read(path)
