"""Fetches the facts that the rules look at, for one item or for all, in one read of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from secondsite.model.ids import ItemId, NodeId
from secondsite.model.policy import Policy
from secondsite.service.health import rules
from secondsite.service.health.facts import ItemFacts, NodeFacts, Share, VaultFacts
from secondsite.service.health.replication_rules import MONITORED
from secondsite.service.health.rule import Finding
from secondsite.service.pace import UNPACED, Pace
from secondsite.service.store import clouds, health, items, jobs, nodes, samples
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Job, Node
from secondsite.service.vocabulary import JobState


class Reader:
    """What all facts of one answer share, read once.

    only: when some items are asked for, not all. shares: what `samples.shares` returned a moment ago, if somebody keeps it.
    """

    def __init__(
        self,
        tx: Transaction,
        now: datetime,
        only: Collection[ItemId] | None = None,
        shares: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        self._tx = tx
        self._now = now
        self.nodes: dict[NodeId, Node] = {
            node.id: node for node in nodes.listed(tx, revoked=True, inventory=False)
        }
        policies = {policy.id: policy.policy for policy in clouds.list_policies(tx)}
        self._policies: dict[str, Policy] = {
            mapping.id: policies[mapping.policy_id] for mapping in clouds.list_mappings(tx)
        }
        self._shares = samples.shares(tx, now - MONITORED, only) if shares is None else shares
        # In two reads: one by one, 1,000 items take 2,000 of them.
        self._active = jobs.active_changes(tx)
        self._settled = jobs.last_changes_ended(tx, only)
        self._application = health.newest_application_points(tx)
        self._diverged = health.diverged_points(tx)

    def item(self, item: Item) -> ItemFacts:
        """Return the facts of an item."""
        running = self.active_change(item)
        waits_for = None
        if running is not None and running.state is JobState.SUSPENDED:
            waits_for = str((running.result or {}).get("waits_for", "its job is suspended"))
        expected, done = self._shares.get(item.id, (0.0, 0))
        return ItemFacts(
            now=self._now,
            item=item,
            policy=self._policies[item.cloud_mapping_id],
            nodes=self.nodes,
            settled=self._settled.get(item.id),
            waits_for=waits_for,
            share=Share(expected, done),
            application_point=self._application.get(item.id),
            diverged=self._diverged.get(item.id),
        )

    def active_change(self, item: Item) -> Job | None:
        """Return the unfinished job that changes the item, or None."""
        return self._active.get(item.id)

    def all(self, listed: Sequence[Item] | None = None, pace: Pace = UNPACED) -> list[Finding]:
        """Return everything that is wrong with items, nodes and the vault. `listed`: the items, if they were read already."""
        found: list[Finding] = []
        if listed is None:
            listed = items.listed(self._tx)
        for item in pace.through(listed):
            found += rules.of_item(self.item(item))
        # An item's nodes are two.
        parts = Counter(node for item in listed for node in (item.primary_node_id, item.recovery_node_id))
        for node in self.nodes.values():
            found += rules.of_node(NodeFacts(now=self._now, node=node, items=parts[node.id]))
        receivers, failing = health.receivers(self._tx)
        found += rules.of_vault(
            VaultFacts(now=self._now, items=len(listed), receivers=receivers, failing=failing)
        )
        return found
