"""What the store's functions return: frozen rows with the vocabulary's types instead of loose text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

import sqlalchemy as sa

from secondsite.model.ids import CloudId, CommandId, GroupId, ItemId, JobId, NodeId, PolicyId, SiteId
from secondsite.model.item import Direction, ItemState, TestState
from secondsite.model.policy import Policy
from secondsite.service.vocabulary import CommandState, JobState, Role, Severity, Side, TaskState

R = TypeVar("R")
Json = dict[str, Any]

_converters: dict[type, dict[str, type[StrEnum]]] = {}


def make(record: type[R], row: sa.Row[Any]) -> R:
    """Build a record from a row that has its fields as columns; texts of enumerations become their members."""
    return maker(record, row._fields)(row)


def maker(record: type[R], columns: Sequence[str]) -> Callable[[sa.Row[Any]], R]:
    """Return what builds records from rows with these columns.

    What can be known before the first row is found out once: of an item with its 31 fields that was two thirds of the time.
    """
    enums = _converters.get(record)
    if enums is None:
        enums = _converters[record] = _enums(record)
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]
    places = [columns.index(name) for name in names]
    typed = [(place, enums[name]) for place, name in enumerate(names) if name in enums]

    def build(row: sa.Row[Any]) -> R:
        values = [row[place] for place in places]
        for place, enum in typed:
            if values[place] is not None:
                values[place] = enum(values[place])
        return record(*values)

    return build


def _enums(record: type) -> dict[str, type[StrEnum]]:
    found: dict[str, type[StrEnum]] = {}
    for name, hint in get_type_hints(record).items():
        for candidate in (hint, *get_args(hint)):
            if isinstance(candidate, type) and issubclass(candidate, StrEnum):
                found[name] = candidate
    return found


@dataclass(frozen=True, slots=True)
class Vault:
    """One deployment."""

    name: str
    created: datetime


@dataclass(frozen=True, slots=True)
class Site:
    """A place with nodes."""

    id: SiteId
    name: str
    created: datetime


@dataclass(frozen=True, slots=True)
class Node:
    """One daemon at a site. `inventory` is what it reported last, or None."""

    id: NodeId
    name: str
    site_id: SiteId
    roles: list[str]
    data_address: str
    storage: Any
    certificate_serial: str
    public_key: str
    version: str
    enrolled: datetime
    last_seen: datetime | None
    silent: bool
    revoked: bool
    inventory: Json | None
    inventory_time: datetime | None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its replication listener."""
        host, _, port = self.data_address.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A named policy; `revision` counts its changes."""

    id: PolicyId
    name: str
    settings: Json
    revision: int
    created: datetime

    @property
    def policy(self) -> Policy:
        """The checked settings."""
        return Policy(**self.settings)


@dataclass(frozen=True, slots=True)
class Cloud:
    """A named group of nodes of one site."""

    id: CloudId
    name: str
    site_id: SiteId
    storage: str | None
    created: datetime


@dataclass(frozen=True, slots=True)
class CloudMapping:
    """Machines of the source cloud replicate to the target cloud under the policy."""

    id: str
    source_cloud_id: CloudId
    target_cloud_id: CloudId
    policy_id: PolicyId
    created: datetime


@dataclass(frozen=True, slots=True)
class NetworkMapping:
    """Where an interface on the source network is connected at the target site, and in a test."""

    id: str
    source_site_id: SiteId
    source_network: str
    target_site_id: SiteId
    target_network: str
    test_network: str | None
    created: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """A protected item. `digest_key` is a secret: it never leaves the service but in commands to the item's nodes."""

    id: ItemId
    name: str
    vm_uuid: str
    cloud_mapping_id: str
    state: ItemState
    test_state: TestState
    direction: Direction
    epoch: int
    primary_node_id: NodeId
    recovery_node_id: NodeId
    journal_node_id: NodeId
    primary_vm: str | None
    recovery_vm: str | None
    digest_key: bytes
    disks: Json
    networks: list[str]
    source_report: Json | None
    source_report_time: datetime | None
    target_report: Json | None
    target_report_time: datetime | None
    last_sequence: int | None
    last_point_time: datetime | None
    rpo_alert: bool
    error: Json | None
    test: Json | None
    failover: Json | None
    standing: list[Json] | None
    last_test_time: datetime | None
    last_failover_time: datetime | None
    created: datetime
    deleted: datetime | None

    @property
    def demotion(self) -> Json | None:
        """The order to an old active side that has not stepped down yet."""
        return next((order for order in self.standing or [] if order["kind"] == "source.demote"), None)

    @property
    def source_node_id(self) -> NodeId:
        """The node that replication comes from in the present direction."""
        return self.primary_node_id if self._forward else self.recovery_node_id

    @property
    def target_node_id(self) -> NodeId:
        """The node that replication goes to in the present direction."""
        return self.recovery_node_id if self._forward else self.primary_node_id

    @property
    def source_vm(self) -> str | None:
        """The machine's reference in the source node's hypervisor."""
        return self.primary_vm if self._forward else self.recovery_vm

    @property
    def source_side(self) -> Side:
        """The side that replication comes from."""
        return Side.PRIMARY if self._forward else Side.RECOVERY

    @property
    def target_side(self) -> Side:
        """The side that replication goes to."""
        return Side.RECOVERY if self._forward else Side.PRIMARY

    @property
    def _forward(self) -> bool:
        return self.direction is Direction.PRIMARY_TO_RECOVERY


@dataclass(frozen=True, slots=True)
class WritableSide:
    """In this epoch, this side and no other may run the machine."""

    item_id: ItemId
    epoch: int
    side: Side
    node_id: NodeId
    since: datetime


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point as its journal's node reported it."""

    item_id: ItemId
    sequence: int
    epoch: int
    time: datetime
    digest: str
    kind: str
    consistency: str
    changed: int | None
    group_id: GroupId | None = None
    group_number: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A consistency group. `revision` counts changes of its members; `number`: the highest that a cut was given."""

    id: GroupId
    name: str
    revision: int
    number: int
    created: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """An operation that was asked for, and what became of it."""

    id: JobId
    operation: str
    item_id: ItemId | None
    item_name: str | None
    state: JobState
    progress: float
    requested_by: str
    parameters: Json
    created: datetime
    started: datetime | None
    ended: datetime | None
    error: Json | None
    result: Json | None


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a job."""

    job_id: JobId
    ordinal: int
    name: str
    state: TaskState
    progress: Json | None
    error: Json | None
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    id: int
    time: datetime
    severity: Severity
    code: str
    message: str
    item_id: ItemId | None
    node_id: NodeId | None
    job_id: JobId | None
    details: Json


@dataclass(frozen=True, slots=True)
class Command:
    """An order to a node."""

    id: CommandId
    ordinal: int
    node_id: NodeId
    item_id: ItemId | None
    job_id: JobId | None
    kind: str
    epoch: int
    args: Json
    state: CommandState
    cancelled: bool
    result: Json | None
    error: Json | None
    progress: Json | None
    deliveries: int
    created: datetime
    delivered: datetime | None
    ended: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """A person's or a program's way in. The token itself is not kept, only its hash."""

    id: str
    name: str
    role: Role
    created: datetime
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class RegistrationKey:
    """Lets nodes enrol at a site until it expires. The secret is not kept, only its hash."""

    id: str
    hash: str
    site_id: SiteId
    created: datetime
    expires: datetime
    uses: int
    uses_max: int | None
