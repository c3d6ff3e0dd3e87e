"""What a workflow needs to know of its item, read in one step so that a resumed run decides the same again."""

from __future__ import annotations

from secondsite.errors import OperationRefusedError, UnavailableError
from secondsite.model.ids import NodeId, SiteId
from secondsite.service.store import clouds, items, jobs, nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.usecases.consistency import is_alive
from secondsite.service.usecases.protect import policy_of
from secondsite.service.workflows.run import Run
from secondsite.service.workflows.transport import kerberos_of


def read_facts(run: Run) -> Json:
    """Return the item and both its nodes as they are now (a step)."""

    def action() -> Json:
        with run.ctx.store.reading() as tx:
            job = jobs.get(tx, run.job_id)
            assert job.item_id is not None
            item = items.get(tx, job.item_id)
            source, target = nodes.get(tx, item.source_node_id), nodes.get(tx, item.target_node_id)
            return {
                "item": item.id,
                "name": item.name,
                "epoch": item.epoch,
                "disks": {key: disk["size"] for key, disk in item.disks.items()},
                "policy": policy_of(tx, item),
                "source": source.id,
                "source_name": source.name,
                "source_address": list(source.address),
                "source_kerberos": kerberos_of(tx, source),
                "source_vm": item.source_vm,
                "target": target.id,
                "target_name": target.name,
                "target_address": list(target.address),
                "target_kerberos": kerberos_of(tx, target),
                "networks": item.networks,
                "failover": item.failover,
                "failed_over": _failed_over(item),
                "demotion": item.demotion,
                "last_sequence": item.last_sequence,
                "journal": item.journal_node_id,
                "parameters": job.parameters,
            }

    facts: Json = run.step("facts", action)
    return facts


def _failed_over(item: Item) -> bool:
    """Whether the machine runs on the target's side: a failover in the present direction was made, and not reversed."""
    return item.failover is not None and item.failover["direction"] == item.direction.value


def is_away(run: Run, tx: Transaction, node_id: str) -> bool:
    """Whether the node was not heard of late: nothing is waited for that it would have to do."""
    return not is_alive(nodes.get(tx, node_id), run.ctx.clock())


def was_away(run: Run, node_id: str) -> bool:
    """The same as a step, for decisions."""

    def action() -> bool:
        with run.ctx.store.reading() as tx:
            return is_away(run, tx, node_id)

    away: bool = run.step("away?", action)
    return away


def check_nodes(tx: Transaction, item: Item) -> None:
    """Raise UnavailableError if one of the item's nodes does not answer."""
    for node_id in (item.source_node_id, item.target_node_id):
        node = nodes.get(tx, node_id)
        if node.silent or node.last_seen is None:
            raise UnavailableError(
                f"node {node.name} does not answer",
                hint="a planned operation needs both sides: start the node, or mend its connection",
                node=node.id,
            )


def check_ready(tx: Transaction, item: Item) -> None:
    """Raise unless the item can be failed over as planned: both nodes answer and there is a point."""
    check_nodes(tx, item)
    if item.last_sequence is None:
        raise OperationRefusedError(
            f"{item.name} has no recovery point", hint="wait for the next cycle to seal one"
        )


def networks_between(run: Run, facts: Json, *, test: bool) -> Json:
    """Return source network -> network at the target (or its test network), None for disconnected (a step).

    On the way back a network without a mapping of its own goes to the one that is mapped to it, so that a machine
    comes home to where it was.
    """

    def action() -> Json:
        with run.ctx.store.reading() as tx:
            source, target = _site(tx, facts["source"]), _site(tx, facts["target"])
            found: Json = dict.fromkeys(facts["networks"])
            if not test:
                for mapping in clouds.list_network_mappings(tx, target, source):
                    found[mapping.target_network] = mapping.source_network
            for mapping in clouds.list_network_mappings(tx, source, target):
                found[mapping.source_network] = mapping.test_network if test else mapping.target_network
            return found

    networks: Json = run.step("networks", action)
    return networks


def _site(tx: Transaction, node: str) -> SiteId:
    return nodes.get(tx, NodeId(node)).site_id
