"""What a node remembers of each item: one JSON record per item, replaced atomically.

The record is the node's fence: its `epoch` and `role` say what this node may do with the item, also when the service
is away. A role change is one rename. Losing the folder loses the role, never data: the journal has its own epoch.

    <state>/items/<item>/record.json     this record
                         manifest.json   the last acknowledged manifest, exact bytes (source) or the point that runs (active)
                         digests/        digest tables, one per disk
                         pending         what a seal under way would acknowledge
                         spool/          parts on their way; nothing in it is worth keeping over a restart
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import blake3
import structlog

from secondsite import durable
from secondsite.errors import CorruptError, NotFoundError, StaleEpochError, WrongRoleError
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId, Sequence, parse_item_id
from secondsite.model.policy import Policy

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What this node is for the item."""

    SOURCE = "source"  # its machine runs here (or is off) and is replicated from here
    PREPARING = (
        "preparing"  # a planned failover has begun: the guest is being shut down, the last changes shipped
    )
    PREPARED = "prepared"  # the last point is sealed, the machine is off and locked
    STANDBY = "standby"  # another side took over; the machine is kept, off and locked
    TARGET = "target"  # keeps the journal
    ACTIVE = "active"  # the replica runs here; nothing replicates until reverse


@dataclass(frozen=True, slots=True)
class Peer:
    """The node on the other side; host and port are those of its listener (source role only).

    service: the Kerberos principal of that listener, if it takes tickets and no certificates (source role).
    principal: the one that may speak for the node beside its certificate (target role).
    """

    node: NodeId
    host: str = ""
    port: int = 0
    service: str = ""
    principal: str = ""


