"""The gate and a real service: it confirms who may run a machine after a boot, and tells who was superseded."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError
from secondsite.fabric.fake import FakeFabric
from secondsite.fabric.port import PowerState
from secondsite.model.ids import DiskKey, Epoch, ItemId, NodeId
from secondsite.model.policy import Policy
from secondsite.node.records import Held, ItemRecord, ItemStore, Peer, Role
from secondsite.node.source.gate import Gate
from secondsite.node.source.standing import AskedStanding
from support.role_world import Replicating
from support.service_node import FakeNode, two_sites

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


class BootedHost:
    """A node's gate after its host's boot: its machine is off, its target does not answer."""

    def __init__(self, folder: Path, item: ItemId, node: FakeNode) -> None:
        self.fabric = FakeFabric()
        disks = {DiskKey("vda"): (folder / "vda.qcow2", 1 << 20)}
        self.vm = self.fabric.add_vm("web-1", disks, power=PowerState.OFF).uuid
        self.items = ItemStore(folder / "items")
        self.items.put(
            ItemRecord(
                item,
                "web-1",
                Epoch(1),
                Role.SOURCE,
                bytes(32).hex(),
                Policy(),
                tuple(disks),
                vm=self.vm,
                peer=Peer(NodeId("gone"), "127.0.0.1", 9),
                runs=True,
                autostart=True,
                held=Held("the host has booted"),
            )
        )

        def nobody(_record: ItemRecord, _closing: threading.Event) -> None:
            raise AssertionError

        self.item = item
        standing = AskedStanding(nobody, node.client, threading.Event())  # type: ignore[arg-type]
        standing.target = self._silent  # type: ignore[method-assign]
        replicators = Replicating(self.items)
        self.gate = Gate(self.items, replicators, self.fabric, folder, standing, node.id)  # type: ignore[arg-type]

    def _silent(self, record: ItemRecord) -> Epoch:
        raise UnavailableError("no route to host")

    def ask(self) -> tuple[Role, bool, PowerState]:
        self.gate.ask()
        record = self.items.get(self.item)
        return record.role, record.held is not None, self.fabric.power(self.vm)


def test_the_service_confirms_the_side_that_may_write_and_no_other(tmp_path: Path) -> None:
    with two_sites(tmp_path / "sites") as sites:
        sites.protect()
        item = ItemId(sites.item()["id"])
        for node, expected in (
            (sites.b, (Role.SOURCE, True, PowerState.OFF)),
            (sites.a, (Role.SOURCE, False, PowerState.RUNNING)),
        ):
            folder = tmp_path / node.name
            folder.mkdir()
            assert BootedHost(folder, item, node).ask() == expected
        sites.succeed("planned-failover")
        (tmp_path / "again").mkdir()
        superseded = BootedHost(tmp_path / "again", item, sites.a)
        assert superseded.ask() == (Role.STANDBY, False, PowerState.OFF)
        assert superseded.items.get(item).epoch == 2
        sites.service.kill()
        (tmp_path / "alone").mkdir()
        assert BootedHost(tmp_path / "alone", item, sites.a).ask() == (Role.SOURCE, True, PowerState.OFF)
