"""The libvirt adapter of the fabric port: KVM and QEMU machines of one host, by system or session libvirtd.

It puts the parts together: connection, inventory, power, replicas. Waits are polled every 0.1 s: libvirt's events
would save nothing that matters here, and a poll cannot miss the one that came before it listened.
Changes through one adapter are serialised per machine; two adapters (two processes) on one host are kept apart by
libvirt alone, so one node per host is the rule.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.fabric.connection import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL_S, Connection
from secondsite.fabric.images import create_overlay
from secondsite.fabric.inventory import Inventory, PowerState, VmInfo
from secondsite.fabric.kept_xml import definition_text
from secondsite.fabric.libvirt_inventory import InventoryReader, inactive_xml
from secondsite.fabric.libvirt_power import Power, Waiting
from secondsite.fabric.libvirt_replica import Replicas
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    Cancelled,
    Fabric,
    NbdBacking,
    Progress,
    ReplicaSpec,
    never_cancelled,
)
from secondsite.fabric.standalone import Standalone
from secondsite.model.manifest import VmDefinition


class LibvirtFabric:
    """`Fabric` on the libvirt at `uri`; nothing is opened before the first call."""

    def __init__(
        self,
        uri: str,
        *,
        waiting: Waiting | None = None,
        keepalive_interval_s: int = KEEPALIVE_INTERVAL_S,
        keepalive_count: int = KEEPALIVE_COUNT,
    ) -> None:
        waiting = Waiting() if waiting is None else waiting
        self._connection = Connection(
            uri, keepalive_interval_s=keepalive_interval_s, keepalive_count=keepalive_count
        )
        self._reader = InventoryReader(self._connection)
        self._power = Power(self._connection, waiting)
        self._replicas = Replicas(self._connection)
        self._standalone = Standalone(self._connection, waiting)
        self._definitions = threading.RLock()
        """Held while a definition is read, changed and written back. Never while something is waited for."""

    # -- what is there -------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        return self._reader.inventory()

    def find(self, vm: str) -> VmInfo:
        return self._reader.find(vm)

    def power(self, vm: str) -> PowerState:
        return self._power.state(vm)

    def definition(self, vm: str) -> VmDefinition:
        with self._connection.domain(vm, "read the definition of") as domain:
            return VmDefinition(LIBVIRT_FORMAT, definition_text(inactive_xml(domain)))

    def list_ours(self) -> Sequence[VmInfo]:
        return [vm for vm in self._reader.inventory().vms if vm.labels is not None]

    def close(self) -> None:
        self._connection.close()

    # -- power ---------------------------------------------------------------------------------------------

    def start(self, vm: str) -> None:
        self._power.start(vm)

    def shutdown(self, vm: str, *, timeout_s: float, cancelled: Cancelled = never_cancelled) -> bool:
        return self._power.shutdown(vm, timeout_s=timeout_s, cancelled=cancelled)

    def power_off(self, vm: str) -> None:
        self._power.power_off(vm)

    def suspend(self, vm: str) -> bool:
        return self._power.suspend(vm)

    def resume(self, vm: str) -> bool:
        return self._power.resume(vm)

    def resume_if_io_error(self, vm: str) -> bool:
        return self._power.resume_if_io_error(vm)

    def autostart(self, vm: str) -> bool:
        return self._power.autostart(vm)

    def set_autostart(self, vm: str, *, on: bool) -> None:
        with self._definitions:
            self._power.set_autostart(vm, on=on)

    def lock_power(self, vm: str, reason: str) -> None:
        with self._definitions:
            self._power.lock(vm, reason)

    def unlock_power(self, vm: str, *, autostart: bool = True) -> None:
        with self._definitions:
            self._power.unlock(vm, autostart=autostart)

    def locked(self, vm: str) -> str | None:
        return self._power.locked(vm)

    # -- replicas ------------------------------------------------------------------------------------------

    def create_overlay(self, path: Path, *, size: int, backing: NbdBacking, bitmap: str) -> None:
        create_overlay(path, size=size, backing=backing, bitmap=bitmap)

    def define_replica(self, spec: ReplicaSpec) -> VmInfo:
        with self._definitions:
            return self._reader.find(self._replicas.define(spec))

    def make_standalone(
        self, vm: str, *, progress: Progress | None = None, cancelled: Cancelled = never_cancelled
    ) -> None:
        self._standalone.make(vm, progress=progress, cancelled=cancelled)

    def standalone(self, vm: str) -> bool:
        return self._standalone.check(vm)

    def undefine(self, vm: str, *, keep_disks: bool) -> None:
        with self._definitions:
            self._replicas.undefine(vm, keep_disks=keep_disks)

    def delete_disks(self, paths: Sequence[Path]) -> None:
        self._replicas.delete_disks(paths)


if TYPE_CHECKING:
    _FITS: type[Fabric] = LibvirtFabric