@dataclass(frozen=True, slots=True)
class Acked:
    """The last point that the target acknowledged. An empty checkpoint means: find the changes by compare."""

    sequence: Sequence
    digest: Digest
    time: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Replica:
    """A machine that this node made from a point: a test or a failed-over one.

    socket: of the view that its disks read from until they stand alone.
    checkpoint: the dirty bitmap that its disks carry from before the first boot.
    """

    vm: str
    name: str
    sequence: Sequence
    digest: Digest
    socket: str = ""
    checkpoint: str = ""
    started: bool = False
    standalone: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Why a machine is not started, or not let run, after its host's boot. suspended: we paused it."""

    reason: str
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """See the module's docstring. `vm` is the machine's UUID in this node's hypervisor, if it has one here."""

    item: ItemId
    name: str
    epoch: Epoch
    role: Role
    digest_key: str
    policy: Policy
    disks: tuple[DiskKey, ...]
    vm: str = ""
    peer: Peer | None = None
    acked: Acked | None = None
    test: Replica | None = None
    failover: Replica | None = None
    images: Mapping[DiskKey, str] = field(default_factory=dict)
    """The old machine's disks: prepared (with marks), or the base of the journal."""
    marks: Mapping[DiskKey, list[list[int]]] = field(default_factory=dict)
    """What the files of those disks looked like when the last point was sealed; empty once they were adopted."""
    formats: Mapping[DiskKey, str] = field(default_factory=dict)
    """The formats of those disks that are not qcow2. Never guessed: a guest may write any header into a raw disk."""
    others: tuple[DiskKey, ...] | None = None
    """Source: the machine's disks that were left out when it was protected; None: not known. What else appears is new."""
    ran: bool = False
    """Whether the machine ran when its failover was prepared or it was demoted, and no release has started it since."""
    diverged: bool = False
    """Standby: its disks may hold writes that no point has, since it was not shut down for its last one."""
    runs: bool = False
    """Source: whether the machine ran when it was last looked at; what ran when the host went down is started again."""
    autostart: bool = False
    """Source: the machine is to start with its host. The flag in the hypervisor is off: this node decides."""
    held: Held | None = None
    """Source: since the host's boot nobody has confirmed that this side may run the machine."""
    paused: bool = False
    """Source: an operator ordered that nothing be replicated."""
    compare: bool = False
    """Source: an operator ordered that whole disks be compared, now."""
    tracking_lost: bool = False
    """Source: since the last acknowledged point nobody knows what changed. See source/window.py."""
    start_at: str = ""
    """Source: the initial replication begins then (UTC, as `format_time` writes it)."""
    seeded: bool = False
    """Source: the target's base was filled from images; its table is fetched before the first cycle."""
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        """The item's digest key, 32 bytes."""
        return bytes.fromhex(self.digest_key)

    def to_json(self) -> str:
        """Return the record as JSON text, with a checksum: a flipped bit must not make an older epoch of it."""
        fields = asdict(self)
        return json.dumps({**fields, "checksum": _checksum(fields)}, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ItemRecord:
        """Parse what `to_json` wrote; CorruptError if it is anything else."""
        try:
            fields = _checked(json.loads(text))
            return cls(
                **{
                    **fields,
                    "role": Role(fields["role"]),
                    "policy": Policy(**fields["policy"]),
                    "disks": tuple(fields["disks"]),
                    "others": None if fields.get("others") is None else tuple(fields["others"]),
                    "peer": _optional(Peer, fields["peer"]),
                    "acked": _optional(Acked, fields["acked"]),
                    "test": _optional(Replica, fields["test"]),
                    "failover": _optional(Replica, fields["failover"]),
                    "held": _optional(Held, fields.get("held")),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(
                f"an item record does not parse: {error}",
                hint="restore it from a backup, or disable the item and protect its machine again",
            ) from error


def _checksum(fields: Mapping[str, Any]) -> str:
    return blake3.blake3(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.pop("checksum") != _checksum(fields):
        raise ValueError("its checksum is wrong")
    return fields


def _optional(kind: Callable[..., T], fields: dict[str, Any] | None) -> T | None:
    return None if fields is None else kind(**fields)


def record_files(folder: Path) -> list[Path]:
    """Return the files of all records. What a cut `remove` left is none: that item is forgotten."""
    found = sorted(folder.glob("*/record.json"))
    return [path for path in found if durable.TEMPORARY_MARK not in path.parent.name]


class ItemStore:
    """The records of a node. Thread-safe; a change is durable when `put` or `change` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._item_locks: dict[ItemId, threading.RLock] = {}
        durable.make_folders(folder)
        self._records: dict[ItemId, ItemRecord] = {}
        self.damaged: dict[ItemId, CorruptError] = {}
        """Items whose record does not parse: nothing may be done with them but `remove`."""
        for path in record_files(folder):
            item = parse_item_id(path.parent.name)
            try:
                self._records[item] = ItemRecord.from_json(path.read_text(errors="replace"))
            except CorruptError as error:
                log.exception("an item's record is damaged", item=item)
                self.damaged[item] = error

    def folder(self, item: ItemId) -> Path:
        """Return the item's folder (it may not exist yet)."""
        return self._folder / item

    def lock(self, item: ItemId) -> threading.RLock:
        """Return the lock under which commands of one item run one after the other."""
        with self._lock:
            return self._item_locks.setdefault(item, threading.RLock())

    def all(self) -> list[ItemRecord]:
        """Return every record."""
        with self._lock:
            return list(self._records.values())

    def find(self, item: ItemId) -> ItemRecord | None:
        """Return the item's record or None; CorruptError if it is damaged: what its role was, nobody knows."""
        with self._lock:
            self._check(item)
            return self._records.get(item)

    def _check(self, item: ItemId) -> None:
        error = self.damaged.get(item)
        if error is not None:
            raise CorruptError(error.message, hint=error.hint, item=item)

    def get(self, item: ItemId) -> ItemRecord:
        """Return the item's record; NotFoundError if this node knows nothing of it."""
        record = self.find(item)
        if record is None:
            raise NotFoundError(f"this node knows no item {item}", item=item)
        return record

    def put(self, record: ItemRecord) -> ItemRecord:
        """Write a record. Its epoch may not be older than the one that stands."""
        with self._lock:
            self._check(record.item)
            before = self._records.get(record.item)
            if before is not None and record.epoch < before.epoch:
                raise StaleEpochError(
                    f"epoch {record.epoch} of {record.name} is older than {before.epoch}",
                    item=record.item,
                    epoch=record.epoch,
                    current=before.epoch,
                )
            folder = self.folder(record.item)
            if before is None:
                durable.make_folders(folder)  # its name too, also if something of the item is in it already
            durable.write_atomic(folder / "record.json", record.to_json().encode())
            self._records[record.item] = record
            return record

    def change(self, item: ItemId, **fields: Any) -> ItemRecord:
        """Replace fields of the item's record."""
        with self._lock:
            return self.put(replace(self.get(item), **fields))

    def count(self, item: ItemId, counter: str, by: int = 1) -> None:
        """Add to a counter of the item (kept in memory until the record is next written)."""
        with self._lock:
            record = self._records.get(item)
            if record is not None:
                counters = {**record.counters, counter: record.counters.get(counter, 0) + by}
                self._records[item] = replace(record, counters=counters)

    def forget_damaged(self, item: ItemId) -> bool:
        """Remove the item if its record is damaged, and say whether it was. For the commands that end a protection."""
        with self._lock:
            if item not in self.damaged:
                return False
            self.remove(item)
            return True

    def remove(self, item: ItemId) -> None:
        """Forget the item and remove its folder. Idempotent."""
        with self._lock:
            self._records.pop(item, None)
            self.damaged.pop(item, None)
            durable.remove_tree(self.folder(item))


def require_role(record: ItemRecord, *roles: Role) -> None:
    """Raise WrongRoleError unless the node has one of these roles for the item."""
    if record.role not in roles:
        wanted = " or ".join(role.value for role in roles)
        raise WrongRoleError(
            f"this node is {record.role.value} for {record.name}, not {wanted}",
            hint="look at the item: another operation changed its role",
            item=record.item,
            role=record.role.value,
        )
