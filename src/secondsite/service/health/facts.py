"""What the rules look at: facts of one instant about an item, a node or the vault. Values only; `reading.py` fetches them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from secondsite.model.ids import NodeId
from secondsite.model.item import ItemState
from secondsite.model.policy import Policy
from secondsite.service.store.records import Item, Node


@dataclass(frozen=True, slots=True)
class Share:
    """How many cycles the copy frequency asked for in the monitoring interval, and how many there were."""

    expected: float = 0.0
    done: int = 0

    @property
    def missed(self) -> float:
        """The share that is missing, 0 to 1."""
        return 0.0 if self.expected <= 0 else max(0.0, 1.0 - self.done / self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """An item with its policy and nodes.

    settled: when the last operation on it ended. waits_for: what its suspended job asks an operator for.
    application_point: the time of the newest application-consistent point. diverged: the sequence of a kept point.
    """

    now: datetime
    item: Item
    policy: Policy
    nodes: Mapping[NodeId, Node]
    settled: datetime | None = None
    waits_for: str | None = None
    share: Share = field(default_factory=Share)
    application_point: datetime | None = None
    diverged: int | None = None

    @property
    def protected(self) -> bool:
        """Whether it should replicate: protected, and not paused."""
        return self.item.state is ItemState.PROTECTED

    @property
    def point_age(self) -> timedelta | None:
        """How old the newest point is; None if there is none."""
        return None if self.item.last_point_time is None else self.now - self.item.last_point_time

    @property
    def source(self) -> Mapping[str, Any]:
        """What the source node said last."""
        return self.item.source_report or {}

    @property
    def target(self) -> Mapping[str, Any]:
        """What the target node said last."""
        return self.item.target_report or {}

    @property
    def phase(self) -> str:
        """What the replication is doing, as its source says, while that is the source."""
        return str(self.source.get("phase", "")) if self.source.get("role") == "source" else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node; `items`: how many items it has a part in. `storage`: what its newest report says of the space there."""

    now: datetime
    node: Node
    items: int = 0
    storage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultFacts:
    """The vault. `failing`: receivers of notices whose last notice could not be sent, with the reason."""

    now: datetime
    items: int = 0
    receivers: int = 0
    failing: Mapping[str, str] = field(default_factory=dict)
