"""What people see: items, jobs, nodes and the vault as JSON-ready documents, computed from the store in one read.

The item's view carries the operations that it allows now and, for each refused one, the reason and what to do
instead: the console and the command line show what the service would answer, and decide nothing themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from secondsite.model.ids import ItemId, NodeId
from secondsite.model.item import ItemState, TestState, allowed_operations
from secondsite.service.context import Context
from secondsite.service.health.metering import MEASURED
from secondsite.service.health.watched import Looked
from secondsite.service.store import clouds, commands, items, jobs, nodes, points, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Job, Node, Point, Task
from secondsite.service.usecases.health import ItemHealth
from secondsite.service.vocabulary import CommandState, JobState, Side, TaskState

REPORT_FRESH_S: Final = 30.0
"""A report that is older says what was, not what is."""


def item_view(ctx: Context, item_ref: str) -> dict[str, Any]:
    """Return one item."""
    with ctx.store.reading() as tx:
        item, now = items.get(tx, item_ref), ctx.clock()
        writable = items.writable_sides_of(tx, [item.id])
        return _item(tx, item, now, _Names(tx), ItemHealth(tx, now, [item.id]), writable)


def item_views(
    ctx: Context, *, deleted: bool = False, after: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return items by name: all, or at most `limit` of those that come after the item `after`."""
    with ctx.store.reading() as tx:
        names, now = _Names(tx), ctx.clock()
        last = None if after is None else items.get(tx, after)
        listed = items.listed(tx, deleted=deleted, after=last, limit=limit)
        ids = [item.id for item in listed]
        only = ids if len(ids) <= items.IDS_MAX else None
        healths = ItemHealth(tx, now, only, looked=ctx.watched.of(now))
        writable = items.writable_sides_of(tx, ids)
        return [_item(tx, item, now, names, healths, writable) for item in listed]


def point_views(ctx: Context, item_ref: str, limit: int) -> list[dict[str, Any]]:
    """Return an item's points, newest first."""
    with ctx.store.reading() as tx:
        item = items.get(tx, item_ref)
        return [_point(point) for point in points.listed(tx, item.id, limit)]


def job_view(ctx: Context, job_id: str) -> dict[str, Any]:
    """Return one job with its tasks."""
    with ctx.store.reading() as tx:
        job = jobs.get(tx, job_id)
        return _job(tx, job, ctx.clock()) | {"tasks": [_task(task) for task in jobs.list_tasks(tx, job.id)]}


