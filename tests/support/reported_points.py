"""A node that keeps journals of nothing but lists of points, and its real reporter."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from secondsite.node.events import NodeEvents
from secondsite.node.records import Role
from secondsite.node.report import Reporter

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass
class Site:
    """Items as targets with lists of points (sequence to digest), and their reporter."""

    lists: dict[str, dict[int, str]]
    now: datetime = NOW
    role: Role = Role.TARGET
    broken: dict[str, Exception] = field(default_factory=dict)
    """What reading the list of an item raises."""
    events: NodeEvents = field(default_factory=NodeEvents)
    reporter: Reporter = field(init=False)

    def __post_init__(self) -> None:
        fixed: Any = SimpleNamespace(
            all=lambda: [_record(item, self.role) for item in self.lists],
            exists=lambda _item: True,
            get=lambda item: SimpleNamespace(points=lambda: self._read(item)),
        )
        self.reporter = Reporter(fixed, fixed, fixed, fixed, lambda: self.now, self.events)

    def _read(self, item: str) -> list[Any]:
        if item in self.broken:
            raise self.broken[item]
        return _points(self.lists[item])

    def told(self) -> dict[str, tuple[list[int], list[int], bool]]:
        """Make a report; return per item the sequences told, those told as gone, and whether it is the whole list."""
        found = self.reporter.make(with_inventory=False)["points"]
        return {
            item: (sequences(entry), entry.get("gone", []), entry["complete"])
            for item, entry in found.items()
        }

    def entry(self, item: str) -> dict[str, Any]:
        """Make a report; return what it tells of an item's points."""
        found: dict[str, Any] = self.reporter.make(with_inventory=False)["points"][item]
        return found

    def restart(self) -> None:
        """Begin with a reporter that remembers nothing."""
        self.__post_init__()


def sequences(entry: dict[str, Any]) -> list[int]:
    """Return the sequences of the points that an entry tells."""
    return [point["sequence"] for point in entry["points"]]


def _record(item: str, role: Role) -> Any:
    return SimpleNamespace(
        item=item,
        epoch=1,
        role=role,
        failover=None,
        counters={},
        test=None,
        acked=None,
        held=None,
        paused=False,
    )


def _points(held: dict[int, str]) -> list[Any]:
    word = SimpleNamespace(value="x")
    return [
        SimpleNamespace(
            sequence=sequence,
            digest=digest,
            epoch=1,
            time=NOW,
            consistency=word,
            kind=word,
            changed=0,
            stored=0,
            group=None,
        )
        for sequence, digest in held.items()
    ]
