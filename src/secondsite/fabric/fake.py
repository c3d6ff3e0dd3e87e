"""A fabric in memory, for the tests of everything above it. It honours the port's contract: the suite in
tests/contract runs on it and on libvirt.

It keeps real definitions (libvirt domain XML, by the same code as the adapter) and stands in for the hypervisor
alone: machines do not execute, a guest obeys its power button at once unless told otherwise, and an image is a small
JSON file under its true path, so that who looks for a file, or deletes it, meets one.

Beside the port it has what a test needs to play the outside world: `add_vm`, `add_network`, `serve` and `unserve` a
view, `deaf` guests, and `fail` to make the next call of a method raise.
"""

from __future__ import annotations

import json
import threading
import uuid as uuids
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.errors import (
    ConflictError,
    NotFoundError,
    OperationRefusedError,
    SecondSiteError,
    UnavailableError,
)
from secondsite.fabric.disk_xml import has_backing, read_disk
from secondsite.fabric.domain_xml import (
    definition_root,
    disk_elements,
    machine_problems,
    parse_domain,
    read_kept,
    read_labels,
    read_nics,
    to_text,
)
from secondsite.fabric.inventory import (
    DiskInfo,
    HostInfo,
    Inventory,
    NetworkInfo,
    PowerState,
    Problem,
    ProblemCode,
    VmInfo,
)
from secondsite.fabric.kept_xml import (
    definition_text,
    displaced_by,
    displacing_xml,
    locked_xmls,
    standalone_xml,
    unlocked_xml,
)
from secondsite.fabric.port import (
    LIBVIRT_FORMAT,
    Cancelled,
    CancelledError,
    Fabric,
    NbdBacking,
    Progress,
    ReplicaSpec,
    never_cancelled,
)
from secondsite.fabric.replica_rules import Existing, check_networks, may_keep_mac, place
from secondsite.fabric.replica_xml import TargetHost, replica_xml
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition


@dataclass
class FakeImage:
    """What the file of a fake image holds."""

    size: int
    backing: dict[str, str] | None = None
    bitmaps: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> FakeImage:
        """Read an image's file; raise NotFoundError."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise NotFoundError(f"no image {path}", path=str(path)) from None

    def write(self, path: Path) -> None:
        """Write it, making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))


@dataclass
class _Machine:
    uuid: str
    name: str
    text: str
    power: PowerState = PowerState.OFF
    io_error: bool = False
    autostart: bool = False


