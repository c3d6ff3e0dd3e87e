"""What people see of consistency groups: members, how their cuts fare, the points that all share, what may be done now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secondsite.model.item import refusal
from secondsite.service.context import Context
from secondsite.service.store import groups, nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.groups import GroupPoint
from secondsite.service.store.records import Group, Item
from secondsite.service.usecases.groups import OPERATIONS


def group_view(ctx: Context, group_ref: str) -> dict[str, Any]:
    """Return one group."""
    with ctx.store.reading() as tx:
        return _group(ctx, tx, groups.get(tx, group_ref))


def group_views(ctx: Context) -> list[dict[str, Any]]:
    """Return all groups by name."""
    with ctx.store.reading() as tx:
        return [_group(ctx, tx, group) for group in groups.listed(tx)]


def point_views(ctx: Context, group_ref: str, limit: int) -> list[dict[str, Any]]:
    """Return the points that all members share, newest first."""
    with ctx.store.reading() as tx:
        group = groups.get(tx, group_ref)
        members = groups.members(tx, group.id)
        if not members:
            return []
        found = groups.complete(tx, group.id, [item.id for item in members], limit=limit)
        return [described(point, members) for point in found]


def described(point: GroupPoint, members: Sequence[Item]) -> dict[str, Any]:
    """Return a common point, with each member's own sequence by its name."""
    return {
        "number": point.number,
        "time": point.time,
        "consistency": point.consistency.value,
        "sequences": {item.name: point.sequences[item.id] for item in members},
    }


def _group(ctx: Context, tx: Transaction, group: Group) -> dict[str, Any]:
    members = groups.members(tx, group.id)
    names = {node.id: node.name for node in nodes.listed(tx, revoked=True)}
    found = groups.complete(tx, group.id, [item.id for item in members]) if members else []
    latest = found[0] if found else None
    sources = {names[item.source_node_id] for item in members}
    return {
        "id": group.id,
        "name": group.name,
        "created": group.created,
        "members": [
            {
                "id": item.id,
                "name": item.name,
                "state": item.state.value,
                "test_state": item.test_state.value,
                "source_node": names[item.source_node_id],
                "target_node": names[item.target_node_id],
            }
            for item in members
        ],
        "together": len(sources) == 1,
        "source_node": sources.pop() if len(sources) == 1 else None,
        "latest_point": None if latest is None else described(latest, members),
        "rpo_s": None if latest is None else max(0.0, (ctx.clock() - latest.time).total_seconds()),
        "cuts": _cuts(group, members),
        "allowed_operations": _allowed(members),
    }


def _cuts(group: Group, members: Sequence[Item]) -> dict[str, Any] | None:
    """Return what the source node said last of the group's cuts since it started, or None."""
    for item in members:
        said = (item.source_report or {}).get("group")
        if isinstance(said, dict) and said.get("id") == group.id:
            return {key: said.get(key) for key in ("number", "cuts", "failed", "alone", "pause_s")}
    return None


def _allowed(members: Sequence[Item]) -> dict[str, Any]:
    """Return for each operation whether every member allows it now; else the first that does not, and why."""
    result: dict[str, Any] = {}
    for operation in sorted(OPERATIONS):
        refused = None
        for item in members:
            refused = refusal(item.state, item.test_state, operation)
            if refused is not None:
                result[operation.value] = {
                    "allowed": False,
                    "reason": f"{item.name}: {refused.reason}",
                    "instead": refused.instead,
                }
                break
        if refused is None:
            result[operation.value] = {"allowed": bool(members), "reason": None, "instead": None}
    return result