def job_views(
    ctx: Context, *, item: str | None, state: JobState | None, operation: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return jobs, newest first, without their tasks."""
    with ctx.store.reading() as tx:
        item_id = None if item is None else items.get(tx, item).id
        found = jobs.listed(tx, item_id=item_id, state=state, operation=operation, limit=limit)
        return [_job(tx, job, ctx.clock()) for job in found]


def node_views(ctx: Context, *, revoked: bool = False) -> list[dict[str, Any]]:
    """Return nodes by name."""
    with ctx.store.reading() as tx:
        names, now = _Names(tx), ctx.clock()
        told, counts = nodes.summaries(tx), items.counts_by_nodes(tx)
        return [
            _node(node, now, names, told.get(node.id, nodes.NOTHING_TOLD), counts.get(node.id, 0))
            for node in nodes.listed(tx, revoked=revoked, inventory=False)
        ]


def node_view(ctx: Context, id_or_name: str) -> dict[str, Any]:
    """Return one node."""
    with ctx.store.reading() as tx:
        node = nodes.get(tx, id_or_name)
        told = nodes.summaries(tx, node.id).get(node.id, nodes.NOTHING_TOLD)
        return _node(node, ctx.clock(), _Names(tx), told, items.count_of_node(tx, node.id))


def network_views(ctx: Context) -> list[dict[str, Any]]:
    """Return the networks that nodes reported."""
    with ctx.store.reading() as tx:
        sites = vaults.site_names(tx)
        return [
            {
                "site": sites[node.site_id],
                "node": node.name,
                "name": network.get("name"),
                "isolated": network.get("isolated"),
                "active": network.get("active"),
            }
            for node in nodes.listed(tx)
            for network in (node.inventory or {}).get("networks", [])
        ]


def vault_view(ctx: Context) -> dict[str, Any]:
    """Return the vault with a summary of its health."""
    with ctx.store.reading() as tx:
        vault, now = vaults.get_vault(tx), ctx.clock()
        looked = ctx.watched.of(now)
        # The watch has looked at every item some seconds ago; who came since has its level from his own look.
        states = items.states(tx)
        known_levels = {} if looked is None else looked.levels
        levels = Counter(known_levels[item] for item in states if item in known_levels)
        levels += _levels(tx, now, [item for item in states if item not in known_levels], looked)
        known = nodes.listed(tx, inventory=False)
        return {
            "name": vault.name,
            "created": vault.created,
            "ca_fingerprint": ctx.authority.fingerprint,
            "items": {
                "total": len(states),
                "by_state": dict(Counter(state.value for state in states.values())),
                "by_health": dict(levels),
            },
            "nodes": {"total": len(known), "silent": sum(node.silent for node in known)},
            "jobs_active": len(jobs.unfinished(tx)),
        }


def _levels(tx: Transaction, now: datetime, wanted: Sequence[ItemId], looked: Looked | None) -> Counter[str]:
    """Return how many of these items have each level: those that the watch has not looked at."""
    if not wanted:
        return Counter()
    some = len(wanted) <= items.IDS_MAX
    listed = [items.get(tx, item) for item in wanted] if some else items.listed(tx)
    healths = ItemHealth(tx, now, wanted if some else None, looked=looked)
    asked = frozenset(wanted)
    return Counter(healths.of(item)[0]["level"] for item in listed if item.id in asked)


class _Names:
    """The names behind ids, read once per answer."""

    def __init__(self, tx: Transaction) -> None:
        self.nodes: dict[NodeId, Node] = {
            node.id: node for node in nodes.listed(tx, revoked=True, inventory=False)
        }
        self.sites = vaults.site_names(tx)
        self.clouds = {cloud.id: cloud for cloud in clouds.list_clouds(tx)}
        # With the threshold: a policy's settings are checked anew at each look at them.
        self.policies = {
            policy.id: (policy.name, policy.policy.rpo_threshold_s) for policy in clouds.list_policies(tx)
        }
        self.mappings = {mapping.id: mapping for mapping in clouds.list_mappings(tx)}

    def side(self, node_id: NodeId, vm: str | None) -> dict[str, Any]:
        """Return one side of an item."""
        node = self.nodes[node_id]
        return {"node": node.name, "node_id": node.id, "site": self.sites[node.site_id], "vm": vm}


def _item(
    tx: Transaction,
    item: Item,
    now: datetime,
    names: _Names,
    healths: ItemHealth,
    writable: Mapping[str, Side],
) -> dict[str, Any]:
    mapping = names.mappings[item.cloud_mapping_id]
    policy, rpo_threshold_s = names.policies[mapping.policy_id]
    rpo = None
    if item.last_point_time is not None and item.state in MEASURED:
        rpo = max(0.0, (now - item.last_point_time).total_seconds())
    health, health_errors = healths.of(item)
    side = writable.get(item.id)
    running = healths.active_change(item)
    return {
        "id": item.id,
        "name": item.name,
        "vm": item.vm_uuid,
        "state": item.state.value,
        "test_state": item.test_state.value,
        "direction": item.direction.value,
        "epoch": item.epoch,
        "active_side": None if side is None else side.value,
        "primary": names.side(item.primary_node_id, item.primary_vm),
        "recovery": names.side(item.recovery_node_id, item.recovery_vm),
        "source_cloud": names.clouds[mapping.source_cloud_id].name,
        "target_cloud": names.clouds[mapping.target_cloud_id].name,
        "policy": policy,
        "disks": item.disks,
        "networks": item.networks,
        "latest_point": None
        if item.last_sequence is None
        else {"sequence": item.last_sequence, "time": item.last_point_time},
        "rpo_s": rpo,
        "rpo_threshold_s": rpo_threshold_s,
        "health": health,
        "health_errors": health_errors,
        "replication": {
            "source": _report(item.source_report, item.source_report_time, now),
            "target": _report(item.target_report, item.target_report_time, now),
        },
        "test": item.test,
        "failover": item.failover,
        "error": item.error,
        "standing": [
            {
                "kind": order["kind"],
                "node": names.nodes[order["node"]].name,
                "attempts": order["attempt"] + (order["command"] is not None),
            }
            for order in item.standing or []
        ],
        "active_job": None if running is None else _under_way(tx, running),
        "last_test_time": item.last_test_time,
        "last_failover_time": item.last_failover_time,
        "created": item.created,
        "deleted": item.deleted,
        "allowed_operations": operations_of(item),
    }


def _under_way(tx: Transaction, job: Job) -> dict[str, Any]:
    task = next((task for task in jobs.list_tasks(tx, job.id) if task.state is TaskState.IN_PROGRESS), None)
    return {
        "id": job.id,
        "operation": job.operation,
        "task": None if task is None else {"name": task.name, "progress": task.progress},
    }


def operations_of(item: Item) -> dict[str, Any]:
    """Return for each operation whether it is allowed now and, if not, why and what to do instead."""
    return {name: dict(told) for name, told in _operations(item.state, item.test_state).items()}


@cache
def _operations(state: ItemState, test_state: TestState) -> Mapping[str, Mapping[str, Any]]:
    return {
        operation.value: {
            "allowed": refused is None,
            "reason": None if refused is None else refused.reason,
            "instead": None if refused is None else refused.instead,
        }
        for operation, refused in allowed_operations(state, test_state).items()
    }


def _report(report: dict[str, Any] | None, time: datetime | None, now: datetime) -> dict[str, Any] | None:
    if report is None or time is None:
        return None
    age = max(0.0, (now - time).total_seconds())
    return {key: value for key, value in report.items() if key != "item"} | {
        "age_s": age,
        "fresh": age <= REPORT_FRESH_S,
    }


def point_view(point: Point) -> dict[str, Any]:
    """Return one point."""
    return _point(point)


def _point(point: Point) -> dict[str, Any]:
    return {
        "sequence": point.sequence,
        "epoch": point.epoch,
        "time": point.time,
        "digest": point.digest,
        "kind": point.kind,
        "consistency": point.consistency,
        "changed": point.changed,
    }


def _waits_for(tx: Transaction, job: Job) -> str | None:
    """Return what an unfinished job waits for: a person, or a node's answer."""
    if job.state.ended:
        return None
    asked = (job.result or {}).get("waits_for")
    if asked is not None:
        return str(asked)
    waiting = [
        f"{nodes.get(tx, command.node_id).name} to "
        f"{'fetch' if command.state is CommandState.PENDING else 'answer'} {command.kind}"
        for command in commands.open_of_job(tx, job.id)
    ]
    return "; ".join(waiting) or None


def _job(tx: Transaction, job: Job, now: datetime) -> dict[str, Any]:
    end = job.ended or now
    return {
        "id": job.id,
        "operation": job.operation,
        "item": job.item_name,
        "item_id": job.item_id,
        "state": job.state.value,
        "progress": job.progress,
        "requested_by": job.requested_by,
        "parameters": job.parameters,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "seconds": None if job.started is None else (end - job.started).total_seconds(),
        "error": job.error,
        "result": job.result,
        "waits_for": _waits_for(tx, job),
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "ordinal": task.ordinal,
        "name": task.name,
        "state": task.state.value,
        "progress": task.progress,
        "error": task.error,
        "started": task.started,
        "ended": task.ended,
    }


def _node(node: Node, now: datetime, names: _Names, told: nodes.Summary, items_of_it: int) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name,
        "site": names.sites[node.site_id],
        "roles": node.roles,
        "data_address": node.data_address,
        "storage": node.storage,
        "version": node.version,
        "enrolled": node.enrolled,
        "last_seen": node.last_seen,
        "seen_s": None if node.last_seen is None else max(0.0, (now - node.last_seen).total_seconds()),
        "alive": node.last_seen is not None and not node.silent and not node.revoked,
        "revoked": node.revoked,
        "host": told.host,
        "vms": told.vms,
        "items": items_of_it,
        "inventory_time": node.inventory_time,
        "kerberos": told.kerberos,
    }
