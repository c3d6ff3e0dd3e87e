"""The consistency groups that this node knows as a source: kept on disk, so that they go on without the service.

    <state>/groups/<group>.json     {"group", "members", "number", "revision"}
                   *.paused         see barrier.py

`number` is the last one that a cut was given; it is durable before the cut, so none is used twice. `revision` is the
service's: orders may arrive in any order, and an older one changes nothing. A group without members is kept until the
next start, for that reason alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import structlog

from secondsite import durable
from secondsite.errors import InvalidInputError
from secondsite.model.ids import GroupId, ItemId, parse_group_id, parse_item_id
from secondsite.model.manifest import Consistency
from secondsite.node.executor import Command, Handler, Progress
from secondsite.node.records import ItemRecord
from secondsite.node.source.barrier import Pausing
from secondsite.node.source.group import Group, Meeting, Peers

_SUFFIX: Final = ".json"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is on disk of one group."""

    group: GroupId
    members: tuple[ItemId, ...] = ()
    number: int = 0
    revision: int = 0

    @classmethod
    def parse(cls, data: bytes) -> _Kept:
        fields = json.loads(data)
        members = tuple(parse_item_id(member) for member in fields["members"])
        return cls(parse_group_id(fields["group"]), members, int(fields["number"]), int(fields["revision"]))


class Groups:
    """See the module's docstring. `peers` is given by who owns the replicators, before the first `meet`."""

    peers: Peers

    def __init__(self, pausing: Pausing) -> None:
        self._pausing = pausing
        self._folder = pausing.folder
        self._lock = threading.RLock()
        self._kept: dict[GroupId, _Kept] = {}
        self._groups: dict[GroupId, Group] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                kept = _Kept.parse(path.read_bytes())
            except (ValueError, KeyError, TypeError, InvalidInputError):
                log.exception("a group's file is damaged; the service gives the order again", path=str(path))
                continue
            if kept.members:
                self._kept[kept.group] = kept
            else:
                path.unlink()

    def start(self) -> None:
        """Resume at once what a process that died left suspended."""
        self._pausing.resume_left()

    def close(self) -> None:
        """End the attempts to resume; what is owed stays noted for the next start."""
        self._pausing.close()

    # -- members ---------------------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by command kind."""
        return {"source.group": self.command}

    def command(self, command: Command, progress: Progress) -> Mapping[str, Any]:  # noqa: ARG002
        """`source.group`: {group, members, revision, number?} → {}."""
        args = command.args
        members = args.get("members")
        if not isinstance(members, list):
            raise InvalidInputError("source.group names no members")
        self.set(
            parse_group_id(args.get("group")),
            [parse_item_id(member) for member in members],
            revision=int(args.get("revision") or 0),
            number=int(args.get("number") or 0),
        )
        return {}

    def set(self, group: GroupId, members: Collection[ItemId], *, revision: int = 0, number: int = 0) -> None:
        """Say who is in the group; nobody: it is gone. `number`: the last one that anybody has seen.

        Durable when it returns. A member leaves the group that it was in before.
        """
        with self._lock:
            before = self._kept.get(group, _Kept(group))
            if revision < before.revision:
                return
            after = replace(
                before,
                members=tuple(sorted(set(members))),
                number=max(before.number, number),
                revision=revision,
            )
            for other in list(self._kept.values()):
                left = tuple(member for member in other.members if member not in after.members)
                if other.group != group and left != other.members:
                    self._put(replace(other, members=left))
            self._put(after)

    def _put(self, kept: _Kept) -> None:
        before = self._kept.get(kept.group)
        self._write(kept)
        if before is None or before.members != kept.members:
            # A round that has met goes on with the members that it has.
            group = self._groups.pop(kept.group, None)
            if group is not None:
                group.dissolve()

    def _write(self, kept: _Kept) -> None:
        path = self._folder / f"{kept.group}{_SUFFIX}"
        durable.write_atomic(path, json.dumps(asdict(kept), sort_keys=True).encode())
        self._kept[kept.group] = kept

    def _next_number(self, group: GroupId) -> int:
        with self._lock:
            kept = self._kept.get(group, _Kept(group))
            self._write(replace(kept, number=kept.number + 1))
            return kept.number + 1

    # -- cycles ----------------------------------------------------------------------------------------------

    @contextmanager
    def meet(
        self, record: ItemRecord, consistency: Consistency, cancelled: Callable[[], bool]
    ) -> Iterator[Meeting]:
        """Bring a member's cycle together with the others'; a cycle that has no others goes on at once."""
        group = self._group_of(record.item) if is_fit(record) else None
        if group is None or len(group.members) < 2 or consistency is Consistency.PLANNED:
            yield Meeting()
            return
        wait_s = float(record.policy.copy_frequency_s)
        with group.meet(record.item, record.vm, wait_s, cancelled) as meeting:
            yield meeting

    def describe(self, item: ItemId) -> dict[str, Any] | None:
        """Return what a report says of the item's group: who is in it, and how its cuts fare."""
        group = self._group_of(item)
        if group is None:
            return None
        kept = self._kept[group.id]
        return {
            "id": group.id,
            "members": list(kept.members),
            "revision": kept.revision,
            "number": kept.number,
            "cuts": group.cuts,
            "failed": group.failed,
            "alone": group.alone,
            "pause_s": None if group.pause_s is None else round(group.pause_s, 3),
        }

    def _group_of(self, item: ItemId) -> Group | None:
        with self._lock:
            for kept in self._kept.values():
                if item in kept.members:
                    found = self._groups.get(kept.group)
                    if found is None:
                        found = self._groups[kept.group] = Group(
                            kept.group,
                            frozenset(kept.members),
                            self.peers,
                            self._pausing,
                            partial(self._next_number, kept.group),
                        )
                    return found
            return None


def is_fit(record: ItemRecord) -> bool:
    """Whether the item's next cycle is a delta: an initial replication or a compare waits for nobody."""
    return (
        record.acked is not None
        and bool(record.acked.checkpoint)
        and not record.paused
        and record.held is None
    )
