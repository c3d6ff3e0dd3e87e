"""What a fabric reports about its host and its machines. Frozen values; `to_dict` is the form that nodes report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from secondsite.errors import CorruptError
from secondsite.model.ids import DiskKey, Epoch, ItemId, parse_item_id

DISKS_MAX: Final = 16
"""Most disks of one protected machine (the reference's figure)."""


class PowerState(StrEnum):
    """Whether a machine runs, as its hypervisor sees it."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    CRASHED = "crashed"  # the guest panicked and its machine was preserved: not off, does not run
    OFF = "off"

    @property
    def active(self) -> bool:
        """Whether the machine holds its disks open."""
        return self is not PowerState.OFF


class ProblemCode(StrEnum):
    """Stable names of what stands in the way of protecting a machine or a disk."""

    TRANSIENT = "transient"
    PASSTHROUGH = "passthrough"
    TOO_MANY_DISKS = "too-many-disks"
    NO_DISK = "no-disk"
    LOCKED = "locked"
    OURS = "ours"
    NVRAM = "nvram"
    TPM = "tpm"
    SHARED_FOLDER = "shared-folder"
    QEMU_ARGUMENTS = "qemu-arguments"
    DISK_LEFT_OUT = "disk-left-out"
    UNREADABLE = "unreadable"
    DISK_MISSING = "disk-missing"
    DISK_FORMAT = "disk-format"
    DISK_NOT_A_FILE = "disk-not-a-file"
    DISK_SHAREABLE = "disk-shareable"
    DISK_READONLY = "disk-readonly"
    DISK_REMOVABLE = "disk-removable"
    DISK_ENCRYPTED = "disk-encrypted"
    DISK_SIZE = "disk-size"
    DISK_COMPARED = "disk-compared"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a machine or a disk that forbids its protection, or (`forbids` false) that one should know."""

    code: ProblemCode
    message: str
    hint: str
    forbids: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"code": self.code.value, "message": self.message, "hint": self.hint, "forbids": self.forbids}


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The hypervisor's host. `memory` in bytes."""

    name: str
    hypervisor: str
    version: str
    cpus: int
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "hypervisor": self.hypervisor,
            "version": self.version,
            "cpus": self.cpus,
            "memory": self.memory,
        }


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """A disk (or removable medium) of a machine. `size` is the virtual size in bytes, 0 if unknown.

    `path` is the image that the guest writes now, a file or a block device; None for an empty drive or a disk elsewhere.
    """

    key: DiskKey
    path: Path | None
    format: str
    size: int
    bus: str
    device: str
    readonly: bool = False
    shareable: bool = False
    problems: tuple[Problem, ...] = ()

    @property
    def replicable(self) -> bool:
        """Whether this disk can be replicated. One that cannot is left out; it does not exist on the replica."""
        return not any(problem.forbids for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "key": self.key,
            "path": None if self.path is None else str(self.path),
            "format": self.format,
            "size": self.size,
            "bus": self.bus,
            "device": self.device,
            "readonly": self.readonly,
            "shareable": self.shareable,
            "replicable": self.replicable,
            "problems": [problem.to_dict() for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class NicInfo:
    """A network interface.

    `network` is what network mappings name: the virtual network's name; "bridge:NAME" for a host bridge,
    "direct:DEVICE" for macvtap, "user" for user-mode networking; None when it is connected to nothing.
    """

    mac: str
    network: str | None
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"mac": self.mac, "network": self.network, "model": self.model}


class ReplicaRole(StrEnum):
    """What a machine that we defined is for."""

    TEST = "test"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Labels:
    """Whose machine it is: kept in the machine's own definition, so that they survive every process of ours."""

    item: ItemId
    epoch: Epoch
    role: ReplicaRole

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"item": self.item, "epoch": self.epoch, "role": self.role.value}

    @classmethod
    def parse(cls, item: str, epoch: str, role: str) -> Labels:
        """Build labels from text; raise CorruptError if they are none."""
        try:
            number = int(epoch)
            return cls(parse_item_id(item), Epoch(number), ReplicaRole(role))
        except Exception as error:
            raise CorruptError(f"the machine's labels are malformed: {error}") from error


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A machine as it is now. `uuid` is the stable reference; names may change."""

    uuid: str
    name: str
    power: PowerState
    io_error: bool
    """Paused because a disk failed or a journal view went away: `resume_if_io_error` may help."""
    disks: tuple[DiskInfo, ...]
    nics: tuple[NicInfo, ...]
    problems: tuple[Problem, ...] = ()
    labels: Labels | None = None
    locked: str | None = None
    """Why it was locked from powering up, or None."""
    agent: bool = False
    """A guest agent is connected."""

    @property
    def protectable(self) -> bool:
        """Whether the machine can be protected: nothing forbids it and at least one disk is replicable."""
        return not any(problem.forbids for problem in self.problems) and bool(self.replicable_disks)

    @property
    def replicable_disks(self) -> tuple[DiskInfo, ...]:
        """The disks that protection covers unless the operator excludes some."""
        return tuple(disk for disk in self.disks if disk.replicable)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "uuid": self.uuid,
            "name": self.name,
            "power": self.power.value,
            "io_error": self.io_error,
            "disks": [disk.to_dict() for disk in self.disks],
            "nics": [nic.to_dict() for nic in self.nics],
            "problems": [problem.to_dict() for problem in self.problems],
            "protectable": self.protectable,
            "labels": None if self.labels is None else self.labels.to_dict(),
            "locked": self.locked,
            "agent": self.agent,
        }


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network that machines can be attached to. `isolated`: nothing leads from it to another network."""

    name: str
    isolated: bool
    active: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "isolated": self.isolated, "active": self.active}


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that a fabric offers, at one time."""

    host: HostInfo
    vms: tuple[VmInfo, ...]
    networks: tuple[NetworkInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that a node reports to the service."""
        return {
            "host": self.host.to_dict(),
            "vms": [vm.to_dict() for vm in self.vms],
            "networks": [network.to_dict() for network in self.networks],
        }