class FakeFabric:
    """`Fabric` in memory. Thread-safe. See the module's docstring."""

    def __init__(self, name: str = "fake-host") -> None:
        self.host = HostInfo(name=name, hypervisor="fake", version="1.0.0", cpus=4, memory=8 << 30)
        self.deaf: set[str] = set()
        """Names of machines whose guests do not hear the power button."""
        self.calls: list[tuple[str, str]] = []
        """Every call of the port that changes something: method and machine or path."""
        self._lock = threading.RLock()
        self._machines: dict[str, _Machine] = {}
        self._networks: dict[str, NetworkInfo] = {}
        self._unserved: set[Path] = set()
        self._failures: defaultdict[str, list[SecondSiteError]] = defaultdict(list)

    # -- the outside world ---------------------------------------------------------------------------------

    def add_network(self, name: str, *, isolated: bool = True, active: bool = True) -> None:
        """Define a network."""
        self._networks[name] = NetworkInfo(name, isolated, active)

    def add_vm(
        self,
        name: str,
        disks: Mapping[DiskKey, tuple[Path, int]],
        *,
        networks: Sequence[str] = (),
        power: PowerState = PowerState.RUNNING,
        autostart: bool = False,
    ) -> VmInfo:
        """Define a machine with qcow2 disks (path and size in bytes by key), and make their images."""
        uuid = str(uuids.uuid4())
        for path, size in disks.values():
            FakeImage(size).write(path)
        return self.add_xml(_domain(name, uuid, disks, networks), power=power, autostart=autostart)

    def add_xml(self, text: str, *, power: PowerState = PowerState.OFF, autostart: bool = False) -> VmInfo:
        """Define a machine by its XML; images are the caller's."""
        root = parse_domain(text)
        uuid, name = root.findtext("uuid") or str(uuids.uuid4()), root.findtext("name", "")
        with self._lock:
            self._machines[uuid] = _Machine(uuid, name, text, power=power, autostart=autostart)
        return self.find(uuid)

    def unserve(self, socket: Path) -> None:
        """End the view behind `socket`: machines on it pause with an I/O error, pulls from it fail."""
        with self._lock:
            self._unserved.add(socket)
            for machine in self._machines.values():
                if machine.power is PowerState.RUNNING and not self._views_served(machine):
                    machine.power, machine.io_error = PowerState.PAUSED, True

    def serve(self, socket: Path) -> None:
        """Serve it again (every view is served unless it was ended)."""
        with self._lock:
            self._unserved.discard(socket)

    def fail(self, method: str, error: SecondSiteError) -> None:
        """Let the next call of the port's `method` raise `error` before it does anything."""
        self._failures[method].append(error)

    # -- what is there -------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """See `Fabric.inventory`."""
        with self._call("inventory"):
            vms = [self._describe(machine) for machine in self._machines.values()]
            networks = sorted(self._networks.values(), key=lambda network: network.name)
            return Inventory(
                self.host, tuple(sorted(vms, key=lambda vm: (vm.name, vm.uuid))), tuple(networks)
            )

    def find(self, vm: str) -> VmInfo:
        """See `Fabric.find`."""
        with self._call("find"):
            return self._describe(self._get(vm))

    def power(self, vm: str) -> PowerState:
        """See `Fabric.power`."""
        with self._call("power"):
            return self._get(vm).power

    def definition(self, vm: str) -> VmDefinition:
        """See `Fabric.definition`."""
        with self._call("definition"):
            return VmDefinition(LIBVIRT_FORMAT, definition_text(self._get(vm).text))

    def list_ours(self) -> Sequence[VmInfo]:
        """See `Fabric.list_ours`."""
        with self._call("list_ours"):
            return [
                vm
                for machine in self._machines.values()
                if (vm := self._describe(machine)).labels is not None
            ]

    def close(self) -> None:
        """See `Fabric.close`."""

    # -- power ---------------------------------------------------------------------------------------------

    def start(self, vm: str) -> None:
        """See `Fabric.start`."""
        with self._call("start", vm):
            machine = self._get(vm)
            reason = self._lock_reason(machine)
            if machine.power is PowerState.OFF:
                if reason is not None:
                    raise OperationRefusedError(
                        f"{vm} is locked: {reason}", hint="start the active side", vm=vm
                    )
                for disk in self._disks(machine):
                    if disk.path is not None:
                        FakeImage.read(disk.path)
                if not self._views_served(machine):
                    raise UnavailableError(f"start {vm}: a view is not served")
            machine.power, machine.io_error = PowerState.RUNNING, False

    def shutdown(self, vm: str, *, timeout_s: float, cancelled: Cancelled = never_cancelled) -> bool:
        """See `Fabric.shutdown`. No time passes: a deaf guest's time is out at once."""
        with self._call("shutdown", vm):
            machine = self._get(vm)
            if machine.power is PowerState.OFF:
                return True
            if cancelled():
                raise CancelledError("the wait was cancelled")
            if machine.name in self.deaf or timeout_s <= 0:
                return False
            machine.power, machine.io_error = PowerState.OFF, False
            return True

    def power_off(self, vm: str) -> None:
        """See `Fabric.power_off`."""
        with self._call("power_off", vm):
            machine = self._get(vm)
            machine.power, machine.io_error = PowerState.OFF, False

    def suspend(self, vm: str) -> bool:
        """See `Fabric.suspend`."""
        with self._call("suspend", vm):
            machine = self._get(vm)
            if machine.power is not PowerState.RUNNING:
                return False
            machine.power = PowerState.PAUSED
            return True

    def resume(self, vm: str) -> bool:
        """See `Fabric.resume`."""
        with self._call("resume", vm):
            machine = self._get(vm)
            if machine.power is PowerState.PAUSED:
                machine.power, machine.io_error = PowerState.RUNNING, False
            return machine.power is PowerState.RUNNING

    def resume_if_io_error(self, vm: str) -> bool:
        """See `Fabric.resume_if_io_error`."""
        with self._call("resume_if_io_error", vm):
            machine = self._get(vm)
            if not machine.io_error or not self._views_served(machine):
                return False
            machine.power, machine.io_error = PowerState.RUNNING, False
            return True

    def autostart(self, vm: str) -> bool:
        """See `Fabric.autostart`."""
        with self._call("autostart"):
            return self._get(vm).autostart

    def set_autostart(self, vm: str, *, on: bool) -> None:
        """See `Fabric.set_autostart`."""
        with self._call("set_autostart", vm):
            self._get(vm).autostart = on

    def lock_power(self, vm: str, reason: str) -> None:
        """See `Fabric.lock_power`."""
        with self._call("lock_power", vm):
            machine = self._get(vm)
            reason = " ".join(reason.split()) or "locked"
            machine.text = next(iter(locked_xmls(machine.text, reason=reason, autostart=machine.autostart)))
            machine.autostart = False

    def unlock_power(self, vm: str, *, autostart: bool = True) -> None:
        """See `Fabric.unlock_power`."""
        with self._call("unlock_power", vm):
            machine = self._get(vm)
            kept = unlocked_xml(machine.text)
            if kept is not None:
                machine.text, machine.autostart = kept.text, kept.autostart and autostart

    def locked(self, vm: str) -> str | None:
        """See `Fabric.locked`."""
        with self._call("locked"):
            return self._lock_reason(self._get(vm))

    # -- replicas ------------------------------------------------------------------------------------------

    def create_overlay(self, path: Path, *, size: int, backing: NbdBacking, bitmap: str) -> None:
        """See `Fabric.create_overlay`."""
        with self._call("create_overlay", str(path)):
            if backing.socket in self._unserved:
                raise UnavailableError(f"the view {backing.socket} is not served")
            wanted = FakeImage(size, {"socket": str(backing.socket), "export": backing.export}, [bitmap])
            if path.exists() and FakeImage.read(path) != wanted:
                raise ConflictError(f"{path} exists and is another image")
            wanted.write(path)

    def define_replica(self, spec: ReplicaSpec) -> VmInfo:
        """See `Fabric.define_replica`."""
        with self._call("define_replica", spec.name):
            for source in spec.disks.values():
                FakeImage.read(source.overlay)
            source_uuid = definition_root(spec.definition).findtext("uuid", "")
            by_name = next((one for one in self._machines.values() if one.name == spec.name), None)
            replaced, displaced = place(spec, _existing(by_name), _existing(self._machines.get(source_uuid)))
            networks = list(self._networks.values())
            check_networks(spec, networks)
            root = replica_xml(
                spec,
                TargetHost({("x86_64", "qemu"): (), ("x86_64", "kvm"): ()}),
                exists=lambda path: Path(path).exists(),
                uuid=replaced.uuid if replaced is not None and spec.new_identity else str(uuids.uuid4()),
                keep_mac=lambda network: may_keep_mac(spec, networks, network),
            )
            if displaced is not None:
                displacing_xml(root, displaced)
            if replaced is not None:
                del self._machines[replaced.uuid]
            return self.add_xml(to_text(root))

    def make_standalone(
        self, vm: str, *, progress: Progress | None = None, cancelled: Cancelled = never_cancelled
    ) -> None:
        """See `Fabric.make_standalone`."""
        with self._call("make_standalone", vm):
            machine = self._get(vm)
            images = {
                disk.path: FakeImage.read(disk.path) for disk in self._disks(machine) if disk.path is not None
            }
            total, done = sum(image.size for image in images.values()), 0
            for path, image in images.items():
                if cancelled():
                    raise CancelledError(f"making {vm} stand alone was cancelled", vm=vm)
                if image.backing is not None and Path(image.backing["socket"]) in self._unserved:
                    raise UnavailableError(f"the view {image.backing['socket']} is not served")
                image.backing = None
                image.write(path)
                done += image.size
                if progress is not None:
                    progress(done, total)
            machine.text = standalone_xml(machine.text)

    def standalone(self, vm: str) -> bool:
        """See `Fabric.standalone`."""
        with self._call("standalone"):
            machine = self._get(vm)
            if displaced_by(machine.text) is not None or any(
                has_backing(disk) for _key, disk in disk_elements(parse_domain(machine.text))
            ):
                return False
            return all(
                FakeImage.read(disk.path).backing is None
                for disk in self._disks(machine)
                if disk.path is not None
            )

    def undefine(self, vm: str, *, keep_disks: bool) -> None:
        """See `Fabric.undefine`."""
        with self._call("undefine", vm):
            try:
                machine = self._get(vm)
            except NotFoundError:
                return
            if machine.power is not PowerState.OFF:
                raise ConflictError(f"{vm} is not off", hint="power it off first", vm=vm)
            if not keep_disks:
                self.delete_disks([disk.path for disk in self._disks(machine) if disk.path is not None])
            del self._machines[machine.uuid]
            displaced = displaced_by(machine.text)
            if displaced is not None:
                self.add_xml(displaced.text)

    def delete_disks(self, paths: Sequence[Path]) -> None:
        """See `Fabric.delete_disks`."""
        with self._call("delete_disks", ", ".join(map(str, paths))):
            for machine in self._machines.values():
                used = {disk.path for disk in self._disks(machine)} & set(paths)
                if used and machine.power is not PowerState.OFF:
                    raise ConflictError(f"{machine.name} uses {used}", hint="power it off first")
            for path in paths:
                path.unlink(missing_ok=True)

    # -- inside --------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self, method: str, changed: str | None = None) -> Iterator[None]:
        with self._lock:
            if self._failures[method]:
                raise self._failures[method].pop(0)
            if changed is not None:
                self.calls.append((method, changed))
            yield

    def _get(self, vm: str) -> _Machine:
        if vm in self._machines:
            return self._machines[vm]
        for machine in self._machines.values():
            if machine.name == vm:
                return machine
        raise NotFoundError(f"no machine {vm!r}", hint="see the node's inventory", vm=vm)

    def _lock_reason(self, machine: _Machine) -> str | None:
        kept = read_kept(parse_domain(machine.text), "lock")
        return None if kept is None else kept.reason

    def _views_served(self, machine: _Machine) -> bool:
        images = [FakeImage.read(disk.path) for disk in self._disks(machine) if disk.path is not None]
        return all(
            image.backing is None or Path(image.backing["socket"]) not in self._unserved for image in images
        )

    def _disks(self, machine: _Machine) -> list[DiskInfo]:
        root = parse_domain(machine.text)
        return [
            read_disk(key, disk, 0)
            for key, disk in disk_elements(root)
            if disk.get("device", "disk") == "disk"
        ]

    def _describe(self, machine: _Machine) -> VmInfo:
        vm = VmInfo(machine.uuid, machine.name, machine.power, machine.io_error, disks=(), nics=())
        try:
            root = parse_domain(machine.text)
            disks = tuple(_with_size(read_disk(key, disk, 0)) for key, disk in disk_elements(root))
            return replace(
                vm,
                disks=disks,
                nics=read_nics(root),
                problems=machine_problems(root, disks),
                labels=read_labels(root),
                locked=self._lock_reason(machine),
            )
        except SecondSiteError as error:
            return replace(vm, problems=(Problem(ProblemCode.UNREADABLE, error.message, error.hint),))


