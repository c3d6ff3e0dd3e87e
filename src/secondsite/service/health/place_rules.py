"""Rules of nodes and of the vault. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from secondsite.service.health.facts import ItemFacts, NodeFacts, VaultFacts
from secondsite.service.health.rule import Rule
from secondsite.service.health.vocabulary import Category, Level

INVENTORY_DUE: Final = timedelta(minutes=5)
"""Nodes send their inventory every five seconds; a hypervisor that hangs is given up after about 20 s."""


def _silent(facts: NodeFacts) -> str | None:
    if not facts.node.silent or facts.node.revoked:
        return None
    last = facts.node.last_seen
    shown = "" if last is None else f" since {last:%Y-%m-%d %H:%M:%S} UTC"
    return f"node {facts.node.name} does not answer{shown}"


def _silent_of_item(facts: ItemFacts) -> str | None:
    if facts.item.deleted is not None:
        return None
    sides = (facts.item.primary_node_id, facts.item.recovery_node_id)
    names = [facts.nodes[node].name for node in sides if facts.nodes[node].silent]
    return f"node {' and '.join(names)} does not answer" if names else None


def _hypervisor(facts: NodeFacts) -> str | None:
    node = facts.node
    if node.silent or node.revoked or node.last_seen is None or node.inventory_time is None:
        return None
    late = node.last_seen - node.inventory_time
    if late <= INVENTORY_DUE:
        return None
    return f"node {node.name} answers, but has sent no inventory for {late.total_seconds() / 60:.0f} min"


def _notices_fail(facts: VaultFacts) -> str | None:
    if not facts.failing:
        return None
    return "notices do not arrive: " + "; ".join(
        f"{name}: {why}" for name, why in sorted(facts.failing.items())
    )


def _nobody_told(facts: VaultFacts) -> str | None:
    return "no receiver of notices is set" if facts.items and not facts.receivers else None


_SILENT: Final = (
    "its host is down",
    "the network between it and the service is down",
    "its daemon was stopped or killed",
)
SILENT_OF_ITEM: Final[Rule[ItemFacts]] = Rule(
    code="node-silent",
    category=Category.INFRASTRUCTURE,
    level=Level.CRITICAL,
    summary="a node does not answer",
    causes=_SILENT,
    action="look at the host and at the node's log. Replication between two living nodes needs no service and goes on",
    holds=_silent_of_item,
    told=False,
)
NODE_RULES: Final[tuple[Rule[NodeFacts], ...]] = (
    Rule(
        code="node-silent",
        category=SILENT_OF_ITEM.category,
        level=SILENT_OF_ITEM.level,
        summary=SILENT_OF_ITEM.summary,
        causes=_SILENT,
        action=SILENT_OF_ITEM.action,
        holds=_silent,
        told=False,
    ),
    Rule(
        code="hypervisor-silent",
        category=Category.INFRASTRUCTURE,
        level=Level.WARNING,
        summary="a node answers, its hypervisor does not",
        causes=("libvirtd hangs or was stopped", "the node may not connect to it any more"),
        action="look at libvirtd on that host; cycles there fail until it answers",
        holds=_hypervisor,
        after_s=60,
    ),
)
VAULT_RULES: Final[tuple[Rule[VaultFacts], ...]] = (
    Rule(
        code="notices-failing",
        category=Category.CONFIGURATION,
        level=Level.WARNING,
        summary="notices do not arrive",
        causes=("the receiver is down", "its address or its password has changed"),
        action="test the receivers: secondsite alert test",
        holds=_notices_fail,
    ),
    Rule(
        code="nobody-told",
        category=Category.CONFIGURATION,
        level=Level.INFORMATION,
        summary="nobody is told when something happens",
        causes=("no receiver of notices was ever set",),
        action="set one: secondsite alert set --help",
        holds=_nobody_told,
        told=False,
    ),
)
