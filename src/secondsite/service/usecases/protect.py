"""What can be protected, and protecting it.

Protectable is what the nodes of clouds reported, less what is protected. A machine that cannot be protected is listed
with its problems, so that nobody searches for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OperationRefusedError,
    UnavailableError,
)
from secondsite.model.ids import ItemId, JobId, NodeId, parse_disk_key
from secondsite.model.item import Direction, ItemState, TestState
from secondsite.model.manifest import format_time
from secondsite.service.context import Actor, Context
from secondsite.service.store import clouds, events, items, jobs, nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Cloud, CloudMapping, Item, Job, Node
from secondsite.service.usecases.setup import checked_name
from secondsite.service.vocabulary import ENABLE, JobState, Side

START_AHEAD_MAX: Final = timedelta(days=7)
START_GRACE: Final = timedelta(minutes=1)
"""So old a time still means at once: it was typed a moment ago."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a machine cannot be protected now (`forbids`), or what one should know before."""

    code: str
    message: str
    hint: str
    forbids: bool = True


@dataclass(frozen=True, slots=True)
class Protectable:
    """A machine that a node reported. `vm` is its UUID; `disks` are the reported ones."""

    vm: str
    name: str
    power: str
    node: Node
    cloud: Cloud
    mapping: CloudMapping | None
    disks: list[dict[str, Any]]
    networks: list[str]
    problems: list[Problem] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether protecting it can begin."""
        return not any(problem.forbids for problem in self.problems)


def protectable(ctx: Context, cloud: str | None = None) -> list[Protectable]:
    """Return the machines of one cloud, or of all, that are not protected yet."""
    with ctx.store.reading() as tx:
        return _protectable(tx, cloud)


def protect(
    ctx: Context,
    actor: Actor,
    vm: str,
    *,
    cloud: str | None = None,
    name: str | None = None,
    exclude_disks: Sequence[str] = (),
    start_at: datetime | None = None,
    seed: str | None = None,
) -> Job:
    """Begin to protect a machine, given by UUID or by name; returns the job.

    `start_at`: when the initial replication begins, at most a week ahead; None for at once.
    `seed`: a folder on the target node's host with an image of each disk; only what differs is shipped then.

    Raises:
        NotFoundError: no such machine is reported, or it is protected already.
        ConflictError: several machines have that name, or the item's name is taken.
        OperationRefusedError: the machine or the set-up is not ready; the hint says what to do.
    """
    now = ctx.clock()
    parameters = {} if start_at is None else {"start_at": _start_time(start_at, now)}
    if seed is not None:
        parameters["seed"] = _seed_path(seed)
    with ctx.store.transaction() as tx:
        machine = _chosen(tx, vm, cloud)
        mapping = machine.mapping
        if not machine.ready or mapping is None:
            first = next(problem for problem in machine.problems if problem.forbids)
            raise OperationRefusedError(
                f"{machine.name} cannot be protected: {first.message}",
                hint=first.hint,
                problems=[problem.code for problem in machine.problems if problem.forbids],
            )
        disks = _covered(machine, exclude_disks)
        unsized = sorted(key for key, disk in disks.items() if disk["size"] <= 0)
        if unsized:
            # The machine has only just been started, and its hypervisor does not tell yet.
            raise UnavailableError(
                f"the node does not know the size of {', '.join(unsized)} of {machine.name} yet",
                hint="try again in a few seconds; if it stays so, see: secondsite item protectable",
            )
        item_name = checked_name(name or machine.name)
        if any(known.name == item_name for known in items.listed(tx)):
            raise ConflictError(
                f"there is a protected item {item_name!r} already", hint="give this one another name"
            )
        target = _target(tx, mapping, machine.node.id)
        assert target is not None  # else the machine would not be ready
        item_id, job_id = ItemId(ctx.new_id()), JobId(ctx.new_id())
        items.add(
            tx,
            {
                "id": item_id,
                "name": item_name,
                "vm_uuid": machine.vm,
                "cloud_mapping_id": mapping.id,
                "state": ItemState.ENABLING.value,
                "test_state": TestState.NONE.value,
                "direction": Direction.PRIMARY_TO_RECOVERY.value,
                "epoch": 1,
                "primary_node_id": machine.node.id,
                "recovery_node_id": target.id,
                "journal_node_id": target.id,
                "primary_vm": machine.vm,
                "digest_key": ctx.random_bytes(32),
                "disks": disks,
                "networks": machine.networks,
                "created": now,
            },
            events.NewEvent(
                now,
                "enabling",
                f"{actor.name} asked to protect {machine.name} as {item_name}",
                item_id=item_id,
                node_id=machine.node.id,
                job_id=job_id,
            ),
        )
        items.make_writable(tx, item_id, 1, Side.PRIMARY, machine.node.id, now)
        job = Job(
            id=job_id,
            operation=ENABLE,
            item_id=item_id,
            item_name=item_name,
            state=JobState.NOT_STARTED,
            progress=0.0,
            requested_by=actor.name,
            parameters=parameters,
            created=now,
            started=None,
            ended=None,
            error=None,
            result=None,
        )
        jobs.add(tx, job)
    ctx.start_job(job_id)
    return job


def _start_time(start_at: datetime, now: datetime) -> str:
    if not now - START_GRACE <= start_at <= now + START_AHEAD_MAX:
        raise InvalidInputError(
            "start_at is out of range",
            hint="choose a time within the next 7 days, or leave it out to begin at once",
            field="start_at",
        )
    return format_time(start_at)


def _seed_path(seed: str) -> str:
    if not seed.startswith("/") or "\0" in seed:
        raise InvalidInputError(
            "the seed is not an absolute path",
            hint="give the folder as the target node's host names it, such as /mnt/medium/web-1",
            field="seed",
        )
    return seed


def _covered(machine: Protectable, exclude: Sequence[str]) -> dict[str, Any]:
    known = {str(disk["key"]) for disk in machine.disks}
    missing = set(exclude) - known
    if missing:
        raise InvalidInputError(
            f"{machine.name} has no disk {', '.join(sorted(missing))}",
            hint=f"its disks are {', '.join(sorted(known))}",
        )
    covered: dict[str, Any] = {
        parse_disk_key(disk["key"]): {"size": int(disk["size"]), "format": str(disk.get("format", ""))}
        for disk in machine.disks
        if disk.get("replicable", True) and disk["key"] not in exclude
    }
    if not covered:
        raise InvalidInputError(f"no disk of {machine.name} would be protected")
    return covered


def _chosen(tx: Transaction, vm: str, cloud: str | None) -> Protectable:
    found = _protectable(tx, cloud)
    exact = [machine for machine in found if machine.vm == vm] or [
        machine for machine in found if machine.name == vm
    ]
    if len(exact) > 1:
        places = ", ".join(f"{machine.vm} on {machine.node.name}" for machine in exact)
        raise ConflictError(f"several machines are called {vm!r}: {places}", hint="name it by its UUID")
    if exact:
        return exact[0]
    for item in items.listed(tx):
        if vm in {item.vm_uuid, item.name}:
            raise NotFoundError(f"{vm} is protected already, as item {item.name}", item=item.id)
    raise NotFoundError(
        f"no node reports a machine {vm!r}" + (f" in cloud {cloud}" if cloud else ""),
        hint="is its node enrolled, in a cloud, and alive? secondsite node list",
    )


def _protectable(tx: Transaction, cloud: str | None) -> list[Protectable]:
    chosen = clouds.list_clouds(tx) if cloud is None else [clouds.cloud(tx, cloud)]
    protected = items.protected_machines(tx)
    current = {item.id for item in items.listed(tx)}
    found: list[Protectable] = []
    for group in chosen:
        mapping = clouds.mapping_of(tx, group.id)
        for node_id in clouds.members(tx, group.id):
            node = nodes.get(tx, node_id)
            common = _common_problems(tx, group, mapping, node)
            found.extend(
                _machine(vm, node, group, mapping, common)
                for vm in (node.inventory or {}).get("vms", [])
                if vm.get("uuid") not in protected and (vm.get("labels") or {}).get("item") not in current
            )
    return sorted(found, key=lambda machine: (machine.name, machine.vm))


def _machine(
    vm: Mapping[str, Any], node: Node, cloud: Cloud, mapping: CloudMapping | None, common: list[Problem]
) -> Protectable:
    disks = [disk for disk in vm.get("disks", []) if isinstance(disk, dict)]
    problems = [
        Problem(
            str(problem.get("code", "problem")),
            str(problem.get("message", "")),
            str(problem.get("hint", "")),
            bool(problem.get("forbids", True)),
        )
        for problem in vm.get("problems", [])
    ]
    if not any(problem.forbids for problem in problems) and not any(disk.get("replicable") for disk in disks):
        problems.append(
            Problem("no-disk", "it has no disk that can be replicated", "look at the problems of its disks")
        )
    networks = dict.fromkeys(str(nic["network"]) for nic in vm.get("nics", []) if nic.get("network"))
    return Protectable(
        vm=str(vm["uuid"]),
        name=str(vm.get("name", vm["uuid"])),
        power=str(vm.get("power", "unknown")),
        node=node,
        cloud=cloud,
        mapping=mapping,
        disks=disks,
        networks=list(networks),
        problems=problems + common,
    )


def _common_problems(
    tx: Transaction, cloud: Cloud, mapping: CloudMapping | None, node: Node
) -> list[Problem]:
    problems: list[Problem] = []
    if mapping is None:
        problems.append(
            Problem(
                "not-mapped",
                f"cloud {cloud.name} is not mapped to another cloud",
                "map it: secondsite cloud map",
            )
        )
    elif _target(tx, mapping, node.id) is None:
        problems.append(
            Problem(
                "no-target",
                "the target cloud has no other node with the role target",
                "add one to it: secondsite cloud add",
            )
        )
    if "source" not in node.roles:
        problems.append(
            Problem("not-a-source", f"node {node.name} has not the role source", "enrol it with that role")
        )
    if node.silent:
        problems.append(
            Problem("node-silent", f"node {node.name} does not answer", "start it, or mend its connection")
        )
    return problems


def _target(tx: Transaction, mapping: CloudMapping, source: NodeId) -> Node | None:
    """Return the target cloud's node with the fewest items; one that answers is preferred."""
    candidates = [nodes.get(tx, node_id) for node_id in clouds.members(tx, mapping.target_cloud_id)]
    usable = [
        node for node in candidates if "target" in node.roles and not node.revoked and node.id != source
    ]
    return min(
        usable, key=lambda node: (node.silent, items.count_of_node(tx, node.id), node.name), default=None
    )


def policy_of(tx: Transaction, item: Item) -> dict[str, Any]:
    """Return the settings that apply to the item."""
    mapping = clouds.mapping(tx, item.cloud_mapping_id)
    return clouds.policy(tx, mapping.policy_id).settings
