"""Fetches the facts that the rules look at, for one item or for all, in one read of the store."""

from __future__ import annotations

from datetime import datetime

from secondsite.model.ids import ItemId, NodeId
from secondsite.model.policy import Policy
from secondsite.service.health import rules
from secondsite.service.health.facts import ItemFacts, NodeFacts, Share, VaultFacts
from secondsite.service.health.replication_rules import MONITORED
from secondsite.service.health.rule import Finding
from secondsite.service.store import clouds, health, items, jobs, nodes, samples
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Node
from secondsite.service.vocabulary import JobState


class Reader:
    """What all facts of one answer share, read once. `only`: when a single item is asked for."""

    def __init__(self, tx: Transaction, now: datetime, only: ItemId | None = None) -> None:
        self._tx = tx
        self._now = now
        self.nodes: dict[NodeId, Node] = {node.id: node for node in nodes.listed(tx, revoked=True)}
        policies = {policy.id: policy.policy for policy in clouds.list_policies(tx)}
        self._policies: dict[str, Policy] = {
            mapping.id: policies[mapping.policy_id] for mapping in clouds.list_mappings(tx)
        }
        self._shares = samples.shares(tx, now - MONITORED, only)
        self._application = health.newest_application_points(tx)
        self._diverged = health.diverged_points(tx)

    def item(self, item: Item) -> ItemFacts:
        """Return the facts of an item."""
        running = jobs.active_change(self._tx, item.id)
        waits_for = None
        if running is not None and running.state is JobState.SUSPENDED:
            waits_for = str((running.result or {}).get("waits_for", "its job is suspended"))
        expected, done = self._shares.get(item.id, (0.0, 0))
        return ItemFacts(
            now=self._now,
            item=item,
            policy=self._policies[item.cloud_mapping_id],
            nodes=self.nodes,
            settled=jobs.last_change_ended(self._tx, item.id),
            waits_for=waits_for,
            share=Share(expected, done),
            application_point=self._application.get(item.id),
            diverged=self._diverged.get(item.id),
        )

    def all(self) -> list[Finding]:
        """Return everything that is wrong with items, nodes and the vault."""
        found: list[Finding] = []
        listed = items.listed(self._tx)
        for item in listed:
            found += rules.of_item(self.item(item))
        for node in self.nodes.values():
            part = sum(node.id in {item.primary_node_id, item.recovery_node_id} for item in listed)
            found += rules.of_node(NodeFacts(now=self._now, node=node, items=part))
        receivers, failing = health.receivers(self._tx)
        found += rules.of_vault(
            VaultFacts(now=self._now, items=len(listed), receivers=receivers, failing=failing)
        )
        return found