def _existing(machine: _Machine | None) -> Existing | None:
    return None if machine is None else Existing(machine.uuid, machine.name, machine.power, machine.text)


def _with_size(disk: DiskInfo) -> DiskInfo:
    path = disk.path if disk.device == "disk" else None
    if path is None:
        return disk
    try:
        return replace(disk, size=FakeImage.read(path).size)
    except NotFoundError:
        missing = Problem(ProblemCode.DISK_MISSING, f"the image {path} cannot be opened", "mount its storage")
        return replace(disk, problems=(*disk.problems, missing))


def _domain(name: str, uuid: str, disks: Mapping[DiskKey, tuple[Path, int]], networks: Sequence[str]) -> str:
    lines = [
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        f"<target dev='{key}' bus='virtio'/></disk>"
        for key, (path, _size) in disks.items()
    ]
    lines += [
        f"<interface type='network'><mac address='52:54:00:00:{number // 256:02x}:{number % 256:02x}'/>"
        f"<source network='{network}'/><model type='virtio'/></interface>"
        for number, network in enumerate(networks)
    ]
    root = parse_domain(
        f"<domain type='qemu'><name/><uuid>{uuid}</uuid><memory unit='MiB'>256</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{''.join(lines)}</devices></domain>"
    )
    name_element = root.find("name")
    assert name_element is not None
    name_element.text = name
    return to_text(root)


if TYPE_CHECKING:
    _FITS: type[Fabric] = FakeFabric
