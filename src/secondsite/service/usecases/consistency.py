"""Whether what the nodes say of an item is what the service believes: that it replicates, their roles, the epoch.

Pure. A node's record is the fence that counts; where it differs from the service's, nothing is repaired by itself:
a person is told what differs and where to look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.model.ids import NodeId
from secondsite.model.item import ItemState
from secondsite.service.store.records import Item, Node

SILENT_AFTER: Final = timedelta(seconds=45)
"""Nodes report every second and poll at least every 20 s: one that was not heard for so long is taken to be away."""
REPORT_DUE: Final = timedelta(seconds=60)
"""Nodes report every second; a node that lives and says nothing of an item has lost it."""
MARGIN: Final = timedelta(seconds=5)
"""A report that was made before an operation ended may come that much after it."""
REPLICATING: Final = frozenset({ItemState.PROTECTED, ItemState.INITIAL_REPLICATING})


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is not healthy."""

    severity: str  # "warning" or "critical"
    code: str
    message: str


def is_alive(node: Node, now: datetime) -> bool:
    """Whether the node was heard of late."""
    return (
        not node.silent
        and not node.revoked
        and node.last_seen is not None
        and now - node.last_seen <= SILENT_AFTER
    )


def of_error(error: Mapping[str, Any], severity: str) -> Reason:
    """Return a node's error as a reason."""
    return Reason(
        severity, str(error.get("code", "error")), str(error.get("message", "replication has an error"))
    )


def source_reasons(item: Item, known: Mapping[NodeId, Node], now: datetime) -> list[Reason]:
    """Return why the source does not replicate: stopped, an error, or a node that is alive and says nothing."""
    if item.deleted is not None:
        return []
    reasons: list[Reason] = []
    report, node = item.source_report or {}, known[item.source_node_id]
    error = report.get("error")
    if isinstance(error, dict):
        reasons.append(of_error(error, "critical"))
    if item.state not in REPLICATING:
        return reasons
    if report.get("role") == "source" and report.get("phase") == "stopped":
        reasons.append(
            Reason(
                "critical",
                "replication-stopped",
                f"{node.name} does not replicate any more: read its error, mend the cause and restart the node",
            )
        )
    heard = max(item.source_report_time or item.created, item.created)
    if not node.silent and now - heard > REPORT_DUE:
        reasons.append(
            Reason(
                "critical",
                "report-missing",
                f"{node.name} answers, but has not reported on this item for {(now - heard).total_seconds():.0f} s: "
                "it may have lost its record; look at its log",
            )
        )
    return reasons


def role_reasons(item: Item, known: Mapping[NodeId, Node], settled: datetime | None) -> list[Reason]:
    """Return where the role or the epoch that a node reports is not what the item's state says."""
    if item.state in {ItemState.PROTECTED, ItemState.PAUSED}:
        # A side that was told to take it up again, and is away, is no contradiction.
        released = any(order["kind"] == "source.release" for order in item.standing or [])
        expected = {"target": "target"} | ({} if released else {"source": "source"})
    elif item.state in {ItemState.COMMIT_PENDING, ItemState.UNPLANNED_COMMIT_PENDING}:
        # The old side may not have been told yet; that has a reason of its own.
        expected = {"target": "active"} | ({"source": "standby"} if item.demotion is None else {})
    else:
        return []
    sides = {
        "source": (item.source_node_id, item.source_report, item.source_report_time),
        "target": (item.target_node_id, item.target_report, item.target_report_time),
    }
    reasons: list[Reason] = []
    for side, role in expected.items():
        node, report, time = sides[side]
        if report is None or time is None or (settled is not None and time < settled + MARGIN):
            continue
        said, epoch = report.get("role", role), report.get("epoch", item.epoch)
        if (said, epoch) != (role, item.epoch):
            reasons.append(
                Reason(
                    "critical",
                    "inconsistent",
                    f"{known[node].name} says it is {said} at epoch {epoch}, the service expects {role} at epoch "
                    f"{item.epoch}: find out where the machine runs, let no second copy of it run, and disable the "
                    "item and protect it anew where it runs",
                )
            )
    return reasons
